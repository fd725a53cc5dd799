"""One budget over all groups: how many structures each may keep, so that the damage is least and the size lands.

Every group brings a damage curve, and groups that must keep equal widths form a *family* (``per_layer``: each group is its own).
Families that share a parameter (KV heads and the queries inside them) form an *item*, whose cost is multilinear in the widths
and so known from its corners. Hidden channels scale every cost, so their widths are tried on an outer grid.

Few items are enumerated exactly with one of them filled to land; many go through a knapsack over quantised costs (multiple
choice, exact on its grid) and are then repaired step by step with the true costs. Everything is deterministic: ties go to the
smaller removal in the order of names.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Family", "GroupLike", "GroupsLike", "Unreachable", "allocate", "families"]

GRID = 4096  # points that are enumerated exactly
LEVELS = 48  # widths per item in the knapsack
QUANTA = 4000  # units of cost in the knapsack

Floats = NDArray[np.float64]


class GroupLike(Protocol):
    """What allocation asks of a group."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def slots(self) -> tuple[tuple[str, int], ...]: ...
    def slices(self, index: int, /) -> Sequence[tuple[str, int, Sequence[int]]]: ...


class GroupsLike(Protocol):
    """A mapping of groups that can count the model's parameters at given widths."""

    def __getitem__(self, name: str, /) -> GroupLike: ...
    def __iter__(self) -> Iterator[str]: ...
    def count(self, widths: Mapping[str, int], /) -> int: ...


class Unreachable(ValueError):
    """The ratio cannot be reached: ``.largest`` is the largest that can, ``.limit`` says what holds it back."""

    def __init__(self, ratio: float, largest: float, limit: str) -> None:
        super().__init__(f"cannot remove {ratio:.2%}: {largest:.2%} at most, since {limit}")
        self.ratio, self.largest, self.limit = ratio, largest, limit


def allocate(
    groups: GroupsLike,
    curves: Mapping[str, Sequence[float]],
    ratio: float,
    *,
    per_layer: bool = False,
    multiples: Mapping[str, int] | None = None,
    minimum: Mapping[str, int] | None = None,
    fixed: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Widths to keep per group in ``curves`` (for ``"query"`` per surviving KV head), as ``groups.count`` takes them.

    ``curves[name][r]`` is the damage of removing r units (of each block), any additive unit, r from 0 up to at most the size.
    ``ratio`` is the share of all parameters to remove; the result removes at least that, and less than one step more, a step
    being one structure (of each block) times the family's layers, or as many as keep the width a multiple of what ``multiples`` has for its
    kind: a width that shrinks is one, below the least. ``minimum``
    is the least width per kind, 1 by default. ``fixed`` gives some groups, by whole families, their widths: only the rest is
    shared out. Raises ``Unreachable``, and ``ValueError`` for a ratio outside [0, 1) or if all is fixed.
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must lie in [0, 1), not {ratio}")
    fixed = dict(fixed or {})
    every = families(groups, curves, per_layer=per_layer, multiples=multiples, minimum=minimum)
    free = [family for family in every if family.names[0] not in fixed]
    given = [family for family in every if family.names[0] in fixed]
    if not free:
        raise ValueError("all widths are fixed: nothing is left to share out")
    total = groups.count({})
    target = float(np.ceil(ratio * total - 1e-6))
    floor = fixed | {name: int(family.widths[-1]) for family in free for name in family.names}
    largest = (total - groups.count(floor)) / total
    if total - groups.count(floor) < target:
        raise Unreachable(ratio, largest, _limits(every))
    outer = [family for family in free if family.kind == "hidden"]
    inner = [family for family in free if family.kind != "hidden"]
    if not inner:
        return fixed | _only_hidden(groups, outer, fixed, total, target)
    best: tuple[bool, float, dict[str, int]] | None = None
    for levels in _grid(outer, 33):
        around = fixed | _widths(outer, levels)
        base = total - groups.count(around)
        if base >= target and any(levels):
            continue  # hidden channels alone overshoot: nothing is left to land with
        items = [_item(groups, part, around) for part in _entangled(groups, inner)]
        if base + sum(item.cost(item.last) for item in items) < target:
            continue
        for chosen in _solve(items, target - base):
            widths = around | {n: w for item, at in zip(items, chosen, strict=True) for n, w in item.widths(at).items()}
            removed = total - groups.count(widths)
            if removed < target:
                continue
            strict = removed - target < min(_cheapest(items, chosen), _cheapest_given(groups, given, widths))
            damage = sum(float(f.damage[i]) for f, i in zip(outer, levels, strict=True))
            damage += sum(item.damage(at) for item, at in zip(items, chosen, strict=True))
            if best is None or (not strict, damage) < best[:2]:
                best = (not strict, damage, widths)
            if strict:
                break
    if best is None or (fixed and best[0]):
        raise Unreachable(ratio, largest, "widths too coarse to land: " + _limits(every))
    return best[2] if not best[0] else _given_back(groups, free, best[2], total - target)


@dataclass(frozen=True)
class Family:
    """Groups that keep equal widths; ``widths`` falls from all to the least allowed, ``damage`` goes with it."""

    names: tuple[str, ...]
    kind: str
    widths: NDArray[np.int64]
    damage: Floats


@dataclass(frozen=True)
class _Item:
    """Families whose costs multiply: ``corners[bits]`` is the removed count with the families of ``bits`` at their least."""

    families: tuple[Family, ...]
    corners: tuple[float, ...]

    @property
    def last(self) -> tuple[int, ...]:
        return tuple(len(family.widths) - 1 for family in self.families)

    def cost(self, at: tuple[int, ...]) -> float:
        if at not in self._costs:  # each is asked for in many choices of the other items
            self._costs[at] = self._cost(at)
        return self._costs[at]

    @cached_property
    def _costs(self) -> dict[tuple[int, ...], float]:
        return {}

    def _cost(self, at: tuple[int, ...]) -> float:
        total = 0.0
        shares = [self._share(family, level) for family, level in zip(self.families, at, strict=True)]
        for bits, corner in enumerate(self.corners):
            factor = corner
            for place, share in enumerate(shares):
                factor *= share if bits >> place & 1 else 1 - share
            total += factor
        return float(round(total))

    def damage(self, at: tuple[int, ...]) -> float:
        """Queries of removed heads are gone with them, so their damage counts for the heads that stay."""
        if at not in self._damages:
            self._damages[at] = self._damage(at)
        return self._damages[at]

    @cached_property
    def _damages(self) -> dict[tuple[int, ...], float]:
        return {}

    def _damage(self, at: tuple[int, ...]) -> float:
        total, stays = 0.0, 1.0
        for family, level in zip(self.families, at, strict=True):
            share = stays if family.kind == "query" else 1.0
            total += float(family.damage[level]) * share
            stays *= float(family.widths[level] / family.widths[0]) if family.kind == "head" else 1.0
        return total

    def widths(self, at: Sequence[int]) -> dict[str, int]:
        return _widths(self.families, at)

    def moved(self, at: tuple[int, ...], by: int) -> Iterator[tuple[int, ...]]:
        """The points one step away, ``by`` = 1 towards removal, -1 back."""
        for place, family in enumerate(self.families):
            if 0 <= at[place] + by < len(family.widths):
                yield (*at[:place], at[place] + by, *at[place + 1 :])

    @staticmethod
    def _share(family: Family, level: int) -> float:
        span = family.widths[0] - family.widths[-1]
        return float((family.widths[0] - family.widths[level]) / span) if span else 0.0


def families(
    groups: GroupsLike,
    curves: Mapping[str, Sequence[float]],
    *,
    per_layer: bool = False,
    multiples: Mapping[str, int] | None = None,
    minimum: Mapping[str, int] | None = None,
) -> list[Family]:
    """The groups in ``curves`` as families, hidden channels first, then heads, queries, and the rest."""
    minimum = minimum or {}
    members: dict[tuple[object, ...], list[str]] = {}
    for name in curves:
        group = groups[name]
        key = (group.kind, group.size, group.blocks, name if per_layer else "")
        members.setdefault(key, []).append(name)
    found: list[Family] = []
    for (kind, *_), names in members.items():
        units = groups[names[0]].size // groups[names[0]].blocks
        step = (multiples or {}).get(str(kind), 1)
        least = max(minimum.get(str(kind), 1), 1, units + 1 - min(len(curves[name]) for name in names))
        below = np.arange((units - 1) // step * step, 0, -step, dtype=np.int64)
        widths = np.concatenate([np.array([units], dtype=np.int64), below[below >= least]])
        damage = np.sum([np.asarray(curves[name], dtype=np.float64)[units - widths] for name in names], axis=0)
        found.append(Family(tuple(names), str(kind), widths, damage))
    rank = {"hidden": 0, "head": 1, "query": 2}
    return sorted(found, key=lambda family: (rank.get(family.kind, 3), family.names))


def _entangled(groups: GroupsLike, families: Sequence[Family]) -> list[tuple[Family, ...]]:
    parts: list[tuple[set[str], list[Family]]] = []
    for family in families:
        own = {parameter for name in family.names for parameter, _ in groups[name].slots}
        met = [part for part in parts if part[0] & own]
        merged = (own.union(*(part[0] for part in met)), [f for part in met for f in part[1]] + [family])
        parts = [part for part in parts if part not in met] + [merged]
    return [tuple(sorted(part, key=families.index)) for _, part in parts]


def _item(groups: GroupsLike, families: tuple[Family, ...], fixed: Mapping[str, int]) -> _Item:
    full = groups.count(fixed)
    corners: list[float] = []
    for bits in range(1 << len(families)):
        at = [len(family.widths) - 1 if bits >> place & 1 else 0 for place, family in enumerate(families)]
        corners.append(float(full - groups.count({**fixed, **_widths(families, at)})))
    return _Item(families, tuple(corners))


def _solve(items: Sequence[_Item], target: float) -> Iterator[list[tuple[int, ...]]]:
    """Choices that reach ``target``, the best first where enumeration is possible."""
    lengths = sorted(len(family.widths) for item in items for family in item.families)
    if math.prod(lengths[:-1]) <= GRID:
        yield from _enumerate(items, target)
    else:
        yield _repair(items, _knapsack(items, target), target)


def _enumerate(items: Sequence[_Item], target: float) -> Iterator[list[tuple[int, ...]]]:
    """Every choice of all families but the longest, which is then filled up to the target; by rising damage."""
    fill = max(range(len(items)), key=lambda i: max(len(f.widths) for f in items[i].families))
    place = int(np.argmax([len(f.widths) for f in items[fill].families]))
    ranges = [
        [range(1) if (i, j) == (fill, place) else range(len(f.widths)) for j, f in enumerate(item.families)]
        for i, item in enumerate(items)
    ]
    found: list[tuple[float, list[tuple[int, ...]]]] = []
    for choice in product(*(list(product(*part)) for part in ranges)):
        chosen = list(choice)
        rest = target - sum(item.cost(at) for i, (item, at) in enumerate(zip(items, chosen, strict=True)) if i != fill)
        level = _least(items[fill], chosen[fill], place, rest)
        if level is not None:
            chosen[fill] = (*chosen[fill][:place], level, *chosen[fill][place + 1 :])
            found.append((sum(item.damage(at) for item, at in zip(items, chosen, strict=True)), chosen))
    for _, chosen in sorted(found):
        yield chosen


def _least(item: _Item, at: tuple[int, ...], place: int, wanted: float) -> int | None:
    """The least level of one family at which the item's cost is ``wanted`` or more, by bisection (costs rise with it)."""
    low, high = 0, len(item.families[place].widths) - 1

    def cost(level: int) -> float:
        return item.cost((*at[:place], level, *at[place + 1 :]))

    if cost(high) < wanted:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) >= wanted else (middle + 1, high)
    return low


def _knapsack(items: Sequence[_Item], target: float) -> list[tuple[int, ...]]:
    """Least damage with costs rounded down to quanta, so that the true removal is the target or more if it can be."""
    if target <= 0:
        return [(0,) * len(item.families) for item in items]
    quantum = target / QUANTA
    best = np.full(QUANTA + 1, np.inf)
    best[0] = 0.0
    taken: list[tuple[list[tuple[int, ...]], NDArray[np.int64], NDArray[np.int64]]] = []
    for item in items:
        options = list(_grid(item.families, LEVELS))
        fresh = np.full(QUANTA + 1, np.inf)
        choice = np.zeros(QUANTA + 1, dtype=np.int64)
        origin = np.zeros(QUANTA + 1, dtype=np.int64)
        for number, at in enumerate(options):
            units = min(int(item.cost(at) / quantum + 1e-9), QUANTA)
            shifted = np.full(QUANTA + 1, np.inf)
            shifted[units:] = best[: QUANTA + 1 - units]
            source = np.arange(QUANTA + 1) - units
            if units:  # all that passes the target counts as reaching it
                tail = best[QUANTA - units :]
                shifted[QUANTA] = tail.min()
                source[QUANTA] = QUANTA - units + int(tail.argmin())
            value = shifted + item.damage(at)
            better = value < fresh
            fresh[better], choice[better], origin[better] = value[better], number, source[better]
        best = fresh
        taken.append((options, choice, origin))
    unit = QUANTA if np.isfinite(best[QUANTA]) else int(np.flatnonzero(np.isfinite(best))[-1])
    chosen: list[tuple[int, ...]] = []
    for options, choice, origin in reversed(taken):
        chosen.append(options[int(choice[unit])])
        unit = int(origin[unit])
    return chosen[::-1]


def _repair(items: Sequence[_Item], chosen: list[tuple[int, ...]], target: float) -> list[tuple[int, ...]]:
    """Single steps, the best damage per parameter first: on while short of the target, then back while one fits."""
    chosen = list(chosen)
    removed = sum(item.cost(at) for item, at in zip(items, chosen, strict=True))
    for by in (1, -1):
        moves = {i: _moves(items[i], chosen[i], by) for i in range(len(items))}
        while removed < target if by == 1 else True:
            fitting = [
                (slope, i, at, cost)
                for i, options in moves.items()
                for slope, at, cost in options
                if by == 1 or removed + cost >= target
            ]
            if not fitting:
                break
            _, i, at, cost = min(fitting)
            chosen[i], cost = _stride(items[i], chosen[i], at, cost, target - removed)
            removed += cost
            moves[i] = _moves(items[i], chosen[i], by)
    return chosen


def _stride(
    item: _Item, at: tuple[int, ...], other: tuple[int, ...], cost: float, gap: float
) -> tuple[tuple[int, ...], float]:
    """The step from ``at`` to ``other``, longer while the ``gap`` is many steps wide: at most a sixteenth of it."""
    times = max(1, int(gap / cost / 16))
    longer = tuple(
        min(max(a + (b - a) * times, 0), len(family.widths) - 1)
        for a, b, family in zip(at, other, item.families, strict=True)
    )
    return longer, item.cost(longer) - item.cost(at)


def _moves(item: _Item, at: tuple[int, ...], by: int) -> list[tuple[float, tuple[int, ...], float]]:
    found: list[tuple[float, tuple[int, ...], float]] = []
    for other in item.moved(at, by):
        cost = item.cost(other) - item.cost(at)
        found.append(((item.damage(other) - item.damage(at)) / max(abs(cost), 1.0), other, cost))
    return found


def _cheapest(items: Sequence[_Item], chosen: Sequence[tuple[int, ...]]) -> float:
    """The cost of the cheapest step at these widths, either way."""
    costs = [
        abs(item.cost(other) - item.cost(at))
        for item, at in zip(items, chosen, strict=True)
        for by in (1, -1)
        for other in item.moved(at, by)
    ]
    return min(costs, default=np.inf)


def _cheapest_given(groups: GroupsLike, given: Sequence[Family], widths: Mapping[str, int]) -> float:
    """The same for families whose widths were given."""
    here = groups.count(widths)
    costs = [abs(groups.count({**widths, **moved}) - here) for family in given for moved in _neighbours(family, widths)]
    return min(costs, default=np.inf)


def _neighbours(family: Family, widths: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The family one step wider, and one step narrower."""
    level = family.widths.tolist().index(widths[family.names[0]])
    for other in (level - 1, level + 1):
        if 0 <= other < len(family.widths):
            yield dict.fromkeys(family.names, int(family.widths[other]))


def _given_back(groups: GroupsLike, free: Sequence[Family], widths: dict[str, int], most: float) -> dict[str, int]:
    """Steps back, the largest first, while no more than ``most`` parameters stay: coarse widths may overshoot."""
    while True:
        wider = [
            {**widths, **moved}
            for family in free
            for moved in _neighbours(family, widths)
            if moved[family.names[0]] > widths[family.names[0]]
        ]
        fitting = [(groups.count(w), number) for number, w in enumerate(wider) if groups.count(w) <= most]
        if not fitting:
            return widths
        widths = wider[max(fitting)[1]]


def _only_hidden(
    groups: GroupsLike, outer: Sequence[Family], fixed: Mapping[str, int], total: int, target: float
) -> dict[str, int]:
    """Hidden channels alone: all such families shrink in step, as little as reaches the target."""
    low, high = 0, max(len(family.widths) for family in outer) - 1

    def widths(level: int) -> dict[str, int]:
        return {**fixed, **_widths(outer, [min(level, len(family.widths) - 1) for family in outer])}

    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if total - groups.count(widths(middle)) >= target else (middle + 1, high)
    return widths(low)


def _grid(families: Sequence[Family], most: int) -> Iterator[tuple[int, ...]]:
    """Levels of all families together, thinned evenly to about ``most`` points where there are more."""
    lengths = [len(family.widths) for family in families]
    while np.prod(lengths, dtype=np.float64) > most and max(lengths) > 2:
        lengths[lengths.index(max(lengths))] = max(2, max(lengths) * 3 // 4)
    axes = [
        sorted({int(v) for v in np.linspace(0, len(family.widths) - 1, length).round()})
        for family, length in zip(families, lengths, strict=True)
    ]
    yield from product(*axes)


def _widths(families: Sequence[Family], at: Sequence[int]) -> dict[str, int]:
    return {
        name: int(family.widths[level]) for family, level in zip(families, at, strict=True) for name in family.names
    }


def _limits(families: Sequence[Family]) -> str:
    many: Counter[tuple[str, int, int]] = Counter()
    for family in families:
        many[family.kind, int(family.widths[-1]), int(family.widths[0])] += len(family.names)
    return ", ".join(f"{groups} {kind} group(s) keep {last} of {full}" for (kind, last, full), groups in many.items())
