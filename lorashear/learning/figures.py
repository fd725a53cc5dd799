"""What a person is told of training, beside how far it is: a line of figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorashear.learning.training import Step

KEPT = 0.9
"""Share of a smoothed figure that the steps before have: about ten of them count."""


class Figures:
    """Give it each step. Loss and tokens a second are exponentially smoothed, from the first step on that it is given."""

    def __init__(self) -> None:
        self._loss: float | None = None
        self._speed: float | None = None
        self._lost: dict[str, float] = {}

    def line(self, step: Step) -> str:
        """As ``loss 3.412  removed 1,204  parameters 58.3M  12,345 tokens/s  code +0.31  web +0.12``: nats, structures, and
        the degradation of subsets, as it was last measured, in nats."""
        self._loss, self._speed = _smoothed(self._loss, step.loss), _smoothed(self._speed, step.speed)
        parts = [f"loss {self._loss:.3f}"]
        if step.removed is not None:
            parts.append(f"removed {step.removed:,}")
        if step.parameters is not None:
            parts.append(f"parameters {short(step.parameters)}")
        if step.measured and step.measured.degradation:
            self._lost = dict(step.measured.degradation)
        lost = [f"{name} +{nats:.2f}" for name, nats in self._lost.items()]
        return "  ".join([*parts, f"{self._speed:,.0f} tokens/s", *lost])


def _smoothed(before: float | None, new: float) -> float:
    return new if before is None else KEPT * before + (1 - KEPT) * new


def short(count: int) -> str:
    """A count in three digits: ``58.3M``, ``1.24B``; below a thousand as it is."""
    for unit, sign in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= unit * 0.9995:  # what rounds up to 1000 of the next smaller unit
            size = count / unit
            return f"{size:.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}{sign}"
    return str(count)
