"""Weights that lie in parts in several processes: FSDP2, which gathers the rows of a block while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lorashear.learning.processes import Processes
from lorashear_passes.weights import Weights

T = TypeVar("T")


def wanted(fsdp: bool) -> bool:
    """Whether weights are to be sharded: by the settings, or by the launcher's."""
    return fsdp or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def shard(model: Any, processes: Processes) -> None:
    """Leave this process its rows of every weight: block by block, and what is outside of blocks together.

    Gradients are added up over the processes, not averaged.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(processes.accelerator.device.type, (processes.size,))
    for module in [*_blocks(model), model]:
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other one


def _blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The layers: what stands in the outermost lists of modules."""
    found: list[torch.nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, torch.nn.ModuleList) else _blocks(child)
    return found


def full(value: Tensor) -> Tensor:
    """A whole tensor; all processes ask for it together where it lies in parts."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local(value: Tensor) -> Tensor:
    """What of a tensor lies here."""
    return value.to_local() if isinstance(value, DTensor) else value


def rows(value: Tensor, processes: Processes) -> slice:
    """Which rows of a tensor lie here."""
    if not isinstance(value, DTensor):
        return slice(None)
    each = -(-len(value) // processes.size)  # as torch.chunk
    return slice(min(len(value), each * processes.rank), min(len(value), each * (processes.rank + 1)))


class SharedWeights(Weights):
    """Those of a model that several processes train, whole or sharded in each.

    ``build`` makes a whole one that has the same names, where it is sharded.
    """

    def __init__(self, model: torch.nn.Module, processes: Processes, build: Callable[[], torch.nn.Module]) -> None:
        super().__init__(model)
        self.processes, self.build = processes, build

    def here(self, name: str) -> Tensor:
        return local(self.model.get_parameter(name).data)

    def rows(self, name: str) -> tuple[int, int]:
        parameter = self.model.get_parameter(name)
        start, stop, _ = rows(parameter, self.processes).indices(len(parameter))
        return start, stop

    @contextmanager
    def whole(self) -> Iterator[torch.nn.Module]:
        parameters = dict(self.model.named_parameters())
        if not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
            yield self.model
            return
        replica = self.build()
        for name, parameter in replica.named_parameters():
            parameter.data.copy_(full(parameters[name].detach()))
        yield replica

    def agreed(self, value: T) -> T:
        return self.processes.agreed(value)

    def summed(self, value: Tensor) -> Tensor:
        return self.processes.summed(value)
