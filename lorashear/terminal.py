"""What a person sees of a long run: stages as lines, and how far the current one is."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, TaskID, TimeRemainingColumn

PLAIN_SECONDS = 5.0  # between two progress lines where there is no terminal


class Terminal:
    """Writes to stderr: a bar on a terminal; else a plain line when something begins, and now and then, for log files."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar = Progress(
            *Progress.get_default_columns()[:-1], TimeRemainingColumn(), console=self._console, transient=True
        )
        self._task: TaskID | None = None
        self._what = ""
        self._last = time.monotonic()

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
        """A line that stays."""
        self._close()
        self._console.print(line, markup=False, highlight=False)

    def progress(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` of something that the current stage does."""
        if self._console.is_terminal:
            if self._task is None or what != self._what:
                self._close()
                self._what, self._task = what, self._bar.add_task(what, total=total)
            self._bar.update(self._task, completed=done, total=total)
        elif what != self._what or time.monotonic() - self._last > PLAIN_SECONDS:
            self._what, self._last = what, time.monotonic()
            self._console.print(f"  {what} {done} of {total}", markup=False, highlight=False)

    def _close(self) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
