"""Pruning in one shot, without training: score on the dense model, share out the budget, then prune and refit.

1. *score*: a walk over the dense blocks gives every consumer's covariance, hence an order and an output-error curve per group,
   and the held-out loss with each group alone pruned at a few levels (the design's knowledge curves);
2. *share*: one budget over all curves (``allocate``). No single damage measure was best on every model that was tried
   (``tools/study_criteria.py``), so several splits are tried and held-out loss chooses (the guard);
3. *prune*: a second walk, on the outputs of what is already pruned, orders anew, removes and refits (``compensate``).

Weights are swapped while this runs and are back when ``compress`` returns.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import saliency
from .allocate import GroupLike, GroupsLike, allocate
from .compensate import Stage, Walk, chained, compensate, consumers, swapped

__all__ = ["Outcome", "Settings", "compress", "heldout_loss"]

Batch = Mapping[str, Any]
Progress = Callable[[str, int, int], None]
Curves = dict[str, list[float]]

CRITERIA = ("obs", "wanda", "magnitude", "random")
LEVELS = 10  # held-out losses per group
PINS = 8  # splits tried with given head and query counts
WEIGHTS = {
    "attention x4": {"head": 4.0, "query": 4.0},
    "attention x1/4": {"head": 0.25, "query": 0.25},
}
TRIAL = 3  # splits are tried on this part of the calibration batches, a third
STRIDES = 1024  # greedy rounds per group: wider ones lose several channels a round


@dataclass(frozen=True)
class Settings:
    """How to prune; the defaults are what ``tools/study_criteria.py`` measured best."""

    criterion: str = "obs"
    """One of obs, wanda, magnitude, random: which structures of a group go first."""
    compensate: bool = True
    """Refit the consumers by least squares."""
    target: str = "own"
    """What the refit aims at: "own", the pruned stream's own output, or "dense", the dense model's (twice the work)."""
    damp: float = saliency.DAMP
    """λ of every inverse, as a share of the mean diagonal."""
    damage: str = "guard"
    """Currency between groups: loss, output, share, or guard: try several and keep the best on held-out windows."""
    seed: int = 0
    """Of the random criterion."""


@dataclass(frozen=True)
class Outcome:
    """What ``compress`` found."""

    removed: dict[str, list[int]]
    """Structures to remove per group, rising; only groups that lose some. Queries of removed heads are not listed."""
    weights: dict[str, Tensor] = field(repr=False)
    """Refitted weights by parameter name, in full shape, removed columns zero; empty without compensation."""
    widths: dict[str, int]
    """Units kept per group, queries per KV head."""
    damage: Curves = field(repr=False)
    """Per group the damage of removing 0, 1, … units in the currency of ``currency``."""
    currency: str
    """The split that won: its damage measure and how attention was weighed."""
    tried: dict[str, float]
    """Held-out loss in nats per token of every split that was tried (empty where one split was all)."""
    seconds: dict[str, float]
    """Wall time per stage."""


def compress(
    model: nn.Module,
    groups: GroupsLike,
    batches: Sequence[Batch] | None,
    *,
    ratio: float,
    names: Iterable[str] | None = None,
    per_layer: bool = False,
    round_to: int = 1,
    minimum: Mapping[str, int] | None = None,
    heldout: Sequence[Batch] | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Choose what to remove from ``model`` so that ``ratio`` of all parameters goes, and refit what stays.

    ``batches`` are keyword arguments of the model's forward (``input_ids`` ``[batch, length]``, ``attention_mask`` if padded,
    ``use_cache=False``), on its device. ``heldout`` measures splits and knowledge curves; without it the last eighth of the
    batches is kept apart for that. ``batches=None``: order by magnitude, equal shares, no refit. ``names`` are the groups to
    prune, by default all that are prunable in ``groups``. ``progress(stage, done, total)`` is called on the way.

    The same input gives the same outcome. Raises ``Unreachable`` (see ``allocate``) and ``ValueError`` for an unknown setting.
    """
    settings = settings or Settings()
    if settings.criterion not in CRITERIA:
        raise ValueError(f"criterion {settings.criterion!r} is none of {', '.join(CRITERIA)}")
    chosen = {name: groups[name] for name in (_prunable(groups) if names is None else names)}
    budget = Budget(groups, ratio, per_layer, round_to, minimum or {})
    if not batches:
        settings = replace(
            settings, compensate=False, criterion="random" if settings.criterion == "random" else "magnitude"
        )
    shares = {name: share_curve(group) for name, group in chosen.items()}
    budget.widths(shares)  # refuses early what cannot be reached
    run = Run(model, chosen, settings, progress or (lambda *_: None))
    if not batches:
        return run.blind(budget, shares)
    if heldout is None and len(batches) > 1:
        cut = len(batches) - max(1, len(batches) // 8)
        batches, heldout = batches[:cut], batches[cut:]
    return run.measured(budget, shares, batches, heldout or batches)


def heldout_loss(model: nn.Module, batches: Sequence[Batch]) -> float:
    """Mean next-token cross-entropy in nats over the tokens that count; the model gives logits ``[batch, length, vocabulary]``."""
    total, tokens = 0.0, 0
    for batch in batches:
        with torch.no_grad():
            output = model(**batch)
        logits = output if isinstance(output, Tensor) else output.logits if hasattr(output, "logits") else output[0]
        wanted: Tensor = batch["input_ids"][:, 1:].clone()
        mask = batch.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            wanted = wanted.masked_fill(~mask[:, 1:].bool(), -100)
        for row, target in zip(logits[:, :-1], wanted, strict=True):
            total += float(nn.functional.cross_entropy(row.float(), target, reduction="sum", ignore_index=-100))
        tokens += int((wanted != -100).sum())
    return total / max(tokens, 1)


@dataclass(frozen=True)
class Budget:
    groups: GroupsLike
    ratio: float
    per_layer: bool
    round_to: int
    minimum: Mapping[str, int]

    def widths(self, curves: Curves) -> dict[str, int]:
        options = {"per_layer": self.per_layer, "round_to": self.round_to, "minimum": self.minimum}
        return allocate(self.groups, curves, self.ratio, **options)


@dataclass(frozen=True)
class Job:
    """One consumer: the groups it contracts over (heads before queries) and the columns of their structures."""

    groups: tuple[GroupLike, ...]
    columns: tuple[Tensor, ...]


class Run:
    """One call of ``compress``: the model, what may go, and the weights as they were."""

    def __init__(
        self, model: nn.Module, chosen: Mapping[str, GroupLike], settings: Settings, progress: Progress
    ) -> None:
        self.model, self.chosen, self.settings, self.progress = model, chosen, settings, progress
        self.seconds: dict[str, float] = {}
        inner = {name: consumers(model, group.slots) for name, group in chosen.items() if group.kind != "hidden"}
        self.jobs = _jobs(chosen, inner)
        self.front = [group for name, group in chosen.items() if not inner.get(name)]
        """Removed before the walk by zeroing all that they own: hidden channels, and groups without a linear consumer."""
        self.readers = {g.name: consumers(model, g.slots) for g in self.front if g.kind == "hidden"}
        self.static: dict[str, Tensor] = {}
        if settings.criterion in ("magnitude", "random"):
            generator = torch.Generator().manual_seed(settings.seed)
            for name, group in chosen.items():
                plain = settings.criterion == "magnitude"
                self.static[name] = _magnitude(model, group) if plain else saliency.random_scores(group.size, generator)

    def blind(self, budget: Budget, shares: Curves) -> Outcome:
        """No text: static scores, equal shares."""
        started = time.perf_counter()
        widths = budget.widths(shares)
        removed: dict[str, list[int]] = {}
        for job in self.jobs.values():
            self._gone(job, None, None, widths, removed)
        for group in self.front:
            self._front_removed(group, widths, removed)
        return Outcome(removed, {}, widths, shares, "share", {}, {"allocate": time.perf_counter() - started})

    def measured(self, budget: Budget, shares: Curves, batches: Sequence[Batch], heldout: Sequence[Batch]) -> Outcome:
        with self._timed("capture"):
            names = list(self.jobs)
            if self.settings.compensate or not names:
                names += chained(self.model, names, [name for found in self.readers.values() for name in found])
            walk, guard = Walk(self.model, names, batches), Walk(self.model, names, heldout)
        with self._timed("score"):
            self._front_scores(batches)
            output, losses = self.curves(walk, guard)
        splits = self.splits(budget, {"loss": losses, "output": output, "share": shares})
        tried: dict[str, float] = {}
        with self._timed("guard"):
            if len(splits) > 1:
                trial = Walk(self.model, names, batches[: -(-len(batches) // TRIAL)])
                for number, (name, (widths, _)) in enumerate(splits.items()):
                    with self.pruned(trial, widths, ""):
                        tried[name] = heldout_loss(self.model, heldout)
                    self.progress("guard", number + 1, len(splits))
        best = min(splits, key=lambda name: (tried.get(name, 0.0), list(splits).index(name)))
        widths, curves = splits[best]
        with self._timed("prune"), self.pruned(walk, widths, "prune") as (removed, weights):
            return Outcome(removed, weights, widths, curves, best, tried, self.seconds)

    def splits(self, budget: Budget, sets: Mapping[str, Curves]) -> dict[str, tuple[dict[str, int], Curves]]:
        """Different splits of the budget by name, the first that gave a split names it."""
        kind = self.settings.damage
        if kind != "guard":
            return {kind: (budget.widths(sets[kind]), sets[kind])}
        options = {**sets, "loss+share": _blend(sets["loss"], sets["share"])}
        if budget.per_layer:
            options |= {
                f"{name}, {label}": self._weighed(c, w) for name, c in options.items() for label, w in WEIGHTS.items()
            }
        options |= self._pins(budget, sets["share"], sets["loss"])
        found: dict[str, tuple[dict[str, int], Curves]] = {}
        for name, curves in options.items():
            widths = budget.widths(curves)
            if all(widths != other for other, _ in found.values()):
                found[name] = (widths, curves)
        return found

    def _weighed(self, curves: Curves, weights: Mapping[str, float]) -> Curves:
        return {n: [weights.get(self.chosen[n].kind, 1.0) * v for v in curve] for n, curve in curves.items()}

    def _pins(self, budget: Budget, shares: Curves, losses: Curves) -> dict[str, Curves]:
        """Curves that pin how many heads and queries every layer loses, the ones of least expected loss."""
        kinds = {group.kind: _units(group) for group in self.chosen.values() if group.kind in ("head", "query")}
        ranges = [
            sorted({min(round(n * budget.ratio * f), n - 1) for f in (0, 0.5, 1, 1.5, 2)}) for n in kinds.values()
        ]
        if "query" in kinds and kinds["query"] <= 4:
            ranges[list(kinds).index("query")] = list(range(kinds["query"]))
        found: list[tuple[float, str, Curves]] = []
        for counts in product(*ranges):
            pins = dict(zip(kinds, counts, strict=True))
            if not pins:
                continue
            curves = {n: _pinned(c, pins.get(self.chosen[n].kind)) for n, c in shares.items()}
            widths = budget.widths(curves)
            expected = sum(losses[n][_units(self.chosen[n]) - w] for n, w in widths.items())
            found.append((expected, "pinned " + ", ".join(f"{k} -{c}" for k, c in pins.items()), curves))
        return {name: curves for _, name, curves in sorted(found, key=lambda entry: entry[:2])[:PINS]}

    def curves(self, walk: Walk, guard: Walk) -> tuple[Curves, Curves]:
        """Per group the relative output error, and the rise of held-out loss, after each number of units removed alone."""
        wants_loss = self.settings.damage in ("guard", "loss")
        dense = heldout_loss(self.model, guard.batches) if wants_loss else 0.0
        output: Curves = {}
        losses: Curves = {}
        states, held = walk.start, guard.start
        for position, stage in enumerate(walk.stages):
            for name in stage.consumers:
                if name not in self.jobs:
                    continue
                covariance = walk.covariances(stage, states, [name])[name][0]
                weight = self._weight(name)
                energy = max(saliency.output_energy(weight, covariance), 1e-30)
                job = self.jobs[name]
                for group, columns in zip(job.groups, job.columns, strict=True):
                    order = self._order(group, columns, columns, group.blocks, weight, covariance)
                    curve = saliency.damage_curve(
                        weight, covariance, columns, order, damp=self.settings.damp, refit=self.settings.compensate
                    )
                    _add(output, group.name, (curve[:: group.blocks] / energy).tolist())
                    if wants_loss:
                        gone = [columns[order[: count * group.blocks]].flatten() for count in _levels(group)]
                        rises = self._losses(name, weight, covariance, gone, guard, position, held)
                        _add(losses, group.name, _filled(group, [rise - dense for rise in rises]))
            states, held = walk.advance(stage, states), guard.advance(guard.stages[position], held)
            self.progress("score", position + 1, len(walk.stages))
        for group in self.front:
            losses[group.name] = output[group.name] = _filled(
                group, [x - dense for x in self._front_losses(group, guard)]
            )
        return output, losses

    def _losses(
        self,
        name: str,
        weight: Tensor,
        covariance: Tensor,
        gone: Sequence[Tensor],
        guard: Walk,
        position: int,
        held: Sequence[Tensor | None],
    ) -> list[float]:
        found: list[float] = []
        for columns in gone:
            fresh = self._refitted(weight, columns, covariance, None)
            with swapped(self.model, {f"{name}.weight": fresh}), guard.tail(position, held):
                found.append(heldout_loss(self.model, guard.batches))
        return found

    @contextmanager
    def pruned(
        self, walk: Walk, widths: Mapping[str, int], label: str
    ) -> Iterator[tuple[dict[str, list[int]], dict[str, Tensor]]]:
        """The model pruned to ``widths`` for a moment: what was removed, and the refitted weights."""
        removed: dict[str, list[int]] = {}
        weights: dict[str, Tensor] = {}
        zeroed = self._front_zeroed(widths, removed)
        touched = {name: self.model.get_parameter(name).data for name in zeroed}
        touched |= {f"{name}.weight": self._weight(name) for name in self.jobs}
        with swapped(self.model, touched):  # restores them at the end, whatever happens
            for name, value in zeroed.items():
                self.model.get_parameter(name).data = value
            dual = self.settings.compensate and (bool(zeroed) or self.settings.target == "dense")
            states, dense = walk.started(bool(zeroed)), walk.start
            for position, stage in enumerate(walk.stages):
                for name in stage.consumers:
                    self._prune_consumer(
                        walk, stage, name, states, dense if dual else None, touched, widths, removed, weights
                    )
                if dual:
                    with swapped(self.model, touched):
                        dense = walk.advance(stage, dense)
                states = walk.advance(stage, states)
                if label:
                    self.progress(label, position + 1, len(walk.stages))
            yield removed, weights

    def _prune_consumer(
        self,
        walk: Walk,
        stage: Stage,
        name: str,
        states: Sequence[Tensor | None],
        dense: Sequence[Tensor | None] | None,
        touched: Mapping[str, Tensor],
        widths: Mapping[str, int],
        removed: dict[str, list[int]],
        weights: dict[str, Tensor],
    ) -> None:
        job = self.jobs.get(name, Job((), ()))
        hidden = [g for g in self.front if g.name in removed and name in self.readers.get(g.name, ())]
        if dense is None and not hidden and all(widths[g.name] == _units(g) for g in job.groups):
            return
        covariance, cross = walk.covariances(stage, states, [name], dense=dense, originals=touched)[name]
        # Columns as they were, since the dense model's input is what they refit to; rows that went stay zero.
        weight = touched[f"{name}.weight"] * self._weight(name).any(1, keepdim=True)
        gone = self._gone(job, weight, covariance, widths, removed)
        for group in hidden:
            owned = _columns(group, f"{name}.weight", 1)[removed[group.name]].flatten()
            gone = torch.cat([gone, owned]).unique()
        fresh = self._refitted(weight, gone, covariance, cross)
        self.model.get_parameter(f"{name}.weight").data = fresh
        if self.settings.compensate:
            weights[f"{name}.weight"] = fresh

    def _gone(
        self,
        job: Job,
        weight: Tensor | None,
        covariance: Tensor | None,
        widths: Mapping[str, int],
        removed: dict[str, list[int]],
    ) -> Tensor:
        """The columns that go, in the order heads, then queries inside the heads that stay."""
        gone = torch.zeros(0, dtype=torch.long)
        for group, columns in zip(job.groups, job.columns, strict=True):
            if group.name not in removed:
                alive = (~torch.isin(columns, gone).all(1)).nonzero()[:, 0]
                units = _units(group)
                blocks = len(alive) // units if group.blocks > 1 else 1
                lost = (units - widths[group.name]) * blocks
                order = self._order(group, columns[alive], columns, blocks, weight, covariance, alive) if lost else []
                picked = sorted(alive[order[:lost]].tolist())
                if picked:
                    removed[group.name] = picked
            gone = torch.cat([gone, columns[removed.get(group.name, [])].flatten()]).unique()
        return gone

    def _order(
        self,
        group: GroupLike,
        columns: Tensor,
        every: Tensor,
        blocks: int,
        weight: Tensor | None,
        covariance: Tensor | None,
        alive: Tensor | None = None,
    ) -> list[int]:
        """Positions in ``columns``, the first to go first; columns of the group that are gone already are left out."""
        static = self.static.get(group.name)
        if static is not None or weight is None or covariance is None:
            static = self.static[group.name]
            return saliency.in_rounds(static if alive is None else static[alive], blocks)
        if self.settings.criterion == "wanda":
            return saliency.in_rounds(saliency.wanda(weight, covariance, columns), blocks)
        lost = every.flatten()[~torch.isin(every.flatten(), columns.flatten())]
        inside = torch.ones(weight.shape[1], dtype=torch.bool)
        inside[lost] = False
        place = inside.cumsum(0) - 1
        index = inside.nonzero()[:, 0].to(weight.device)
        return saliency.obs_order(
            weight[:, index],
            covariance[index][:, index],
            place[columns],
            blocks=blocks,
            damp=self.settings.damp,
            stride=max(1, len(columns) // STRIDES),
        )

    def _refitted(self, weight: Tensor, gone: Tensor, covariance: Tensor, cross: Tensor | None) -> Tensor:
        kept = torch.ones(weight.shape[1], dtype=torch.bool)
        kept[gone] = False
        if self.settings.compensate:
            return compensate(weight, covariance, kept.nonzero()[:, 0], cross=cross, damp=self.settings.damp)
        return weight * kept.to(weight.device)

    def _weight(self, name: str) -> Tensor:
        return self.model.get_parameter(f"{name}.weight").data

    # Groups that are removed before the walk.

    def _front_scores(self, batches: Sequence[Batch]) -> None:
        """Hidden channels: Wanda's scores over all consumers, each relative to its sum; others: magnitude."""
        for group in self.front:
            if group.name in self.static:
                continue
            names = self.readers.get(group.name, ())
            if not names:
                self.static[group.name] = _magnitude(self.model, group)
                continue
            walk = Walk(self.model, names, batches, whole=True)
            found = walk.covariances(walk.stages[0], walk.start, walk.stages[0].consumers)
            total = torch.zeros(group.size, dtype=torch.float64)
            for name, (covariance, _) in found.items():
                scores = saliency.wanda(self._weight(name), covariance, _columns(group, f"{name}.weight", 1)).cpu()
                total += scores / scores.sum().clamp_min(1e-30)
            self.static[group.name] = total

    def _front_removed(self, group: GroupLike, widths: Mapping[str, int], removed: dict[str, list[int]]) -> None:
        lost = (_units(group) - widths[group.name]) * group.blocks
        if lost:
            removed[group.name] = sorted(saliency.in_rounds(self.static[group.name], group.blocks)[:lost])

    def _front_zeroed(self, widths: Mapping[str, int], removed: dict[str, list[int]]) -> dict[str, Tensor]:
        """New values of all that the groups in front own, zero where they lose."""
        values: dict[str, Tensor] = {}
        for group in self.front:
            self._front_removed(group, widths, removed)
            if group.name in removed:
                for name, dim in group.slots:
                    value = values.setdefault(name, self.model.get_parameter(name).data.clone())
                    value.index_fill_(
                        dim, _columns(group, name, dim)[removed[group.name]].flatten().to(value.device), 0
                    )
        return values

    def _front_losses(self, group: GroupLike, guard: Walk) -> list[float]:
        found: list[float] = []
        for count in _levels(group):
            zeroed = self._front_zeroed({g.name: _units(g) - count * (g is group) for g in self.front}, {})
            with swapped(self.model, zeroed):
                found.append(heldout_loss(self.model, guard.batches))
        return found

    @contextmanager
    def _timed(self, label: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[label] = time.perf_counter() - started


def _prunable(groups: GroupsLike) -> list[str]:
    return [name for name in groups if getattr(groups[name], "prunable", True) and _units(groups[name]) > 1]


def _units(group: GroupLike) -> int:
    return group.size // group.blocks


def share_curve(group: GroupLike) -> list[float]:
    """Rises with the square of the share and with the group's weights, so equal shares of every group are the cheapest."""
    units = _units(group)
    return [group.parameters * group.size * (count / units) ** 2 for count in range(units + 1)]


def _levels(group: GroupLike) -> list[int]:
    """Numbers of units at which a curve is measured, at most ten, never none."""
    units = _units(group)
    return sorted({int(x) for x in np.linspace(0, units, min(units, LEVELS) + 1).round()} - {0})


def _filled(group: GroupLike, values: Sequence[float]) -> list[float]:
    """A rising curve through the measured levels, linear in between."""
    rising = np.maximum.accumulate(np.maximum([0.0, *values], 0.0))
    return np.interp(np.arange(_units(group) + 1), [0, *_levels(group)], rising).tolist()


def _blend(one: Curves, other: Curves) -> Curves:
    """The sum of two currencies, each relative to its median full curve."""
    scales = [float(np.median([curve[-1] for curve in curves.values()])) or 1.0 for curves in (one, other)]
    return {n: [a / scales[0] + b / scales[1] for a, b in zip(one[n], other[n], strict=True)] for n in one}


def _pinned(curve: list[float], count: int | None) -> list[float]:
    """A curve that makes every other number of units than ``count`` prohibitive."""
    return curve if count is None else [1e30 * abs(units - count) for units in range(len(curve))]


def _add(curves: Curves, name: str, curve: list[float]) -> None:
    curves[name] = [a + b for a, b in zip(curves[name], curve, strict=True)] if name in curves else curve


def _jobs(chosen: Mapping[str, GroupLike], found: Mapping[str, Sequence[str]]) -> dict[str, Job]:
    rank = {"head": 0, "query": 1}
    jobs: dict[str, Job] = {}
    for consumer in dict.fromkeys(name for names in found.values() for name in names):
        groups = [chosen[name] for name, names in found.items() if consumer in names]
        groups.sort(key=lambda group: (rank.get(group.kind, 2), group.name))
        jobs[consumer] = Job(tuple(groups), tuple(_columns(group, f"{consumer}.weight", 1) for group in groups))
    return jobs


def _columns(group: GroupLike, parameter: str, dim: int) -> Tensor:
    """What each structure owns of one slot, ``[structures, width]``; read off three structures where they lie regularly."""

    def owned(structure: int) -> Tensor:
        slices = group.slices(structure)
        return torch.tensor([i for name, at, indices in slices if (name, at) == (parameter, dim) for i in indices])

    ends = owned(0), owned(min(1, group.size - 1)), owned(group.size - 1)
    steps = torch.arange(group.size)[:, None]
    table = ends[0] + steps * (ends[1] - ends[0]) if ends[0].shape == ends[1].shape else ends[0][None]
    if len(table) == group.size and torch.equal(table[-1], ends[2]):
        return table
    return torch.stack([owned(structure) for structure in range(group.size)])


def _magnitude(model: nn.Module, group: GroupLike) -> Tensor:
    squares: list[tuple[Tensor, Tensor]] = []
    for name, dim in group.slots:
        value = model.get_parameter(name).data
        others = [d for d in range(value.dim()) if d != dim]
        sums = value.double().square().sum(others) if others else value.double().square()
        squares.append((sums.cpu(), _columns(group, name, dim)))
    return saliency.magnitude(squares)
