"""What a shell offers as the value of an option. It is asked at each press of Tab: what takes long to import is not here."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lorashear.config import ADAPTER, COSTS, CRITERIA, KINDS, MIXTURES, POLICIES
from lorashear.engines.needs import NEEDS

Completion = Callable[[str], list[str]]


def _one_of(names: Iterable[str]) -> Completion:
    known = tuple(names)

    def complete(incomplete: str) -> list[str]:
        return [name for name in known if name.startswith(incomplete)]

    return complete


def _some_of(names: Iterable[str]) -> Completion:
    """By commas, each once."""
    known = tuple(names)

    def complete(incomplete: str) -> list[str]:
        given, comma, last = incomplete.rpartition(",")
        there = given.split(",")
        return [f"{given}{comma}{name}" for name in known if name.startswith(last) and name not in there]

    return complete


def formats(incomplete: str) -> list[str]:
    """Of `lorashear export`; the module that has them loads numpy, which the other values do without."""
    from lorashear.engines.exporter import ALSO, TARGETS

    return [name for name in (*TARGETS, *ALSO) if name.startswith(incomplete)]


adapters = _one_of(ADAPTER)
costs = _one_of(COSTS)
criteria = _one_of(CRITERIA)
engines = _one_of(NEEDS)
kinds = _some_of(KINDS)
mixtures = _one_of(MIXTURES)
policies = _one_of(POLICIES)
