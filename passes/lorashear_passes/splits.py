"""How one budget is split between kinds and layers: candidates are pruned for real, and held-out loss chooses.

*Uniform*: all layers have the same widths, so a split is a few numbers: heads, queries in each, hidden channels; the
widest family (MLP channels) fills what is left of the budget. A descent over those numbers starts at equal shares and
halves its steps.

*Per layer*: the knowledge curves, each group pruned alone, go through one knapsack over all groups. Damages do not simply
add up, so a second candidate adds the damage of unequal shares to them, and the best uniform split is the third: letting
widths differ never loses to it on the held-out text.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

from .allocate import GroupLike, GroupsLike, Unreachable, allocate, families
from .knowledge import Curves
from .surgery import units

__all__ = ["Budget", "Split", "equal_shares", "per_layer", "uniform"]

TRIALS = 12  # uniform splits that are pruned and measured

Widths = dict[str, int]
Measure = Callable[[Widths], float]
"""Held-out loss of the model pruned to these widths."""


@dataclass(frozen=True)
class Budget:
    """What may stay: ``ratio`` of the parameters of ``groups`` goes."""

    groups: GroupsLike
    ratio: float
    per_layer: bool = False
    round_to: int = 1
    minimum: Mapping[str, int] | None = None

    def widths(self, curves: Curves, *, per_layer: bool | None = None, fixed: Widths | None = None) -> Widths:
        """Raises Unreachable."""
        return allocate(
            self.groups,
            curves,
            self.ratio,
            per_layer=self.per_layer if per_layer is None else per_layer,
            round_to=self.round_to,
            minimum=self.minimum,
            fixed=fixed,
        )


@dataclass(frozen=True)
class Split:
    """The widths that were chosen, and the held-out loss of all that was tried, by description."""

    widths: Widths
    name: str
    tried: Mapping[str, float]


def equal_shares(chosen: Mapping[str, GroupLike]) -> Curves:
    """Damage that rises with the square of the share and with the group's weights: equal shares are the cheapest."""
    return {
        name: [group.parameters * group.size * (count / units(group)) ** 2 for count in range(units(group) + 1)]
        for name, group in chosen.items()
    }


def uniform(budget: Budget, chosen: Mapping[str, GroupLike], measure: Measure) -> Split:
    """The uniform split of least held-out loss among at most ``TRIALS``.

    Raises:
        Unreachable: no uniform widths reach the ratio.
    """
    shares = equal_shares(chosen)
    start = budget.widths(shares, per_layer=False)
    every = families(budget.groups, shares, round_to=budget.round_to, minimum=budget.minimum)
    open_ones = [family for family in every if len(family.widths) > 1]
    fill = max((f for f in open_ones if f.kind != "hidden"), key=lambda f: len(f.widths), default=None)
    pinned = [f for f in open_ones if f is not fill and f.kind in ("hidden", "head", "query")]
    if not pinned or fill is None:
        return Split(start, "equal shares", {})
    ranges = [family.widths.tolist() for family in pinned]
    tried: dict[tuple[int, ...], tuple[float, Widths] | None] = {}

    def loss(at: tuple[int, ...]) -> float:
        if at not in tried:
            try:
                given = {n: r[level] for f, r, level in zip(pinned, ranges, at, strict=True) for n in f.names}
                widths = start if at == first else budget.widths(shares, per_layer=False, fixed=given)
                tried[at] = measure(widths), widths
            except Unreachable:
                tried[at] = None
        return tried[at][0] if tried[at] else float("inf")  # type: ignore[index]

    first = here = tuple(r.index(start[f.names[0]]) for f, r in zip(pinned, ranges, strict=True))
    steps = [max(1, round(len(r) * budget.ratio / 2)) for r in ranges]
    while sum(found is not None for found in tried.values()) < TRIALS:
        around = [
            (*here[:place], here[place] + by * step, *here[place + 1 :])
            for place, step in enumerate(steps)
            for by in (-1, 1)
            if 0 <= here[place] + by * step < len(ranges[place])
        ]
        best = min([here, *around], key=loss)
        if best != here:
            here = best
        elif all(step == 1 for step in steps):
            break
        else:
            steps = [max(1, step // 2) for step in steps]

    def name(at: tuple[int, ...]) -> str:
        return ", ".join(f"{f.kind} {r[level]}" for f, r, level in zip(pinned, ranges, at, strict=True))

    found = tried[here]
    assert found is not None
    return Split(found[1], name(here), {name(at): entry[0] for at, entry in tried.items() if entry})


def per_layer(
    budget: Budget, chosen: Mapping[str, GroupLike], curves: Curves, control: Split, measure: Measure
) -> Split:
    """The per-layer split of least held-out loss: from the knowledge curves, or the uniform ``control``."""
    found = {f"uniform, {control.name}": control.widths}
    both = _sum(curves, equal_shares(chosen))
    for name, damage in {"knowledge": curves, "knowledge + equal shares": both}.items():
        widths = budget.widths(damage, per_layer=True)
        if widths not in found.values():
            found[name] = widths
    tried = {name: measure(widths) for name, widths in found.items()}
    best = min(tried, key=lambda name: tried[name])
    return Split(found[best], best, {**control.tried, **tried})


def _sum(one: Curves, other: Curves) -> Curves:
    """Two currencies added, each relative to its median whole group."""
    scales = [median(curve[-1] for curve in curves.values()) or 1.0 for curves in (one, other)]
    return {name: [a / scales[0] + b / scales[1] for a, b in zip(one[name], other[name], strict=True)] for name in one}
