"""Knowledge curves: how far the held-out loss moves when one group alone is pruned, at about ten levels.

The dense model is walked once. At each consumer every group is cut to every level, with the refit, and the model runs on
from there over the held-out text; then the weight is put back. Cost grows with groups times levels.
"""

from collections.abc import Sequence
from itertools import pairwise

from .surgery import Progress, Surgeon, levels, units
from .walk import Walk, heldout_loss, swapped

__all__ = ["Curves", "loss_curves"]

Curves = dict[str, list[float]]
"""Per group the damage of removing 0, 1, … units."""


def loss_curves(surgeon: Surgeon, walk: Walk, guard: Walk, progress: Progress) -> Curves:
    """The rise of held-out loss, in nats a token, per group and units removed; rising, linear between the levels.

    ``walk`` gives the calibration statistics, ``guard`` the held-out text.
    """
    model = surgeon.model
    dense = heldout_loss(model, guard.batches)
    found: dict[str, list[float]] = {name: [] for name in surgeon.chosen}
    states, held = walk.start, guard.start
    for position, stage in enumerate(walk.stages):
        covariances, after = walk.scan(stage, states)
        for name in stage.consumers:
            if name not in surgeon.jobs:
                continue
            own: dict[str, list[float]] = {}
            for group, _, weight in surgeon.alone(name, covariances[name]):
                with swapped(model, {f"{name}.weight": weight}), guard.tail(position, held):
                    own.setdefault(group.name, []).append(heldout_loss(model, guard.batches) - dense)
            for group, rises in own.items():  # a group with several consumers is hurt in each
                found[group] = _summed(found[group], rises)
        states, held = after, guard.advance(guard.stages[position], held)
        progress("knowledge", position + 1, len(walk.stages))
    for group in surgeon.front:
        for _, zeroed in surgeon.front_alone(group):
            with swapped(model, zeroed):
                found[group.name].append(heldout_loss(model, guard.batches) - dense)
    return {name: _filled([0, *levels(group)], found[name], units(group)) for name, group in surgeon.chosen.items()}


def _summed(one: list[float], other: list[float]) -> list[float]:
    return [a + b for a, b in zip(one, other, strict=True)] if one else other


def _filled(at: Sequence[int], rises: Sequence[float], last: int) -> list[float]:
    """A rising curve over 0 … last through 0 and the measured levels, linear in between."""
    values = [0.0]
    for rise in rises:
        values.append(max(values[-1], rise))
    curve = [0.0] * (last + 1)
    for (a, b), (low, high) in zip(pairwise(at), pairwise(values), strict=True):
        for level in range(a, b + 1):
            curve[level] = low + (high - low) * (level - a) / (b - a)
    return curve
