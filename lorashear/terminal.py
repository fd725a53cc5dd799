"""What a person sees of a long run: stages as lines, and how far the current one is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn
from rich.text import Text

from lorashear.figures import Figures
from lorashear.pace import Pace, clock

if TYPE_CHECKING:
    from lorashear.training import Step

PLAIN_SECONDS = 5.0  # between two progress lines where there is no terminal


class Terminal:
    """Writes to stderr: a bar on a terminal; else a plain line when something begins, and now and then, for log files."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
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
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:  # stopping prints an empty line elsewhere
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line that stays; what is told after it is of something new."""
        self._close()
        self._forget()
        self._print(line)

    def stepped(self, step: Step) -> None:
        """What a step of training did, to be shown with how far it is: comes before `progress`."""
        self._line = self._figures.line(step)

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` of something that the current stage does."""
        begins = what != self._what
        if begins:
            self._close()
            self._what, self._pace = what, Pace()
        seconds = self._pace.left(done, total)
        left = "" if seconds is None else f"left {clock(seconds)}"
        if self._console.is_terminal:
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
        self._what, self._line = "", ""
        self._figures, self._pace = Figures(), Pace()


class _Bar(Progress):
    """With a line of figures below, which a terminal of 80 columns has no room for beside it."""

    figures = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.figures:
            yield Text(f"  {self.figures}", no_wrap=True, overflow="ellipsis")
