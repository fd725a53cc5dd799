"""Which entries of which parameter each tensor on disk holds; transformers fuses experts and renames weights as it loads.

Transformers can turn the parameters of a model back into what is stored. It is handed, instead of weights, tensors that
number the entries along one dim; what comes out says where everything went, whatever the operations between.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from lorashear.disk.checkpoint import Part, Place
from lorashear.errors import LorashearError

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class Stored:
    """What a checkpoint of a class stores. Parameters that lie in one tensor, one after the other, are tensors here too."""

    parts: Mapping[str, Part]  # of what parameter each tensor is which part
    stacks: Mapping[str, Mapping[str, int]]  # tensors on disk that hold several of those, with the rows of each


def stored(model: PreTrainedModel) -> Stored:
    """What checkpoints of the class of ``model`` store, by the names there.

    Raises:
        LorashearError: a stored tensor mixes several parameters.
    """
    held = model.state_dict()
    begins: dict[str, int] = {}
    end = 0
    for name, tensor in held.items():
        begins[name] = end
        end += max(1, *tensor.shape) if tensor.dim() else 1
    numbered = [
        _stored(model, {name: _numbers(tensor, dim, begins[name]) for name, tensor in held.items()})
        for dim in range(max((tensor.dim() for tensor in held.values()), default=0) or 1)
    ]
    names, firsts = list(begins), list(begins.values())
    parts: dict[str, Part] = {}
    stacks: dict[str, dict[str, int]] = {}
    for stored, pieces in numbered[0].items():
        alone = len(pieces) == 1
        for number, piece in enumerate(pieces):
            at = int(piece[(0,) * piece.dim()]) if piece.numel() else 0
            parameter = names[bisect.bisect_right(firsts, at) - 1] if piece.numel() else stored
            shape = tuple(held[parameter].shape)
            dims = [each[stored][number] for each in numbered[: len(shape)]]
            places = tuple(_places(dims, shape, begins[parameter]))
            part = Part(parameter, tuple(piece.shape), places)
            if not _made_of(dims, places, shape, begins[parameter]) or not (alone or _whole(part, shape)):
                raise LorashearError(
                    f"{type(model).__name__} stores tensor '{stored}' as a mixture of its parameters, so that it cannot "
                    "be cut"
                )
            parts[stored if alone else parameter] = part
            if not alone:
                stacks.setdefault(stored, {})[parameter] = part.shape[0]
    return Stored(parts, stacks)


class _Views(TorchFunctionMode):
    """Numbers stay expanded from one dim, whatever the size of the tensor that they stand for."""

    def __init__(self) -> None:
        self._stacked: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.contiguous:
            return args[0]
        if func is torch.cat and [*args[1:], kwargs.get("dim", 0)][0] == 0:
            pieces = [piece for each in args[0] for piece in self.pieces(each)]
            if len({each.untyped_storage().data_ptr() for each in pieces}) == len(pieces) > 1:  # of as many parameters
                stacked = pieces[0].view(pieces[0].shape)
                self._stacked[id(stacked)] = stacked, pieces
                return stacked
        return func(*args, **kwargs)

    def pieces(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """What stands one after the other in a tensor, which is not made then."""
        return self._stacked[id(tensor)][1] if id(tensor) in self._stacked else [tensor]


def _whole(part: Part, shape: tuple[int, ...]) -> bool:
    return part.shape == shape and all(
        place.dim == dim and place.indices == range(size)
        for dim, (place, size) in enumerate(zip(part.places, shape, strict=True))
    )


def _stored(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    views = _Views()
    with views:
        return {name: views.pieces(tensor) for name, tensor in revert_weight_conversion(model, tensors).items()}


def _numbers(tensor: torch.Tensor, dim: int, begin: int) -> torch.Tensor:
    """The index along a dim of every entry, from ``begin`` on; a view of one row."""
    if dim >= tensor.dim():
        return torch.full((), begin, device="cpu").expand(tensor.shape)
    row = torch.arange(begin, begin + tensor.shape[dim], device="cpu")
    return row.reshape([-1 if d == dim else 1 for d in range(tensor.dim())]).expand(tensor.shape)


def _places(numbered: list[torch.Tensor], shape: tuple[int, ...], begin: int) -> Iterator[Place]:
    """Where each dim of the parameter went: the dim of the stored tensor along which its numbers change."""
    free = [dim for dim in range(numbered[0].dim())] if numbered else []
    along: dict[int, int] = {}
    for number, each in enumerate(numbered):
        moving = [dim for dim in free if each.shape[dim] > 1 and _moves(each, dim)]
        if moving:
            along[number] = moving[0]
            free.remove(moving[0])
    for number, each in enumerate(numbered):
        # A dim of one entry shows nothing: those that are left stand in order.
        if number not in along and shape[number] == 1 and (single := [dim for dim in free if each.shape[dim] == 1]):
            along[number] = single[0]
            free.remove(single[0])
        dim = along.get(number)
        index = int(each[(0,) * each.dim()]) - begin
        yield Place(dim, _line(each, dim, begin) if dim is not None else range(index, index + 1))


def _moves(numbers: torch.Tensor, dim: int) -> bool:
    first, second = (numbers.select(dim, at)[(0,) * (numbers.dim() - 1)] for at in (0, 1))
    return bool(first != second)


def _line(numbers: torch.Tensor, dim: int, begin: int) -> Sequence[int]:
    at: list[Any] = [0] * numbers.dim()
    at[dim] = slice(None)
    line = numbers[tuple(at)] - begin
    if not len(line):
        return range(0)
    first = int(line[0])
    run = range(first, first + len(line))
    return run if bool((line == torch.arange(run.start, run.stop)).all()) else line.tolist()


def _made_of(numbered: list[torch.Tensor], places: tuple[Place, ...], shape: tuple[int, ...], begin: int) -> bool:
    """Whether the numbers are those of one parameter and change along no other dim."""
    for each, place, size in zip(numbered, places, shape, strict=True):
        indices = place.indices
        line = torch.arange(indices.start, indices.stop) if isinstance(indices, range) else torch.tensor(indices)
        if each.numel() and not 0 <= int(line.min()) <= int(line.max()) < size:
            return False
        expected = line.reshape([-1 if d == place.dim else 1 for d in range(each.dim())])
        rows = [slice(None) if stride or d == place.dim else slice(1) for d, stride in enumerate(each.stride())]
        if not bool((each[tuple(rows)] == expected + begin).all()):
            return False
    return True


def as_stored(weight: torch.Tensor, dtype: str) -> np.ndarray:
    """A weight as it is stored in a dtype of safetensors: BF16 as the bits of uint16."""
    weight = weight.detach().cpu().to(DTYPES[dtype]).contiguous()
    return weight.view(torch.int16).numpy().view(np.uint16) if weight.dtype is torch.bfloat16 else weight.numpy()


def take(part: Part, parameter: torch.Tensor) -> torch.Tensor:
    """The stored tensor, from the parameter that it is part of."""
    for dim, place in enumerate(part.places):
        if len(place.indices) < parameter.shape[dim]:
            parameter = parameter.index_select(dim, torch.tensor(place.indices, device=parameter.device))
    order = sorted(range(len(part.places)), key=lambda dim: -1 if (d := part.places[dim].dim) is None else d)
    return parameter.permute(order).reshape(part.shape)
