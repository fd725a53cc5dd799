"""Ctrl-C and SIGTERM while something must come to a whole step first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Asked:
    """Whether somebody asked to stop, and by which signal."""

    number: int | None = None


@contextmanager
def deferred() -> Iterator[Asked]:
    """In here the first signal is only noted; it takes its course when the block ends, and a second one does so at once.

    Signals reach the main thread alone: elsewhere nothing is deferred.
    """
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, _: FrameType | None) -> None:
        asked.number = number
        restore()

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield asked
    finally:
        restore()
    if asked.number is not None:
        signal.raise_signal(asked.number)


def raising() -> None:
    """From now on SIGTERM ends the program as Ctrl-C does, by an exception, so that what is half done is put away."""

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
