"""LHSPG: structures fade to nothing while adapters train on, so that what they know moves into what stays.

LoRA Half-Space Projected Gradient (arXiv 2310.18356, section 3.3) minimises the loss over the adapters subject to K
structures being neutral. After a warm-up the least salient ones join the redundant set, K/P at the start of each of P
periods, and in every step the adapters take their optimizer step and the redundant structures shrink: by the *decay*
policy at step t of T by the factor (T-t-1)/(T-t), a straight ramp that ends at exactly zero; by the *half-space* policy each
through a gate of its own (`gates.py`).

What fades is what linear maps read a structure with: columns of the base weight and of ``lora_A`` together, hidden channels
with all that they own. With compensation the columns that stay go, by the same ramp, to what least squares gives for a map
without the structure. So the function is what it was at a period's start, and at its end that of the refitted slice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .allocate import GroupLike
from .gates import Gates
from .scores import owned
from .surgery import Settings, Surgeon, units
from .walk import Batch
from .weights import Weights

__all__ = ["Diverged", "Lhspg", "Schedule"]

POLICIES = ("decay", "half-space")


class Diverged(Exception):
    """A run that was to go on chooses other structures of a group, which it names, than it had."""


@dataclass(frozen=True)
class Place:
    """Where fading structures of a group are in what lies here of a parameter."""

    name: str
    dim: int
    index: Tensor
    """Along the dim."""
    group: str
    structures: Tensor
    """For each index the fading structure that it belongs to, counted in the order of ``removed``."""


@dataclass(frozen=True)
class Period:
    """What is to be known of one to come through it again."""

    trained: Mapping[str, Tensor]
    """What was trained, as it was at its start."""
    gates: list[Mapping[str, Tensor]] = field(default_factory=list)
    """Of the half-space policy, by group, after each of its steps so far."""


@dataclass(frozen=True)
class Schedule:
    """Training steps: of the warm-up, and of each of the periods that follow it; and how structures fade in them."""

    warm_up: int
    periods: int
    length: int
    policy: str = "decay"
    """One of ``POLICIES``."""

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy {self.policy!r} is none of {', '.join(POLICIES)}")
        if self.warm_up < 0 or self.periods < 1 or self.length < 1:
            raise ValueError(f"no schedule has {self.periods} periods of {self.length} steps after {self.warm_up}")

    @property
    def steps(self) -> int:
        """When every structure that goes is at zero."""
        return self.warm_up + self.periods * self.length


class Lhspg:
    """Removes structures from ``model`` while something else trains it; call it after every optimizer step.

    ``chosen`` are the groups that may lose structures, adapters' weights among their slots, and ``widths`` the units that
    each keeps. ``batches`` rank and refit, at each period's start, the model as it is then.
    """

    def __init__(
        self,
        model: nn.Module,
        chosen: Mapping[str, GroupLike],
        widths: Mapping[str, int],
        batches: Sequence[Batch],
        schedule: Schedule,
        settings: Settings | None = None,
        weights: Weights | None = None,
    ) -> None:
        self.weights = weights or Weights(model)
        self.model, self.chosen, self.widths, self.batches = model, chosen, widths, batches
        self.schedule, self.settings = schedule, settings or Settings()
        self.removed: dict[str, list[int]] = {}
        """Structures of the redundant set by group, rising; they fade, or are at zero."""
        self.gone: Mapping[str, list[int]] = {}
        """Those of them that have come to zero, at the end of a period."""
        self.changed: set[str] = set()
        """Frozen weights that are other ones than they were, also where no structure has gone."""
        self._goals: dict[str, Tensor] = {}
        """What each frozen weight is at the end of this period."""
        self._gains: dict[str, Tensor] = {}
        """What each trained weight gains in a step of this period, beside what the optimizer does."""
        self._fading: list[Place] = []
        self._dead: list[Place] = []
        """What fades beside what goes to its goal, and what stays at zero, of the trained weights."""
        self._gates: Gates | None = None
        self._periods: list[Period] = []
        self._given: list[Period] = []
        """What another run noted, while its steps are done again."""

    def start(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Before the first step; or after so many, in a model as it was before the first one, from what `state` gave then.

        Frozen weights come to what they were then: the same structures are chosen and fade once more. Trained weights are
        left somewhere on the way.

        Raises:
            Diverged: other structures are chosen.
        """
        self._given = _periods(state)
        for at in range(step + 1):
            self(at)
        self._given = []
        for name, indices in self.removed.items():
            if step and state[f"removed.{name}"].tolist() != indices:
                raise Diverged(name)

    def state(self) -> dict[str, Tensor]:
        """What `start` needs to come here again: for each period what was trained at its start, and its gates."""
        found = {f"removed.{name}": torch.tensor(indices, dtype=torch.int64) for name, indices in self.removed.items()}
        for number, period in enumerate(self._periods):
            found |= {f"period {number} trained.{name}": value for name, value in period.trained.items()}
            for name in period.gates[0] if period.gates else ():
                found[f"period {number} gates.{name}"] = torch.stack([each[name] for each in period.gates])
        return found

    def __call__(self, step: int) -> None:
        """After so many steps; 0: before the first."""
        at, length = step - self.schedule.warm_up, self.schedule.length
        if 0 < at <= self.schedule.periods * length:
            self._shrink(length - (at - 1) % length)
        for each in self._dead:
            self.weights.here(each.name).index_fill_(each.dim, each.index, 0)
        if at in range(0, self.schedule.periods * length + 1, length):
            self._end()
            if at < self.schedule.periods * length:
                self._begin(at // length + 1)

    def _begin(self, period: int) -> None:
        """Choose what goes by the end of a period."""
        if self._given:
            for name, value in self._given[period - 1].trained.items():
                self._share(name, value, self.weights.here(name))
        widths = {name: self._width(name, period) for name in self.chosen}
        with self.weights.whole() as model:
            surgeon = self._choose(model, widths)
        self.changed |= set(self._goals)
        self._fading = list(self._read(surgeon))
        if self.schedule.policy == "decay":  # the goals of frozen weights are zero there already
            self._fading = [place for place in self._fading if place.name in self._gains]
        else:
            self._gates = self._gated(surgeon)
        for each in self._fading:
            if each.name in self._gains:
                self._gains[each.name].index_fill_(each.dim, each.index, 0)

    def _choose(self, model: nn.Module, widths: Mapping[str, int]) -> Surgeon:
        """What goes down to these widths, and what the weights that stay become for it; ``model`` is whole, and as before
        afterwards."""
        before = {name: parameter.data for name, parameter in model.named_parameters()}
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._periods.append(Period({name: before[name].cpu().clone() for name in sorted(trained)}))
        training = [module for module in model.modules() if module.training]
        model.eval()
        surgeon = Surgeon(model, self.chosen, self.settings, self.batches)
        with surgeon.pruned(surgeon.walk(self.batches), widths) as (removed, _):
            self.removed = self.weights.agreed({name: list(indices) for name, indices in removed.items()})
            now = {name: parameter.data for name, parameter in model.named_parameters()}
            changed = [name for name in now if now[name].data_ptr() != before[name].data_ptr()]
            for name in self.weights.agreed(changed):
                goal = self.weights.agreed(now[name])
                if name in trained:
                    self._gains[name] = self._share(name, (goal - before[name]).div_(self.schedule.length))
                else:
                    self._goals[name] = self._share(name, goal)
        for module in training:
            module.training = True
        return surgeon

    def _share(self, name: str, whole: Tensor, here: Tensor | None = None) -> Tensor:
        """What of a whole weight's values belongs to its rows here; written into what is ``here`` of it, where that is given."""
        start, stop = self.weights.rows(name)
        part = whole[start:stop]
        if here is not None:
            return here.copy_(part)
        return part if len(part) == len(whole) else part.clone()

    def _shrink(self, left: int) -> None:
        """One step, the first of so many that are left of the period."""
        factors: Mapping[str, Tensor] = {}
        if self._gates:
            done = self._periods[-1].gates
            given = self._given[len(self._periods) - 1].gates[len(done)] if self._given else None
            factors = self._gates.moved(given or self._gates.next(left))
            done.append(self._gates.values)
        frozen = [place for place in self._fading if place.name in self._goals]
        before = [self.weights.here(place.name).index_select(place.dim, place.index) for place in frozen]
        for name, goal in self._goals.items():
            self.weights.here(name).lerp_(
                goal, 1 / left
            )  # each step the same way, and the last one ends at the goal itself
        for name, gain in self._gains.items():
            self.weights.here(name).add_(gain)
        for place, value in zip(frozen, before, strict=True):
            self.weights.here(place.name).index_copy_(place.dim, place.index, value)
        for place in self._fading:
            value, factor = self.weights.here(place.name), factors.get(place.group)
            part = value.index_select(place.dim, place.index)
            if factor is None:
                part *= (left - 1) / left
            else:
                wide = factor[place.structures].to(part)
                part *= wide.view([-1 if d == place.dim else 1 for d in range(part.dim())])
            value.index_copy_(place.dim, place.index, part)

    def _gated(self, surgeon: Surgeon) -> Gates:
        """A gate for each structure that goes; frozen maps watch, since what is trained beside them reads the same."""
        sizes = {name: len(indices) for name, indices in self.removed.items() if indices}
        readers = [
            (path, group.name, columns[self.removed[group.name]])
            for path, job in surgeon.jobs.items()
            for group, columns in zip(job.groups, job.columns, strict=True)
            if group.name in sizes and not self.model.get_parameter(f"{path}.weight").requires_grad
        ]
        return Gates(self.model, readers, sizes, self.schedule.length, self.weights.summed)

    def _read(self, surgeon: Surgeon) -> Iterator[Place]:
        """What the redundant structures are read with: columns of consumers, and all that groups in front own."""
        slots = [(group, f"{name}.weight", 1) for name, job in surgeon.jobs.items() for group in job.groups]
        slots += [(group, name, dim) for group in surgeon.front for name, dim in group.slots]
        for group, name, dim in slots:
            if group.name in self.removed:
                yield self._place(group, name, dim)

    def _end(self) -> None:
        """What faded is gone: zero wherever it owns a weight, and kept there."""
        if self._gates:
            self._gates.close()
        self._fading, self._goals, self._gains, self._gates = [], {}, {}, None
        self.gone = self.removed
        gone = [self._place(self.chosen[name], *slot) for name in self.removed for slot in self.chosen[name].slots]
        for each in gone:
            self.weights.here(each.name).index_fill_(each.dim, each.index, 0)
        self._dead = [each for each in gone if self.model.get_parameter(each.name).requires_grad]

    def _place(self, group: GroupLike, name: str, dim: int) -> Place:
        index = owned(group, name, dim)[self.removed[group.name]]
        structures = torch.arange(len(index)).repeat_interleave(index[0].numel() if len(index) else 0)
        index = index.flatten()
        if dim == 0:
            start, stop = self.weights.rows(name)
            inside = (index >= start) & (index < stop)
            index, structures = index[inside] - start, structures[inside]
        return Place(name, dim, index.to(self.weights.here(name).device), group.name, structures)

    def _width(self, name: str, period: int) -> int:
        """Units that a group still has after a period."""
        every = units(self.chosen[name])
        return every - round((every - self.widths[name]) * period / self.schedule.periods)


def _periods(state: Mapping[str, Tensor]) -> list[Period]:
    """What `Lhspg.state` noted."""
    found: list[Period] = []
    while trained := _under(state, f"period {len(found)} trained."):
        gates = _under(state, f"period {len(found)} gates.")
        steps = len(next(iter(gates.values()))) if gates else 0
        found.append(Period(trained, [{name: each[at] for name, each in gates.items()} for at in range(steps)]))
    return found


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
