"""How one budget is split between kinds and layers: candidates are pruned for real, and held-out loss chooses.

The knowledge curves, each group pruned alone, go through one knapsack over all groups. Damages do not simply add up, so
what it gives is a candidate beside others.

*Uniform*: all layers have the same widths, so a split is a few numbers: heads, queries in each, hidden channels; the
widest family (MLP channels) fills what is left of the budget. Where there are few, all are tried; else a descent over
those numbers starts at equal shares or at the knowledge split, whichever is better, and halves its steps.

*Per layer*: a second candidate adds the damage of unequal shares to the curves, a third takes the structures of least
score, each standardised in its group (FLAP), a fourth keeps the crucial groups before the knee whole, and the best uniform
split is the last: letting widths differ never loses to it on the held-out text. Where a share of the groups is given that
stays whole, it does in all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import product
from math import inf, prod
from statistics import median

from torch import Tensor

from .allocate import Family, GroupLike, GroupsLike, Unreachable, allocate, families
from .knowledge import Curves, Knowledge, crucial
from .surgery import units

__all__ = ["Budget", "Split", "equal_shares", "per_layer", "run_off", "standardised", "uniform"]

TRIALS = 12  # uniform splits that are pruned and measured
MARGIN, RIVALS = 0.05, 2  # nats a token within which so many more splits are measured again, on all windows

Widths = dict[str, int]
Measure = Callable[[Widths], float]
"""Held-out loss of the model pruned to these widths."""


@dataclass(frozen=True)
class Budget:
    """What may stay: ``ratio`` of the parameters of ``groups`` goes."""

    groups: GroupsLike
    ratio: float
    per_layer: bool = False
    multiples: Mapping[str, int] | None = None
    minimum: Mapping[str, int] | None = None
    unprunable: float | None = None
    """Share of the groups that stay whole where widths differ per layer; None: those before the knee, if that is better."""

    def widths(self, curves: Curves, *, per_layer: bool | None = None, fixed: Widths | None = None) -> Widths:
        """Raises Unreachable."""
        return allocate(
            self.groups,
            curves,
            self.ratio,
            per_layer=self.per_layer if per_layer is None else per_layer,
            multiples=self.multiples,
            minimum=self.minimum,
            fixed=fixed,
        )


@dataclass(frozen=True)
class Split:
    """The widths that were chosen, and the held-out loss of all that was tried, by description."""

    widths: Widths
    name: str
    tried: Mapping[str, float]
    rivals: Mapping[str, Widths] = field(default_factory=dict)
    """Other splits whose loss is so close that a better measurement may prefer them."""


def equal_shares(chosen: Mapping[str, GroupLike]) -> Curves:
    """Damage that rises with the square of the share and with the group's weights: equal shares are the cheapest."""
    return {
        name: [group.parameters * group.size * (count / units(group)) ** 2 for count in range(units(group) + 1)]
        for name, group in chosen.items()
    }


def standardised(chosen: Mapping[str, GroupLike], scores: Mapping[str, Tensor]) -> Curves:
    """The damage of removing structures by rising score: how far each lies above the least, for each weight it owns.

    Scores are compared between groups by their distance from the mean of the group in its standard deviations (FLAP, An et
    al. 2024), so one threshold on that is what the budget finds. Structures that go together, one of each block, share theirs.
    """
    placed = {}
    for name, group in chosen.items():
        score = scores[name].double()
        spread = (score - score.mean()) / score.std(correction=0).clamp_min(1e-30)
        placed[name] = spread.reshape(group.blocks, -1).sort(1).values.mean(0)
    least = min(float(each.min()) for each in placed.values())
    return {
        name: [0.0, *((each - least) * chosen[name].parameters * chosen[name].blocks).cumsum(0).tolist()]
        for name, each in placed.items()
    }


def uniform(budget: Budget, chosen: Mapping[str, GroupLike], knowledge: Knowledge, measure: Measure) -> Split:
    """The uniform split of least held-out loss among about ``TRIALS``.

    Raises:
        Unreachable: no uniform widths reach the ratio.
    """
    grid = _Grid(budget, equal_shares(chosen), measure)
    if not grid.pinned:
        return Split(grid.start, "equal shares", {})
    if prod(map(len, grid.widths)) <= TRIALS:
        here = min(product(*(range(len(w)) for w in grid.widths)), key=grid.loss)
    else:
        starts = (grid.start, budget.widths(_curves(knowledge, chosen), per_layer=False))
        here = _descent(grid, min(map(grid.at, starts), key=grid.loss))
    landed = {grid.name(at): found for at, found in grid.tried.items() if found}
    losses = {name: loss for name, (loss, _) in landed.items()}
    return _best({name: widths for name, (_, widths) in landed.items()}, losses, grid.name(here))


Point = tuple[int, ...]


class _Grid:
    """All uniform splits: a point gives each pinned family one of its widths, and the family that fills takes the rest."""

    def __init__(self, budget: Budget, shares: Curves, measure: Measure) -> None:
        self.budget, self.shares, self.measure = budget, shares, measure
        self.start = budget.widths(shares, per_layer=False)
        every = families(budget.groups, shares, multiples=budget.multiples, minimum=budget.minimum)
        movable = [family for family in every if len(family.widths) > 1]
        fill = max((f for f in movable if f.kind != "hidden"), key=lambda f: len(f.widths), default=None)
        kinds = ("hidden", "head", "query") if fill else ()
        self.pinned = [f for f in movable if f is not fill and f.kind in kinds]
        self.widths: list[list[int]] = [family.widths.tolist() for family in self.pinned]
        self.first = self.at(self.start)
        self.tried: dict[Point, tuple[float, Widths] | None] = {}

    def at(self, widths: Widths) -> Point:
        """Where these uniform widths lie."""
        return tuple(w.index(widths[f.names[0]]) for f, w in self._pairs())

    def loss(self, at: Point) -> float:
        """Held-out loss of a point, measured once; infinite where no widths of the rest land on the ratio."""
        if at not in self.tried:
            given = {n: w[level] for (f, w), level in zip(self._pairs(), at, strict=True) for n in f.names}
            try:
                landed = (
                    self.start if at == self.first else self.budget.widths(self.shares, per_layer=False, fixed=given)
                )
                self.tried[at] = self.measure(landed), landed
            except Unreachable:
                self.tried[at] = None
        found = self.tried[at]
        return found[0] if found else inf

    def name(self, at: Point) -> str:
        return ", ".join(f"{f.kind} {w[level]}" for (f, w), level in zip(self._pairs(), at, strict=True))

    def around(self, at: Point, steps: Sequence[int]) -> list[Point]:
        """The points one step away along one family."""
        moved = [
            (*at[:place], at[place] + by * step, *at[place + 1 :]) for place, step in enumerate(steps) for by in (-1, 1)
        ]
        return [p for p in moved if all(0 <= level < len(w) for level, w in zip(p, self.widths, strict=True))]

    def _pairs(self) -> list[tuple[Family, list[int]]]:
        return list(zip(self.pinned, self.widths, strict=True))


def _descent(grid: _Grid, here: Point) -> Point:
    """To the best neighbour, in steps that are halved where no neighbour is better."""
    steps = [max(1, round(len(widths) * grid.budget.ratio / 2)) for widths in grid.widths]
    while sum(found is not None for found in grid.tried.values()) < TRIALS:
        best = min([here, *grid.around(here, steps)], key=grid.loss)
        if best != here:
            here = best
        elif all(step == 1 for step in steps):
            break
        else:
            steps = [max(1, step // 2) for step in steps]
    return here


def per_layer(
    budget: Budget,
    chosen: Mapping[str, GroupLike],
    knowledge: Knowledge,
    scores: Mapping[str, Tensor],
    control: Split,
    measure: Measure,
) -> Split:
    """The per-layer split of least held-out loss: from the knowledge curves or the scores, or the uniform ``control``.

    Raises:
        Unreachable: without the groups that stay whole the ratio is out of reach.
    """
    names = crucial(knowledge, chosen, budget.unprunable)
    found: dict[str, Widths] = {}

    def split(name: str, damage: Curves, *, whole: bool) -> None:
        rest = {group: curve for group, curve in damage.items() if not whole or group not in names}
        widths = {group: units(chosen[group]) for group in names if whole} | budget.widths(rest, per_layer=True)
        if widths not in found.values():
            found[name] = widths

    forced = budget.unprunable is not None and bool(names)
    if not forced:
        found[f"uniform, {control.name}"] = control.widths
    curves = _curves(knowledge, chosen)
    split("knowledge", curves, whole=forced)
    split("knowledge + equal shares", _sum(curves, equal_shares(chosen)), whole=forced)
    split("standardised scores", standardised(chosen, scores), whole=forced)
    if budget.unprunable is None:
        with suppress(Unreachable):
            split("knowledge, crucial groups whole", curves, whole=True)
    known = {f"uniform, {name}": loss for name, loss in control.tried.items()}
    tried = {name: known[name] if name in known else measure(widths) for name, widths in found.items()}
    best = _best(found, tried, min(tried, key=lambda name: tried[name]))
    return replace(best, tried={**control.tried, **tried})


def run_off(split: Split, measure: Measure) -> Split:
    """The split, or the rival of it that is better by a more exact measure."""
    found = {split.name: split.widths, **split.rivals}
    if len(found) == 1:
        return split
    losses = {name: measure(widths) for name, widths in found.items()}
    best = min(losses, key=lambda name: losses[name])
    return Split(found[best], best, {**split.tried, **{f"{name}, all windows": loss for name, loss in losses.items()}})


def _best(found: Mapping[str, Widths], losses: Mapping[str, float], best: str) -> Split:
    """The split called ``best``, with those that are nearly as good."""
    near = sorted((loss, name) for name, loss in losses.items() if name != best and loss < losses[best] + MARGIN)
    return Split(found[best], best, losses, {name: found[name] for _, name in near[:RIVALS]})


def _curves(knowledge: Knowledge, chosen: Mapping[str, GroupLike]) -> Curves:
    return {name: knowledge.curve(group) for name, group in chosen.items()}


def _sum(one: Curves, other: Curves) -> Curves:
    """Two currencies added, each relative to its median whole group."""
    scales = [median(curve[-1] for curve in curves.values()) or 1.0 for curves in (one, other)]
    return {name: [a / scales[0] + b / scales[1] for a, b in zip(one[name], other[name], strict=True)] for name in one}
