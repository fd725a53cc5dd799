"""Which windows of which subset a step of training sees: a mixture whose shares may follow what each subset has lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from lorashear.learning.hyperparameters import Hyperparameters
from lorashear.text.calibration import Subset
from lorashear.text.data import PADDING

STRETCHES = 12
"""Of training, at most: between two of them it is measured what each subset has lost."""
STRETCH = 8
"""Steps of one at least: what fewer gain is not to be told from chance."""
FLOOR = 0.25
"""Of an equal share: what a subset has at least, so that nothing is forgotten."""
GAIN = 0.002
"""Nats a token by which the held-out loss of a subset has to fall to count as a gain."""
PATIENCE = 2
"""Stretches without a gain of any subset, after which training is brought to its end in one more."""
NO_GAIN = "no subset gained"
SEEDS = 1_000_003, 15_485_863, 32_452_843  # apart, so that no two orders of windows have one seed

Measure = Callable[[Tensor], float]
"""The mean loss of windows, in nats a token that is told."""


@dataclass(frozen=True)
class Measured:
    """After so many steps: the held-out loss of each subset and its degradation against the dense model, max(0, loss − dense),
    both in nats a token; and of the tokens that are told from here on, each one's share. ``tokens`` were read until then."""

    step: int
    tokens: int
    loss: Mapping[str, float]
    degradation: Mapping[str, float] | None
    share: Mapping[str, float]


@dataclass
class Mixture:
    """Draws windows of subsets, each gone through in an order of its own, and again in another one when all were seen.

    Which windows a step sees depends on the seed, the step and what was measured alone.

    Args:
        hyperparameters: of the training; its steps, unless no subset gains before.
        fixed: shares of subsets that do not change; the others have the rest.
        dense: the dense model's held-out loss of each subset, in nats a token; without it shares do not change.
        stage: which one of training it is, since each goes through windows in another order.
        dynamic: whether shares follow the degradation: in proportion to it, but for the `FLOOR`.
    """

    subsets: Sequence[Subset]
    hyperparameters: Hyperparameters
    fixed: Mapping[str, float] = field(default_factory=dict[str, float])
    dense: Mapping[str, float] | None = None
    dynamic: bool = True
    stage: int = 0

    @classmethod
    def of(cls, windows: Tensor, hyperparameters: Hyperparameters) -> Self:
        """One text, of which nothing is measured."""
        return cls([Subset("text", windows, windows[:0])], hyperparameters)

    def __post_init__(self) -> None:
        count = len(self.subsets)
        self._ahead = torch.zeros(count, dtype=torch.float64)  # tokens that each should have had beyond what it had
        self._seen = torch.zeros(count, dtype=torch.int64)  # windows
        self._turns: dict[int, tuple[int, Tensor]] = {}  # the order of each, and which it is
        self._shares = self._spread(torch.ones(count, dtype=torch.float64))
        self.measured: list[Measured] = []
        self.tokens = 0  # read so far
        self.last = self.hyperparameters.steps  # step, as far as is known
        self.stopped = ""  # why it ends before its steps are done

    @property
    def stretch(self) -> int:
        """Steps between two measurements."""
        return max(STRETCH, -(-self.hyperparameters.steps // STRETCHES))

    def draw(self) -> Tensor:
        """The windows of the next step, int64 [batch, length]."""
        rows: list[Tensor] = []
        for _ in range(self.hyperparameters.batch):
            number = int(self._ahead.where(self._shares > 0, -torch.inf).argmax())
            rows.append(row := self._next(number))
            told = int((row[1:] >= 0).sum())
            self._ahead += self._shares * told
            self._ahead[number] -= told
            self.tokens += int((row != PADDING).sum())
        return torch.stack(rows)

    def cooled(self, step: int) -> float:
        """What the learning rate is multiplied by: a straight way to zero where training ends early."""
        return min(1.0, (self.last - step + 1) / self.stretch) if self.stopped else 1.0

    def start(self, step: int, measure: Measure, state: Mapping[str, Tensor]) -> None:
        """Before the first step, or after so many, from what `state` gave then."""
        if not step:
            self._measure(0, measure)
            return
        self._ahead, self._seen, self._shares = (
            state[f"mixture.{name}"].clone() for name in ("ahead", "seen", "shares")
        )
        self.tokens, self.last, stopped = state["mixture.numbers"].tolist()
        self.stopped = NO_GAIN if stopped else ""
        count = len(self.subsets)
        for held in state["mixture.measured"].tolist():
            self._note(int(held[0]), int(held[1]), held[2 : 2 + count], held[2 + count :])

    def after(self, step: int, measure: Measure) -> None:
        """When so many steps are done: at the end of a stretch, what each subset has lost is measured, and the rest follows."""
        if step % self.stretch and step != self.last:
            return
        self._measure(step, measure)
        if not self.stopped and step + self.stretch < self.last and self._gains_nothing():
            self.stopped, self.last = NO_GAIN, step + self.stretch

    def news(self, step: int) -> Measured | None:
        """What was measured after this step, or before the first one."""
        new = [measured for measured in self.measured[-2:] if measured.step == step or measured.step == 0 and step == 1]
        return new[-1] if new else None

    def state(self) -> dict[str, Tensor]:
        """What `start` needs to go on."""
        held = [[m.step, m.tokens, *m.loss.values(), *m.share.values()] for m in self.measured]
        return {
            "mixture.ahead": self._ahead,
            "mixture.seen": self._seen,
            "mixture.shares": self._shares,
            "mixture.numbers": torch.tensor([self.tokens, self.last, bool(self.stopped)]),
            "mixture.measured": torch.tensor(held, dtype=torch.float64).reshape(-1, 2 + 2 * len(self.subsets)),
        }

    def _next(self, number: int) -> Tensor:
        """The next window of a subset."""
        windows, seen = self.subsets[number].training, int(self._seen[number])
        turn, place = divmod(seen, len(windows))
        held, order = self._turns.get(number, (-1, self._seen))
        if held != turn:
            seed = SEEDS[0] * self.hyperparameters.seed + SEEDS[1] * number + SEEDS[2] * self.stage + turn
            random = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(windows), generator=random)
            self._turns[number] = turn, order
        self._seen[number] += 1
        return windows[int(order[place])].long()

    def _measure(self, step: int, measure: Measure) -> None:
        if not all(len(subset.heldout) for subset in self.subsets):
            return
        losses = [measure(subset.heldout) for subset in self.subsets]
        if self.dynamic and self.dense is not None:
            lost = [max(0.0, loss - self.dense[s.name]) for s, loss in zip(self.subsets, losses, strict=True)]
            self._shares = self._spread(torch.tensor(lost, dtype=torch.float64))
        self._note(step, self.tokens, losses, self._shares.tolist())

    def _note(self, step: int, tokens: int, losses: Sequence[float], shares: Sequence[float]) -> None:
        names = [subset.name for subset in self.subsets]
        loss = dict(zip(names, losses, strict=True))
        lost = None if self.dense is None else {name: max(0.0, loss[name] - self.dense[name]) for name in names}
        self.measured.append(Measured(step, tokens, loss, lost, dict(zip(names, shares, strict=True))))

    def _spread(self, lost: Tensor) -> Tensor:
        """Shares in proportion to what was lost, equal ones where that is nothing, with the floor and what is fixed."""
        fixed = torch.tensor([self.fixed.get(subset.name, -1.0) for subset in self.subsets], dtype=torch.float64)
        free = fixed < 0
        lost = torch.where(free, lost, 0.0)
        even = free / free.sum().clamp_min(1)
        wanted = lost / lost.sum() if lost.sum() > 0 else even
        rest = 1 - fixed[~free].sum()
        return torch.where(free, rest * (FLOOR * even + (1 - FLOOR) * wanted), fixed)

    def _gains_nothing(self) -> bool:
        """Whether no loss of the last stretches is below those before."""
        before, since = self.measured[:-PATIENCE], self.measured[-PATIENCE:]
        return bool(before) and all(
            min(m.loss[s.name] for m in before) - min(m.loss[s.name] for m in since) < GAIN for s in self.subsets
        )
