"""Removing structures for a moment: which go from each group, by rank, and what the weights that stay become.

The groups are told apart by what reads them. Most have *consumers*, linear maps that contract over them, and are pruned
block by block on the way through the model (`walk.py`): a structure whose columns are zero in every consumer computes
the same as one that is not there, so only consumers change. Hidden channels, and groups without a linear consumer, go
*in front*: all that they own is zeroed before the walk, which then refits what lies behind them.
"""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from . import saliency, scores
from .allocate import GroupLike
from .compensate import compensate
from .scores import Criterion, owned
from .walk import Batch, Stage, Walk, chained, consumers, swapped

__all__ = ["Measured", "Progress", "Settings", "Surgeon", "levels", "units"]

CRITERIA = ("obs", "wanda", "flap", "taylor", "lora", "magnitude", "random")
Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""
Measured = MutableMapping[str, list[float]]
"""What was measured of a model on some text: held-out losses by what was pruned, ``"consumer group"``, at each of its levels;
``""`` has that of the dense model, ``"score of  group"`` the score of each structure on it, and ``"split on  windows digest"`` the
loss of a split that was tried. Two spaces are in no name of a consumer and a group."""


@dataclass(frozen=True)
class Settings:
    """How to rank and refit; the defaults are what ``tools/study_criteria.py`` measured best."""

    criterion: str | Criterion = "obs"
    """One of ``CRITERIA``, or a function: which structures of a group go first."""
    compensate: bool = True
    """Refit the consumers by least squares."""
    target: str = "own"
    """What the refit aims at: "own", the pruned stream's own output, or "dense", the dense model's (twice the work)."""
    damp: float = saliency.DAMP
    """λ of every inverse, as a share of the mean diagonal."""
    seed: int = 0
    """Of the random criterion, and of the adapter that lora looks through."""

    def __post_init__(self) -> None:
        if not callable(self.criterion) and self.criterion not in CRITERIA:
            raise ValueError(f"criterion {self.criterion!r} is none of {', '.join(CRITERIA)}")


@dataclass(frozen=True)
class Job:
    """One consumer: the groups it contracts over (heads before queries) and the columns of their structures."""

    groups: tuple[GroupLike, ...]
    columns: tuple[Tensor, ...]


class Surgeon:
    """The model, the groups that may lose structures, and the rank of those structures."""

    def __init__(
        self,
        model: nn.Module,
        chosen: Mapping[str, GroupLike],
        settings: Settings,
        batches: Sequence[Batch] = (),
        known: Measured | None = None,
    ) -> None:
        """``batches`` rank what the dense model on some text settles; such scores are taken from ``known``, and go there."""
        self.model, self.chosen, self.settings = model, chosen, settings
        self.known: Measured = {} if known is None else known
        inner = {name: consumers(model, group.slots) for name, group in chosen.items() if group.kind != "hidden"}
        self.jobs = _jobs(chosen, inner)
        self.front = [group for name, group in chosen.items() if not inner.get(name)]
        self.readers = {g.name: consumers(model, g.slots) for g in self.front if g.kind == "hidden"}
        self.static: dict[str, Tensor] = {}
        """Scores of groups whose rank does not depend on where a walk is."""
        if settings.criterion == "magnitude":
            self.static = scores.magnitude(model, chosen)
        elif settings.criterion == "random":
            self.static = {
                name: saliency.random_scores(group.size, saliency.drawing(settings.seed, name))
                for name, group in chosen.items()
            }
        elif callable(settings.criterion) and not batches:
            self.static = scores.by_function(settings.criterion, model, chosen, batches, settings.seed)
        if batches:
            self._rank(batches)

    def walk(self, batches: Sequence[Batch]) -> Walk:
        """The walk that `pruned` takes over these batches."""
        names = list(self.jobs)
        if self.settings.compensate or not names:
            names += chained(self.model, names, [name for found in self.readers.values() for name in found])
        return Walk(self.model, names, batches)

    def blind(self, widths: Mapping[str, int]) -> dict[str, list[int]]:
        """Without text: what goes from each group by its static scores."""
        removed: dict[str, list[int]] = {}
        for job in self.jobs.values():
            self._gone(job, None, None, widths, removed)
        self._front_zeroed(widths, removed)
        return removed

    def scored(self, walk: Walk) -> dict[str, Tensor]:
        """The criterion's score of every structure, by group, all on the dense model."""
        rest = {name: group for name, group in self.chosen.items() if name not in self.static}
        return self.static | self._scores(rest, lambda missing: self._walked(missing, walk))

    @contextmanager
    def pruned(
        self, walk: Walk, widths: Mapping[str, int], progress: Progress | None = None
    ) -> Iterator[tuple[dict[str, list[int]], dict[str, Tensor]]]:
        """The model pruned to ``widths`` for a moment: what was removed, and the refitted weights."""
        removed: dict[str, list[int]] = {}
        weights: dict[str, Tensor] = {}
        zeroed = self._front_zeroed(widths, removed)
        touched = {name: self.model.get_parameter(name).data for name in zeroed}
        touched |= {f"{name}.weight": self.weight(name) for name in self.jobs}
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
                if progress:
                    progress("cutting layers", position + 1, len(walk.stages))
            yield removed, weights

    def alone(self, name: str, group: GroupLike, covariance: Tensor) -> Iterator[Tensor]:
        """A consumer's weight with one of its groups pruned alone, at each of its `levels`."""
        job, weight = self.jobs[name], self.weight(name)
        columns = job.columns[job.groups.index(group)]
        order = self._order(group, columns, columns, group.blocks, weight, covariance)
        for count in levels(group):
            gone = columns[order[: count * group.blocks]].flatten()
            yield self._refitted(weight, gone, covariance, None)

    def front_alone(self, group: GroupLike) -> Iterator[dict[str, Tensor]]:
        """The zeroed parameters of a group in front pruned alone, at each of its `levels`."""
        for count in levels(group):
            yield self._front_zeroed({g.name: units(g) - count * (g is group) for g in self.front}, {})

    def weight(self, name: str) -> Tensor:
        return self.model.get_parameter(f"{name}.weight").data

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
        if dense is None and not hidden and all(widths[g.name] == units(g) for g in job.groups):
            return
        covariance, cross = walk.covariances(stage, states, [name], dense=dense, originals=touched)[name]
        # Columns as they were, since the dense model's input is what they refit to; rows that went stay zero.
        weight = touched[f"{name}.weight"] * self.weight(name).any(1, keepdim=True)
        gone = self._gone(job, weight, covariance, widths, removed)
        for group in hidden:
            read = owned(group, f"{name}.weight", 1)[removed[group.name]].flatten()
            gone = torch.cat([gone, read]).unique()
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
                blocks = len(alive) // units(group) if group.blocks > 1 else 1
                lost = (units(group) - widths[group.name]) * blocks
                if lost:
                    order = self._order(group, columns[alive], columns, blocks, weight, covariance, alive, lost)
                    removed[group.name] = sorted(alive[order[:lost]].tolist())
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
        count: int | None = None,
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
            count=count,
        )

    def _refitted(self, weight: Tensor, gone: Tensor, covariance: Tensor, cross: Tensor | None) -> Tensor:
        kept = torch.ones(weight.shape[1], dtype=torch.bool)
        kept[gone] = False
        if self.settings.compensate:
            return compensate(weight, covariance, kept.nonzero()[:, 0], cross=cross, damp=self.settings.damp)
        return weight * kept.to(weight.device)

    def _rank(self, batches: Sequence[Batch]) -> None:
        criterion = self.settings.criterion
        rank = partial(scores.by_function, criterion) if callable(criterion) else scores.FROM_TEXT.get(criterion)
        if rank:
            self.static = self._scores(
                self.chosen, lambda missing: rank(self.model, missing, batches, self.settings.seed)
            )
        rest = {group.name: group for group in self.front if group.name not in self.static}
        self.static |= self._scores(rest, lambda missing: self._front_scores(missing, batches))

    def _scores(
        self, groups: Mapping[str, GroupLike], rank: Callable[[Mapping[str, GroupLike]], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The scores of groups: those that are known, and what ``rank`` gives for the others."""
        missing = {name: group for name, group in groups.items() if _key(name) not in self.known}
        if missing:
            self.known.update({_key(name): each.tolist() for name, each in rank(missing).items()})
        return {name: torch.tensor(self.known[_key(name)], dtype=torch.float64) for name in groups}

    def _walked(self, groups: Mapping[str, GroupLike], walk: Walk) -> dict[str, Tensor]:
        """Scores by what consumers read in the dense model."""
        found: dict[str, Tensor] = {}
        rank = saliency.wanda if self.settings.criterion == "wanda" else saliency.obs_costs
        states = walk.start
        for stage in walk.stages:
            covariances, states = walk.scan(stage, states)
            for name in stage.consumers:
                job = self.jobs.get(name, Job((), ()))
                for group, columns in zip(job.groups, job.columns, strict=True):
                    if group.name in groups:
                        here = rank(self.weight(name), covariances[name], columns).cpu()
                        found[group.name] = found.get(group.name, 0) + here
        return found

    def _front_scores(self, groups: Mapping[str, GroupLike], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Hidden channels: Wanda's scores over all consumers, each relative to its sum; others: magnitude."""
        result: dict[str, Tensor] = {}
        for group in groups.values():
            names = self.readers.get(group.name, ())
            if not names:
                result |= scores.magnitude(self.model, {group.name: group})
                continue
            walk = Walk(self.model, names, batches, whole=True)
            found, _ = walk.scan(walk.stages[0], walk.start)
            total = torch.zeros(group.size, dtype=torch.float64)
            for name, covariance in found.items():
                read = saliency.wanda(self.weight(name), covariance, owned(group, f"{name}.weight", 1)).cpu()
                total += read / read.sum().clamp_min(1e-30)
            result[group.name] = total
        return result

    def _front_zeroed(self, widths: Mapping[str, int], removed: dict[str, list[int]]) -> dict[str, Tensor]:
        """Chooses what the groups in front lose; new values of all that they own, zero there."""
        values: dict[str, Tensor] = {}
        for group in self.front:
            lost = (units(group) - widths[group.name]) * group.blocks
            if not lost:
                continue
            removed[group.name] = sorted(saliency.in_rounds(self.static[group.name], group.blocks)[:lost])
            for name, dim in group.slots:
                value = values.setdefault(name, self.model.get_parameter(name).data.clone())
                value.index_fill_(dim, owned(group, name, dim)[removed[group.name]].flatten().to(value.device), 0)
        return values


def _key(name: str) -> str:
    return f"score of  {name}"  # two spaces, which no name of a consumer and a group has


def units(group: GroupLike) -> int:
    """Structures in each block: what a width counts."""
    return group.size // group.blocks


def levels(group: GroupLike, most: int = 10) -> list[int]:
    """Numbers of units removed at which a curve is measured, spread evenly, never none."""
    steps = min(units(group), most)
    return sorted({round(step * units(group) / steps) for step in range(1, steps + 1)})


def _jobs(chosen: Mapping[str, GroupLike], found: Mapping[str, Sequence[str]]) -> dict[str, Job]:
    rank = {"head": 0, "query": 1}
    jobs: dict[str, Job] = {}
    for consumer in dict.fromkeys(name for names in found.values() for name in names):
        groups = [chosen[name] for name, names in found.items() if consumer in names]
        groups.sort(key=lambda group: (rank.get(group.kind, 2), group.name))
        jobs[consumer] = Job(tuple(groups), tuple(owned(group, f"{consumer}.weight", 1) for group in groups))
    return jobs
