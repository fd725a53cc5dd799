"""What every way of tracing shares: the model left as it was, names, and the finished graph."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast

import torch

from lorashear_ir.graph import Graph, Node, Source
from lorashear_passes.dead import without_dead

LOUD = ("torch._subclasses.fake_tensor", "torch.fx.experimental.symbolic_shapes")


class CannotRecord(RuntimeError):
    """The forward cannot be recorded: its error or, in words, what it does; the path of the module; and the graph so far."""

    def __init__(self, cause: Exception | str, module: str = "", partial: Graph | None = None) -> None:
        super().__init__(str(cause))
        self.cause, self.module, self.partial = cause, module, partial


class Names:
    """Names no two of which are equal: ``linear``, ``linear_1``, ``linear_2``."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def fresh(self, base: str) -> str:
        count = self._counts.get(base, 0)
        name = f"{base}_{count}" if count else base
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._counts[base] = count + 1
        self._taken.add(name)
        return name


def first_names(model: torch.nn.Module) -> dict[str, str]:
    """Every name of a parameter, and the first name of that same tensor (in the order of named_parameters)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(p), name) for name, p in model.named_parameters(remove_duplicate=False)}


def finished(
    model: torch.nn.Module, sources: Sequence[Source], nodes: Sequence[Node], outputs: tuple[str, ...]
) -> Graph:
    """The graph of a model: its parameters, and what else it reads."""
    tied = tuple((name, first) for name, first in first_names(model).items() if name != first)
    return without_dead(Graph(type(model).__name__, tuple(sources), tuple(nodes), outputs, tied=tied))


@contextmanager
def untouched(model: torch.nn.Module) -> Iterator[None]:
    """Undo at the end whatever was assigned on the modules: parameters, modes, hooks, tensors that a forward keeps."""
    saved = [(vars(module), _contents(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for attributes, (before, inner) in saved:
            _refill(attributes, before)
            for name, content in inner.items():
                _refill(before[name], content)


@contextmanager
def whole_experts(model: torch.nn.Module) -> Iterator[None]:
    """Let transformers' mixtures of experts look their weights up by the router's choice, in one matrix product a token.

    Its other ways to compute the same sort tokens by expert or loop over those that were chosen.
    """
    configs = {id(config): config for m in model.modules() if (config := getattr(m, "config", None)) is not None}
    before = [(c, c._experts_implementation) for c in configs.values() if hasattr(c, "_experts_implementation")]
    try:
        for config, _ in before:
            config._experts_implementation = "batched_mm"
        yield
    finally:
        for config, implementation in before:
            config._experts_implementation = implementation


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from printing graphs and stack traces of errors that are caught here."""
    before = [(logger, logger.disabled) for logger in map(logging.getLogger, LOUD)]
    try:
        for logger, _ in before:
            logger.disabled = True
        with redirect_stderr(cast(TextIO, Nowhere())):
            yield
    finally:
        for logger, disabled in before:
            logger.disabled = disabled


class Nowhere:
    """A stream for text that nobody reads."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _contents(attributes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A copy of the attributes, and of the content of each that can change in place."""
    return dict(attributes), {name: held.copy() for name, held in attributes.items() if isinstance(held, dict | list)}


def _refill(held: Any, content: Any) -> None:
    held.clear()
    held.update(content) if isinstance(held, dict) else held.extend(content)
