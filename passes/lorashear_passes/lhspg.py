"""LHSPG: structures fade to nothing while adapters train on, so that what they know moves into what stays.

LoRA Half-Space Projected Gradient (arXiv 2310.18356, section 3.3) minimises the loss over the adapters subject to K
structures being neutral. After a warm-up the least salient ones join the redundant set, K/P at the start of each of P
periods, and in every step the adapters take their optimizer step and the redundant structures shrink. Here by the *decay*
policy: at step t of T what a structure is read with goes down by (T-t-1)/(T-t), a straight ramp that ends at exactly zero.

What fades is what linear maps read a structure with: columns of the base weight and of ``lora_A`` together, hidden channels
with all that they own. With compensation the columns that stay go, by the same ramp, to what least squares gives for a map
without the structure. So the function is what it was at a period's start, and at its end that of the refitted slice.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .allocate import GroupLike
from .scores import owned
from .surgery import Settings, Surgeon, units
from .walk import Batch

__all__ = ["Lhspg", "Schedule"]

Place = tuple[str, int, Tensor]
"""A parameter, a dim of it, and indices along that."""


@dataclass(frozen=True)
class Schedule:
    """Training steps: of the warm-up, and of each of the periods that follow it."""

    warm_up: int
    periods: int
    length: int

    def __post_init__(self) -> None:
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
    ) -> None:
        self.model, self.chosen, self.widths, self.batches = model, chosen, widths, batches
        self.schedule, self.settings = schedule, settings or Settings()
        self.removed: dict[str, list[int]] = {}
        """Structures of the redundant set by group, rising; they fade, or are at zero."""
        self.changed: set[str] = set()
        """Frozen weights that are other ones than they were, also where no structure has gone."""
        self._goals: dict[str, Tensor] = {}
        """What each frozen weight is at the end of this period."""
        self._gains: dict[str, Tensor] = {}
        """What each trained weight gains in a step of this period, beside what the optimizer does."""
        self._fading: list[Place] = []
        self._dead: list[Place] = []
        """What fades, and what stays at zero, of the trained weights."""

    def __call__(self, step: int) -> None:
        """After so many steps; 0: before the first."""
        at, length = step - self.schedule.warm_up, self.schedule.length
        if 0 < at <= self.schedule.periods * length:
            self._shrink(length - (at - 1) % length)
        for name, dim, index in self._dead:
            self._value(name).index_fill_(dim, index, 0)
        if at in range(0, self.schedule.periods * length + 1, length):
            self._end()
            if at < self.schedule.periods * length:
                self._begin(at // length + 1)

    def _begin(self, period: int) -> None:
        """Choose what goes by the end of a period."""
        widths = {name: self._width(name, period) for name in self.chosen}
        before = {name: parameter.data for name, parameter in self.model.named_parameters()}
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        surgeon = Surgeon(self.model, self.chosen, self.settings)
        with surgeon.pruned(surgeon.walk(self.batches), widths) as (removed, _):
            self.removed = {name: list(indices) for name, indices in removed.items()}
            for name, parameter in self.model.named_parameters():
                if parameter.data.data_ptr() == before[name].data_ptr():
                    continue
                if parameter.requires_grad:
                    self._gains[name] = (parameter.data - before[name]).div_(self.schedule.length)
                else:
                    self._goals[name] = parameter.data
        for module in training:
            module.training = True
        self.changed |= set(self._goals)
        self._fading = [place for place in self._read(surgeon) if place[0] in self._gains]
        for name, dim, index in self._fading:
            self._gains[name].index_fill_(dim, index, 0)

    def _shrink(self, left: int) -> None:
        """One step, the first of so many that are left of the period."""
        for name, goal in self._goals.items():
            self._value(name).lerp_(goal, 1 / left)  # each step the same way, and the last one ends at the goal itself
        for name, gain in self._gains.items():
            self._value(name).add_(gain)
        for name, dim, index in self._fading:
            value = self._value(name)
            value.index_copy_(dim, index, value.index_select(dim, index) * ((left - 1) / left))

    def _read(self, surgeon: Surgeon) -> Iterator[Place]:
        """What the redundant structures are read with: columns of consumers, and all that groups in front own."""
        slots = [(group, f"{name}.weight", 1) for name, job in surgeon.jobs.items() for group in job.groups]
        slots += [(group, name, dim) for group in surgeon.front for name, dim in group.slots]
        for group, name, dim in slots:
            if group.name in self.removed:
                yield self._place(group, name, dim)

    def _end(self) -> None:
        """What faded is gone: zero wherever it owns a weight, and kept there."""
        self._fading, self._goals, self._gains = [], {}, {}
        gone = [self._place(self.chosen[name], *slot) for name in self.removed for slot in self.chosen[name].slots]
        for name, dim, index in gone:
            self._value(name).index_fill_(dim, index, 0)
        self._dead = [place for place in gone if self.model.get_parameter(place[0]).requires_grad]

    def _place(self, group: GroupLike, name: str, dim: int) -> Place:
        index = owned(group, name, dim)[self.removed[group.name]].flatten()
        return name, dim, index.to(self._value(name).device)

    def _value(self, name: str) -> Tensor:
        return self.model.get_parameter(name).data

    def _width(self, name: str, period: int) -> int:
        """Units that a group still has after a period."""
        every = units(self.chosen[name])
        return every - round((every - self.widths[name]) * period / self.schedule.periods)
