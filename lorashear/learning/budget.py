"""What the tokens of a run are spent on, as steps: knowledge transfer, recovery on text, instructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lorashear.config import Settings, Training
from lorashear.text.calibration import Subset, Windows
from lorashear.text.data import tokens_in, told

CORPORA, TUNING = "corpora", "instructions"
GENTLE = 0.2
"""Of the learning rate on text is that on instructions behind it: at the same one, answers are told no better in the end, and much
of what came back is lost again (`tools/study_recovery.py`)."""


@dataclass(frozen=True)
class Stage:
    """A stage of recovery: ``fixed`` are shares of subsets that do not change; ``before`` its steps come others of one
    schedule, that of the learning rate, which is multiplied by ``rate``."""

    name: str
    subsets: tuple[Subset, ...]
    steps: int
    fixed: Mapping[str, float]
    before: int = 0
    rate: float = 1.0


def stages(settings: Training, windows: Windows) -> list[Stage]:
    """Of recovery: the text, and then, where there are instructions, those with some of the text, so that the second stage does
    not undo the first."""
    found: list[Stage] = []
    before = transferred(settings, windows) if isinstance(settings, Settings) else 0
    if windows.subsets and (steps := on_text(settings, windows) - before):
        found.append(Stage(CORPORA, windows.subsets, steps, {}, before))
    if windows.instructions:
        fixed = {windows.instructions.name: 1 - settings.replay if windows.subsets else 1.0}
        tokens = _tokens(settings) * (settings.tuning if windows.subsets else 1.0)
        steps = _steps(tokens, settings.batch, _shares(windows.every, fixed))
        found.append(Stage(TUNING, windows.every, steps, fixed, rate=GENTLE if windows.subsets else 1.0))
    return found


def on_text(settings: Training, windows: Windows) -> int:
    """Steps on text alone, those of transfer among them."""
    tokens = _tokens(settings) * (1 - settings.tuning if windows.instructions else 1.0)
    return _steps(tokens, settings.batch, _shares(windows.subsets, {}))


def transferred(settings: Settings, windows: Windows) -> int:
    """Steps in which LHSPG trains the dense model; where it has not all of them, one at least is left."""
    every = on_text(settings, windows)
    return every if settings.lhspg == 1 else min(round(settings.lhspg * every), every - 1)


def unwatched(subsets: Sequence[Subset]) -> list[Subset]:
    """The subsets with nothing held out to be measured on."""
    return [replace(subset, heldout=subset.heldout[:0]) for subset in subsets]


def _tokens(settings: Training) -> int:
    assert settings.tokens is not None
    return settings.tokens


def _shares(subsets: Sequence[Subset], fixed: Mapping[str, float]) -> list[tuple[Subset, float]]:
    """Each subset's share of the tokens that are told, where none has lost more than another."""
    free = sum(subset.name not in fixed for subset in subsets)
    rest = 1 - sum(fixed.values())
    return [(subset, fixed.get(subset.name, rest / max(1, free))) for subset in subsets]


def _steps(tokens: float, batch: int, shares: Sequence[tuple[Subset, float]]) -> int:
    """How many steps read so many tokens; at least one."""
    lengths = [(told(s.training) / len(s.training), tokens_in(s.training) / len(s.training)) for s, _ in shares]
    drawn = [share / out for (out, _), (_, share) in zip(lengths, shares, strict=True)]
    mean = sum(windows * read for windows, (_, read) in zip(drawn, lengths, strict=True)) / sum(drawn)
    return max(1, round(tokens / (batch * mean)))
