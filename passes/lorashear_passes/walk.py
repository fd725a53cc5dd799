"""The model as a chain of blocks over fixed text, so that each consumer's input can be seen block by block.

A consumer is a linear map that contracts over a group. What its refit needs are the second moments of its input, and in
a half-pruned model those follow from the outputs of the already pruned blocks: so block after block runs on stored hidden
states, and a pass over all blocks costs few forwards of the model.

The walk knows no architecture. It finds the ``nn.ModuleList`` that holds all consumers and keeps each block's arguments from
one forward. A model without such a list, or whose blocks are not a plain chain, is one stage: the whole model.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Batch", "Stage", "Walk", "chained", "consumers", "heldout_loss", "swapped", "token_loss"]

Batch = Mapping[str, Any]


def consumers(model: nn.Module, slots: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """Module names of the ``nn.Linear`` that contract over ``slots`` and whose weight nobody else uses (tied ones are skipped)."""
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    found: list[str] = []
    for name, dim in slots:
        owner, _, leaf = name.rpartition(".")
        if dim == 1 and leaf == "weight":
            module = model.get_submodule(owner)
            if isinstance(module, nn.Linear) and uses[id(module.weight)] == 1 and owner not in found:
                found.append(owner)
    return tuple(found)


def chained(model: nn.Module, names: Sequence[str], more: Iterable[str]) -> list[str]:
    """Those of ``more`` that lie in the list of blocks that holds ``names``, or, without names, the first list that has any."""
    rest = [name for name in dict.fromkeys(more) if name not in names]
    for prefix, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and all(name.startswith(f"{prefix}.") for name in names):
            inside = [name for name in rest if name.startswith(f"{prefix}.")]
            if inside or names:
                return inside
    return rest


@dataclass(frozen=True)
class Stage:
    """A piece of the model that is run by itself: ``module`` with what it gets beside the hidden states, per batch."""

    module: nn.Module
    consumers: tuple[str, ...]
    """In the order in which they run."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)
    whole: bool
    """The module is the model itself: it takes a batch and no hidden states."""

    def run(self, state: Tensor | None, batch: int) -> Tensor | None:
        """The hidden states after this stage (``None`` for the whole model)."""
        args, kwargs = self.calls[batch]
        if self.whole:
            self.module(**kwargs)
            return None
        return first(self.module(state, *args, **kwargs))


class Walk:
    """The model as a chain of stages over fixed batches, with the states ``[batch, length, hidden]`` before the first one."""

    def __init__(
        self, model: nn.Module, names: Sequence[str], batches: Sequence[Batch], *, whole: bool = False
    ) -> None:
        self.model = model
        self.batches = batches
        self.masks = [_mask(batch) for batch in batches]
        self.start: list[Tensor | None] = [None] * len(batches)
        self._beside: int | None = None  # how much a block gives beside its hidden states; None: it gives these alone
        self.stages = ([] if whole else self._chain(names)) or [self._whole(names)]

    def started(self, fresh: bool) -> list[Tensor | None]:
        """The states before the first stage; ``fresh``: of the model as it is now, after something before it changed."""
        stage = self.stages[0]
        if stage.whole or not fresh:
            return self.start
        found: list[Tensor | None] = []

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0].detach())
            raise _Enough

        handle = stage.module.register_forward_pre_hook(hook)
        try:
            for batch in self.batches:
                with suppress(_Enough), torch.no_grad():
                    self.model(**batch)
        finally:
            handle.remove()
        return found

    @contextmanager
    def tail(self, position: int, states: Sequence[Tensor | None]) -> Iterator[None]:
        """For a moment a forward of the model over the batches in order starts at stage ``position`` from ``states``."""
        if self.stages[0].whole:
            yield
            return
        skipped = [stage.module for stage in self.stages[:position]]
        given = iter(states)

        def passed(state: Tensor, *_: Any, **__: Any) -> Any:
            return state if self._beside is None else (state, *[None] * self._beside)

        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (next(given), *args[1:])

        handle = self.stages[position].module.register_forward_pre_hook(hook)
        try:
            for module in skipped:
                module.forward = passed
            yield
        finally:
            handle.remove()
            for module in skipped:
                del module.forward

    def covariances(
        self,
        stage: Stage,
        states: Sequence[Tensor | None],
        names: Sequence[str],
        *,
        dense: Sequence[Tensor | None] | None = None,
        originals: Mapping[str, Tensor] | None = None,
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """``E[h hᵀ]`` of each named consumer's input over the tokens that count and, given the ``dense`` model's states and
        its ``originals`` (parameter name to weight), ``E[h_dense hᵀ]``; float32 at least, on the model's device."""
        inner: dict[str, Tensor] = {}
        cross: dict[str, Tensor] = {}
        tokens = 0.0
        for number, state in enumerate(states):
            reference: dict[str, Tensor] = {}
            if dense is not None:
                with swapped(self.model, originals or {}):
                    reference = self._inputs(stage, dense[number], number, names)
            for name, rows in self._inputs(stage, state, number, names).items():
                tokens += len(rows) / len(names)
                _add(inner, name, rows, rows)
                if dense is not None:
                    _add(cross, name, reference[name], rows)
        return {name: (inner[name] / tokens, cross[name] / tokens if name in cross else None) for name in names}

    def scan(self, stage: Stage, states: Sequence[Tensor | None]) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """``E[h hᵀ]`` of every consumer of the stage and the states after it, in one run of the stage as it is."""
        sums: dict[str, Tensor] = {}
        tokens = dict.fromkeys(stage.consumers, 0)
        after: list[Tensor | None] = []
        for number, state in enumerate(states):
            taken: dict[str, Tensor] = {}
            hooks = {name: self._keeper(taken, name, number) for name in stage.consumers}
            with _hooked(self.model, hooks), torch.no_grad():
                after.append(stage.run(state, number))
            for name, rows in taken.items():
                tokens[name] += len(rows)
                _add(sums, name, rows, rows)
        return {name: sums[name] / tokens[name] for name in sums}, after

    def part(self, batches: int) -> "Walk":
        """The same walk over the first so many batches; nothing is run again."""
        shorter = copy(self)
        shorter.batches, shorter.masks, shorter.start = (
            self.batches[:batches],
            self.masks[:batches],
            self.start[:batches],
        )
        shorter.stages = [replace(stage, calls=stage.calls[:batches]) for stage in self.stages]
        return shorter

    def advance(self, stage: Stage, states: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The states after the stage."""
        with torch.no_grad():
            return [stage.run(state, number) for number, state in enumerate(states)]

    def _inputs(self, stage: Stage, state: Tensor | None, number: int, names: Sequence[str]) -> dict[str, Tensor]:
        """The inputs of the named consumers, ``[tokens, in]``; the stage runs no further than the last of them."""
        taken: dict[str, Tensor] = {}
        hooks = {name: self._keeper(taken, name, number, enough=len(names)) for name in names}
        with _hooked(self.model, hooks), torch.no_grad(), suppress(_Enough):
            stage.run(state, number)
        return taken

    def _keeper(self, taken: dict[str, Tensor], name: str, number: int, enough: int = 0) -> Callable[..., None]:
        """A hook that keeps a module's input rows, of the tokens that count."""
        mask = self.masks[number]

        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            rows = args[0].detach()
            if mask is None or rows.shape[:-1] != mask.shape:
                taken[name] = rows.reshape(-1, rows.shape[-1]).float()
            else:
                taken[name] = rows[mask.to(rows.device)].float()
            if len(taken) == enough:
                raise _Enough

        return hook

    def _chain(self, names: Sequence[str]) -> list[Stage]:
        prefix = _blocks(self.model, names)
        if prefix is None:
            return []
        blocks = list(self.model.get_submodule(prefix).children())
        calls: list[list[tuple[tuple[Any, ...], dict[str, Any]]]] = [[] for _ in blocks]
        ends: list[Tensor] = []
        order: list[str] = []

        def note(position: int) -> Callable[..., None]:
            def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls[position].append((args[1:], kwargs))
                if position == 0:
                    self.start[len(calls[0]) - 1] = args[0].detach()

            return hook

        def end(_: nn.Module, __: Any, output: Any) -> None:
            self._beside = None if isinstance(output, Tensor) else len(output) - 1
            ends.append(first(output).detach())

        handles = [block.register_forward_pre_hook(note(i), with_kwargs=True) for i, block in enumerate(blocks)]
        handles.append(blocks[-1].register_forward_hook(end))
        try:
            with _hooked(self.model, {name: _recorder(order, name) for name in names}), torch.no_grad():
                for batch in self.batches:
                    self.model(**batch)
        except (IndexError, AttributeError):  # a block called without positional hidden states, or with something else
            return []
        finally:
            for handle in handles:
                handle.remove()
        if any(len(made) != len(self.batches) for made in calls):
            return []
        stages = [
            Stage(block, tuple(name for name in order if name.startswith(f"{prefix}.{i}.")), calls[i], False)
            for i, block in enumerate(blocks)
        ]
        return stages if self._replays(stages, ends[0]) else []

    def _replays(self, stages: Sequence[Stage], end: Tensor) -> bool:
        state = self.start[0]
        with torch.no_grad():
            for stage in stages:
                state = stage.run(state, 0)
        return state is not None and state.shape == end.shape and torch.allclose(state, end, rtol=1e-3, atol=1e-3)

    def _whole(self, names: Sequence[str]) -> Stage:
        order: list[str] = []
        with _hooked(self.model, {name: _recorder(order, name) for name in names}), torch.no_grad():
            self.model(**self.batches[0])
        self.start = [None] * len(self.batches)
        return Stage(self.model, tuple(order), [((), dict(batch)) for batch in self.batches], True)


def heldout_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean next-token cross-entropy in nats over the tokens that count; the model gives logits ``[batch, length, vocabulary]``."""
    total, tokens = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            output = model(**batch)
        logits = output if isinstance(output, Tensor) else output.logits if hasattr(output, "logits") else output[0]
        wanted = targets(batch)
        for row, target in zip(logits[:, :-1], wanted, strict=True):
            total += float(nn.functional.cross_entropy(row.float(), target, reduction="sum", ignore_index=-100))
        tokens += int((wanted != -100).sum())
    return total / max(tokens, 1)


def token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """`heldout_loss` of one batch, with its gradient."""
    output = model(**batch)
    logits = output if isinstance(output, Tensor) else output.logits if hasattr(output, "logits") else output[0]
    return nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), targets(batch).flatten(), ignore_index=-100
    )


def targets(batch: Batch) -> Tensor:
    """The token that each but the last has to tell, −100 where none counts."""
    wanted: Tensor = batch["input_ids"][:, 1:].clone()
    mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        wanted = wanted.masked_fill(~mask[:, 1:].bool(), -100)
    return wanted


class _Enough(Exception):
    """Raised by a hook once all inputs are seen: the rest of the forward is not needed."""


@contextmanager
def swapped(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """``weights`` (parameter name to value) are the model's for a moment."""
    parameters = {name: model.get_parameter(name) for name in weights}
    before = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


def first(output: Any) -> Tensor:
    """The hidden states in a block's output: the output itself or its first entry."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Callable[..., None]]) -> Iterator[None]:
    handles = [model.get_submodule(name).register_forward_pre_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recorder(order: list[str], name: str) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        if name not in order:
            order.append(name)

    return hook


def _blocks(model: nn.Module, names: Sequence[str]) -> str | None:
    for prefix, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and all(name.startswith(f"{prefix}.") for name in names):
            return prefix
    return None


def _mask(batch: Batch) -> Tensor | None:
    mask = batch.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None


def _add(sums: dict[str, Tensor], name: str, left: Tensor, right: Tensor) -> None:
    product = left.T @ right
    sums[name] = sums[name] + product if name in sums else product
