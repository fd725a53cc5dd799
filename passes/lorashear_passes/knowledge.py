"""Knowledge distribution analysis: how far the held-out loss moves when one group alone is pruned, at about ten levels.

The dense model is walked once. At each consumer every group is cut to every level, in its order and with the refit, and
the model runs on from there over the held-out text; then the weight is put back. Cost grows with groups times levels.
The paper (arXiv 2310.18356, section 3) removes whole node groups; the curve says besides how much of one may go.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .allocate import GroupLike
from .surgery import Measured, Progress, Surgeon, levels, units
from .walk import Walk, heldout_loss, swapped

__all__ = ["Curves", "Knowledge", "analysed", "crucial", "measurements"]

Curves = dict[str, list[float]]
"""Per group the damage of removing 0, 1, … units."""


@dataclass(frozen=True)
class Knowledge:
    """What was measured."""

    dense: float
    """Held-out loss of the dense model, nats a token."""
    rises: Mapping[str, tuple[float, ...]]
    """Per group the rise of that loss at each of its `levels`, the last of which removes it whole."""

    def curve(self, group: GroupLike) -> list[float]:
        """The rise at 0, 1, … units removed: through the measured levels, never falling, linear between them."""
        return _filled([0, *levels(group)], self.rises[group.name], units(group))

    def density(self, group: GroupLike) -> float:
        """Mean rise over the levels, but for the whole group, for each weight that it owns: what its weights are worth."""
        rises = self.rises[group.name][:-1] or self.rises[group.name]
        return sum(rises) / len(rises) / (group.parameters * group.size)


def analysed(
    surgeon: Surgeon, walk: Walk, guard: Callable[[], Walk], measured: Measured, progress: Progress
) -> Knowledge:
    """Measure every group of the surgeon alone.

    ``walk`` gives the calibration statistics, ``guard`` the held-out text. What ``measured`` has is not done again, and
    each result goes there as it is found, so that a run that was stopped can go on.
    """
    missing = [key for key, _ in _keys(surgeon) if key not in measured]
    if missing or "" not in measured:
        _measure(surgeon, walk, guard(), measured, progress)
    dense = measured[""][0]
    sums: dict[str, list[float]] = {}
    for key, group in _keys(surgeon):  # a group with several consumers is hurt in each
        rises = [loss - dense for loss in measured[key]]
        before = sums.get(group.name, [0.0] * len(rises))
        sums[group.name] = [a + b for a, b in zip(before, rises, strict=True)]
    return Knowledge(dense, {name: tuple(rises) for name, rises in sums.items()})


def measurements(surgeon: Surgeon) -> int:
    """How often the held-out text is read, in part or whole."""
    return sum(len(levels(group)) for _, group in _keys(surgeon))


def crucial(knowledge: Knowledge, groups: Mapping[str, GroupLike], share: float | None = None) -> list[str]:
    """The ``share`` of the groups whose weights are worth most, worth most first; by default those before the knee.

    The knee is where the sorted curve lies farthest under the line from its first point to its last (Satopää et al.
    2011); a curve that bends too little to have one keeps nothing out.
    """
    worth = {name: knowledge.density(group) for name, group in groups.items()}
    order = sorted(worth, key=lambda name: (-worth[name], name))
    count = _knee([worth[name] for name in order]) if share is None else round(share * len(order))
    return order[: min(count, len(order) - 1)]


def _knee(falling: Sequence[float]) -> int:
    """How many come before the knee; 0 where the farthest point is no farther than a quarter of the height below."""
    high, low, last = falling[0], falling[-1], len(falling) - 1
    if last < 2 or high <= low:
        return 0
    below = [1 - at / last - (value - low) / (high - low) for at, value in enumerate(falling)]
    farthest = max(range(len(below)), key=lambda at: below[at])
    return farthest if below[farthest] > 0.25 else 0


def _keys(surgeon: Surgeon) -> Iterator[tuple[str, GroupLike]]:
    for consumer, job in surgeon.jobs.items():
        for group in job.groups:
            yield f"{consumer} {group.name}", group
    for group in surgeon.front:
        yield f" {group.name}", group


def _measure(surgeon: Surgeon, walk: Walk, guard: Walk, measured: Measured, progress: Progress) -> None:
    model = surgeon.model
    if "" not in measured:
        measured[""] = [heldout_loss(model, guard.batches)]
    total = measurements(surgeon)
    known = sum(len(levels(group)) for key, group in _keys(surgeon) if key in measured)
    progress("measuring levels", known, total)
    states, held = walk.start, guard.start
    for position, stage in enumerate(walk.stages):
        covariances, after = walk.scan(stage, states)
        for name in stage.consumers:
            job = surgeon.jobs.get(name)
            wanted = [g for g in job.groups if f"{name} {g.name}" not in measured] if job else []
            for group in wanted:
                losses: list[float] = []
                for weight in surgeon.alone(name, group, covariances[name]):
                    with swapped(model, {f"{name}.weight": weight}), guard.tail(position, held):
                        losses.append(heldout_loss(model, guard.batches))
                    known += 1
                    progress("measuring levels", known, total)
                measured[f"{name} {group.name}"] = losses
        states, held = after, guard.advance(guard.stages[position], held)
    for group in surgeon.front:
        if f" {group.name}" not in measured:
            losses = []
            for zeroed in surgeon.front_alone(group):
                with swapped(model, zeroed):
                    losses.append(heldout_loss(model, guard.batches))
                known += 1
                progress("measuring levels", known, total)
            measured[f" {group.name}"] = losses


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
