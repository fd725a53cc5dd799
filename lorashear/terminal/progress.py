"""What a person sees of a long run: stages as lines, and how far the current one is."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from lorashear.learning.figures import Figures
from lorashear.terminal.pace import Pace, clock
from lorashear.terminal.stages import StageLine

if TYPE_CHECKING:
    from lorashear.learning.training import Step

PLAIN_SECONDS = 5.0  # between two progress lines where there is no terminal


def living(console: Console) -> bool:
    """Whether lines on it can be written again: it is a terminal, and not one that is as good as a file (TERM=dumb)."""
    return console.is_terminal and not console.is_dumb_terminal


class Terminal:
    """Writes to stderr: a bar on a terminal, where a stage that is over leaves a line with its seconds; else a plain line when
    something begins, and now and then, for log files. A ``quiet`` one writes nothing, and keeps Python's warnings back."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(stderr=True)
        self._quiet, self._open = quiet, ExitStack()
        self._living = living(self._console)
        self._bar = _Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=self._console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._last = time.monotonic()
        self._forget()

    def __enter__(self) -> Self:
        if self._quiet:
            self._open.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        elif self._living:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
        if self._living and not self._quiet:  # stopping prints an empty line elsewhere
            unfinished, self._bar.stage = self._bar.stage, ""
            if unfinished:
                self._print(unfinished)  # where it ended stays to be seen
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line that stays; what is told after it is of something new. Of a stage one line stays, of its end."""
        if self._quiet:
            return
        if not isinstance(line, StageLine):
            self._forget()
            self._print(line)
        elif self._living:
            self._forget()
            self._bar.begin("" if line.seconds is not None else line)
            if line.seconds is not None:
                self._print(line)
        elif line.seconds is None:
            self._forget()
            self._print(line)
        else:
            self._print(f"  {line.name} took {line.seconds:,.1f} s")  # not the line of its beginning once more

    def stepped(self, step: Step) -> None:
        """What a step of training did, to be shown with how far it is: comes before `progress`."""
        self._line = self._figures.line(step)

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` of something that the current stage does."""
        if self._quiet:
            return
        begins = what != self._what
        if begins:
            self._close()
            self._what, self._pace = what, Pace()
        seconds = self._pace.left(done, total)
        left = "" if seconds is None else f"left {clock(seconds)}"
        if self._living:
            if self._task is None:
                self._task = self._bar.add_task(what, left=left)
            self._bar.figures = f"{done:,} of {total:,}  {self._line}" if self._line else ""
            self._bar.update(self._task, completed=done, total=total, left=left)
        elif begins or time.monotonic() - self._last > PLAIN_SECONDS:
            self._last = time.monotonic()
            self._print("  ".join(part for part in (f"  {what} {done} of {total}", self._line, left) if part))

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _close(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task, self._bar.figures = None, ""

    def _forget(self) -> None:
        self._close()
        self._what, self._line = "", ""
        self._figures, self._pace = Figures(), Pace()


class _Bar(Progress):
    """With the stage and its seconds above, and below a line of figures, which a terminal of 80 columns has no room for beside it."""

    figures = ""
    stage = ""
    _began = 0.0

    def begin(self, stage: str) -> None:
        """Show a stage from now on; none where it has no name."""
        self.stage, self._began = stage, time.monotonic()
        self.refresh()  # a line that is printed next is printed above this

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.stage:
            yield Text(f"{self.stage}  {time.monotonic() - self._began:,.0f} s", no_wrap=True, overflow="ellipsis")
        yield from super().get_renderables()
        if self.figures:
            yield Text(f"  {self.figures}", no_wrap=True, overflow="ellipsis")
