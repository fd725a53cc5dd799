"""What all that is measured of one model after another has in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

from lorashear.evaluation.pieces import Pieces
from lorashear.evaluation.subjects import Subject

NOISE = 1.96
"""Standard errors that a difference, or a distance from chance, must have to be more than noise: 95 of 100 times none is larger."""

Told = Callable[[int, int], None]
"""Called with how much is done, and all."""


@dataclass(frozen=True)
class Finding:
    """Of one model: ``result`` is for the report; ``each`` has the values that it is made of, one an item or window, by name, so that
    two models are compared on the same ones."""

    result: dict[str, Any]
    each: dict[str, list[float]]


class Measure(Protocol):
    """Of every model by itself, on the same data."""

    @property
    def name(self) -> str:
        """Of what is measured on."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """For the report, of all models: kind, name, what data, how."""
        ...

    def of(self, subject: Subject, model: nn.Module, progress: Told, pieces: Pieces) -> Finding:
        """What is found of a model, going on behind the pieces that were found before."""
        ...

    def difference(self, first: Finding, other: Finding) -> dict[str, Any]:
        """How another model differs from the first one, with standard errors."""
        ...


def figure(measure: Measure, findings: Sequence[Finding]) -> dict[str, Any]:
    """Of all models, for the report."""
    return {
        **measure.about,
        "results": [finding.result for finding in findings],
        "differences": [None, *(measure.difference(findings[0], other) for other in findings[1:])],
    }


def noise(difference: float, error: float | None) -> bool | None:
    """Whether a difference is no more than what another sample of the same data could show; None where nobody knows."""
    return None if error is None else abs(difference) <= NOISE * error


def known(number: float) -> float | None:
    """A number for the report; None where JSON has none, as for the standard error of one item."""
    return number if math.isfinite(number) else None
