"""What training has come to, as tensors by name: what is trained, the optimizer's moments, and what is random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lorashear.learning.processes import Processes
from lorashear.learning.sharding import full, local, rows

MOMENTS = ("exp_avg", "exp_avg_sq")


def read(model: torch.nn.Module, optimizer: torch.optim.Optimizer, processes: Processes) -> dict[str, Tensor]:
    """The state; all processes ask for it together, and it holds what is random in each of them."""
    found: dict[str, Tensor] = {}
    for name, parameter in _trained(model):
        found[f"trained.{name}"] = full(parameter.detach())
        for what, value in optimizer.state[parameter].items():
            found[f"{what}.{name}"] = full(value)
    for number, states in enumerate(processes.gathered(_random(model))):
        found |= {f"random.{number}.{device}": value for device, value in states.items()}
    return found


def restore(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, processes: Processes, state: Mapping[str, Tensor]
) -> None:
    """As it was when `read` gave this; what is random goes on by itself in processes that were not there then."""
    for name, parameter in _trained(model):
        mine = rows(parameter, processes)
        local(parameter.data).copy_(state[f"trained.{name}"][mine])
        moments = {what: torch.zeros_like(parameter) for what in MOMENTS if f"{what}.{name}" in state}
        for what, value in moments.items():
            local(value).copy_(state[f"{what}.{name}"][mine])
        if moments:
            optimizer.state[parameter] = {"step": state[f"step.{name}"], **moments}
    for device in _random(model):
        held = state.get(f"random.{processes.rank}.{device}")
        if held is not None:
            torch.set_rng_state(held) if device == "cpu" else torch.cuda.set_rng_state(held)


def _trained(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def _random(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state of what is random here, by device."""
    found = {"cpu": torch.get_rng_state()}
    if any(parameter.is_cuda for parameter in model.parameters()):
        found["cuda"] = torch.cuda.get_rng_state()
    return found
