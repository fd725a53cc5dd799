"""Numbers in a recording: fake tensors have none, yet a forward may read some to decide what it does.

Known are those of small tensors that are made of no other (positions, masks of ones). A search for places finds every one,
so that a loop over the experts that were chosen goes over them all. A forward that asks for more, as how many tokens an
expert gets, is recorded for a choice that is made up: every expert in turn.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._mode_utils import no_dispatch

from lorashear_ir.graph import Node

KNOWN, MADE_UP = 64, 2**16
"""Elements of a tensor whose numbers are kept; and where choices are made up."""

FACTORIES = {"arange", "ones", "zeros", "full"}
SEARCHES = {"nonzero", "nonzero_numpy", "argwhere"}
UNFOLDED = {torch.Tag.nondeterministic_seeded, torch.Tag.inplace_view, torch.Tag.dynamic_output_shape}


class Numbers:
    """The numbers that a forward can read while it is recorded."""

    def __init__(self, *, made_up: bool) -> None:
        self.limit = MADE_UP if made_up else KNOWN
        self.searches: dict[str, str] = {}  # by module, an operator that was taken to find every place
        self._made_up = made_up
        self._guesses: set[str] = set()  # values whose numbers are made up

    def call(self, func: Any, op: str, args: Any, kwargs: Any, module: str) -> Any:
        """The result of an ATen call on fake tensors, with its numbers where they are known."""
        if op in SEARCHES and known(args[0]) is None:
            self.searches[module] = op
            return _every_place(func, args[0])
        if (result := self._folded(func, args, kwargs)) is not None:
            return result
        result = func(*args, **kwargs)
        if op in FACTORIES and isinstance(result, FakeTensor) and result.numel() <= self.limit:
            result.constant = _really(func, *args, **{**kwargs, "device": "cpu"})
        elif op == "one_hot" and (classes := known(args[0])) is not None:  # torch makes it of a factory not seen here
            result.constant = _really(func, classes, *args[1:], **kwargs)
        return result

    def _folded(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator makes of tensors that all have numbers, if it is one small tensor; None where torch is to see to it.

        Torch does the same, and describes each tensor at length on the way, which took a quarter of a recording.
        """
        if func._schema.is_mutable or not UNFOLDED.isdisjoint(func.tags):
            return None
        leaves, spec = pytree.tree_flatten((args, kwargs))
        fakes = [each for each in leaves if isinstance(each, FakeTensor) and each.constant is not None]
        if not fakes or len(fakes) < sum(isinstance(each, torch.Tensor) for each in leaves):
            return None
        if "device" in kwargs or any(each.fake_device.type != "cpu" for each in fakes):
            return None
        held = [each.constant if isinstance(each, FakeTensor) else each for each in leaves]
        with no_dispatch():
            given, named = pytree.tree_unflatten(held, spec)
            found = func(*given, **named)
            for fake in fakes:
                if found is fake.constant:
                    return fake
            if type(found) is not torch.Tensor or found.layout != torch.strided or found.numel() > self.limit:
                return None
            size = found.untyped_storage().nbytes() // found.element_size()
            whole = torch.empty(size, dtype=found.dtype, device="meta")
            hollow = whole.as_strided(found.shape, found.stride(), found.storage_offset())
            made = FakeTensor(fakes[0].fake_mode, hollow, found.device, constant=found)
        # A write that is not known makes the numbers of all views unknown.
        made.fake_mode.fake_tensor_converter.add_constant_storage_mapping(made)
        return made

    def follow(self, node: Node, args: Any, results: list[torch.Tensor]) -> None:
        """What is made of numbers that are made up is made up too; if that is asked, they begin with a top-k."""
        if self._made_up and node.op == "topk":
            chosen: Any = results[1]
            chosen.constant = _really(_in_turn, chosen.shape, args[0].shape[-1])
            self._guesses.add(node.outputs[1].name)
        elif not self._guesses.isdisjoint(node.references()):
            self._guesses.update(value.name for value in node.outputs)

    def certain(self, given: Any, name: str | None) -> torch.Tensor | None:
        """The numbers of a tensor of that name, unless they are made up."""
        return None if name in self._guesses else known(given)


def known(given: Any) -> torch.Tensor | None:
    """The numbers of a constant tensor."""
    held = getattr(given, "constant", None) if isinstance(given, FakeTensor) else given
    return held if isinstance(held, torch.Tensor) and not held.is_meta else None


def _every_place(func: Any, source: FakeTensor) -> Any:
    """What a search finds where everything is to be found."""

    def held(found: torch.Tensor) -> torch.Tensor:
        fake = source.fake_mode.from_tensor(found)
        fake.constant = found
        return fake

    found = _really(lambda: func(torch.ones(source.shape)))
    return pytree.tree_map_only(torch.Tensor, held, found)


def _in_turn(shape: torch.Size, size: int) -> torch.Tensor:
    """Choices along a dim of that size: every index of it, if there are enough choices."""
    return (torch.arange(shape.numel()) % size).reshape(shape)


def _really(func: Any, *args: Any, **kwargs: Any) -> Any:
    """The result of a call on real tensors."""
    with unset_fake_temporarily():
        return func(*args, **kwargs)
