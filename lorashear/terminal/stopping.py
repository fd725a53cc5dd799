"""Ctrl-C and SIGTERM while something must come to a whole step first."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


ONCE = 1.0  # seconds in which signals are one: a terminal sends it to all processes, and a launcher hands it on to them


class Asked:
    """Notes the first of `SIGNALS` that comes, but for those that are ignored; a second one takes its course at once, unless it
    comes along with the first."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._noted = 0.0
        before = {number: signal.getsignal(number) for number in SIGNALS}
        # Ctrl-C is ignored in a program that a shell started in the background.
        self._before = {number: found for number, found in before.items() if found not in (signal.SIG_IGN, None)}

    def watch(self) -> None:
        """From here on."""
        for number in self._before:
            signal.signal(number, self._note)

    def leave(self) -> None:
        """As it was."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def act(self) -> None:
        """The signal that came takes its course now; where it was handled by going on, the next is waited for."""
        number, self.number = self.number, None
        if number is not None:
            self.leave()
            signal.raise_signal(number)
            self.watch()

    def _note(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._noted = number, now
        elif now - self._noted > ONCE:
            self.leave()
            signal.raise_signal(number)


@contextmanager
def deferred() -> Iterator[Asked]:
    """In here a signal waits until it is acted on, at the latest at the end.

    Signals reach the main thread alone: elsewhere nothing waits.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    asked.watch()
    try:
        yield asked
    finally:
        asked.leave()
    asked.act()
    asked.leave()


def raising() -> None:
    """From now on SIGTERM ends the program as Ctrl-C does, by an exception, so that what is half done is put away."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
