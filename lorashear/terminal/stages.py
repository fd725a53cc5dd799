"""Named stages of a run: timed, shown, and dumped as text where LORASHEAR_DEBUG and LORASHEAR_DUMP ask for it."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from lorashear.learning.training import Step

Say = Callable[[str], None]
Progress = Callable[[str, int, int], None]


class StageLine(str):
    """What `Say` is told of a stage, ``3 knowledge`` as it begins and ``3 knowledge  12.4 s`` when it is over: a line like any
    other, of which a terminal knows what it is of."""

    name: str
    seconds: float | None
    """None as it begins."""

    def __new__(cls, number: int, name: str, seconds: float | None = None) -> Self:
        line = super().__new__(cls, f"{number} {name}" + ("" if seconds is None else f"  {seconds:,.1f} s"))
        line.name, line.seconds = name, seconds
        return line


def debug_level() -> int:
    """LORASHEAR_DEBUG: 1 times each stage, 2 says what it made, 3 prints the text after it."""
    value = os.environ.get("LORASHEAR_DEBUG", "")
    return int(value) if value.isdigit() else 0


@dataclass
class Stages:
    """The stages so far: seconds each, together where one comes twice, and the peak resident memory of the process at its end, in bytes."""

    say: Say | None = None
    shown: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    number: int = 0  # of the current one
    told: Sequence[Callable[[Step], None]] = ()  # of each step of training, before how far it is

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run a block as the stage ``name``."""
        self.number += 1
        if self.say:
            self.say(StageLine(self.number, name))
        number, start = self.number, time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 4)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.peak_bytes[name] = peak if sys.platform == "darwin" else peak * 1024
        if debug_level():
            print(f"lorashear: {self.number} {name}: {self.seconds[name]:.3f} s", file=sys.stderr)
        if self.say:
            self.say(StageLine(number, name, seconds))

    def progress(self, what: str, done: int, total: int) -> None:
        """Tell how far the current stage is."""
        if self.shown:
            self.shown(what, done, total)

    def stepped(self, what: str, step: Step, steps: int) -> None:
        """Tell what a step of training did, and that so many of ``steps`` are done."""
        for tell in self.told:
            tell(step)
        self.progress(what, step.step, steps)

    def made(self, what: str, text: Callable[[], str]) -> None:
        """Note what the current stage made; its text goes to LORASHEAR_DUMP as ``03-infer.txt``."""
        folder = os.environ.get("LORASHEAR_DUMP")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{self.number:02}-{what}.txt").write_text(text(), encoding="utf-8")
        if debug_level() >= 2:
            print(f"lorashear: {what}: {len(text().splitlines())} lines", file=sys.stderr)
        if debug_level() >= 3:
            print(text(), file=sys.stderr)
