"""How long something still takes, by how long its last parts took."""

from __future__ import annotations

import statistics
import time
from collections import deque

LAST = 50
"""So many measured parts count: enough for a steady figure, few enough to follow a machine that becomes busy."""


class Pace:
    """Ask it whenever some units are done. What was done before the first call, by an earlier run, says nothing of the pace."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=LAST)
        self._before: tuple[int, float] | None = None

    def left(self, done: int, total: int) -> float | None:
        """Seconds until ``total`` units are done: the median of what one took lately, which a single long pause does not
        move; None at the first call."""
        now = time.monotonic()
        if self._before and done > self._before[0]:
            self._seconds.append((now - self._before[1]) / (done - self._before[0]))
        self._before = done, now
        return statistics.median(self._seconds) * (total - done) if self._seconds else None


def clock(seconds: float) -> str:
    """As ``0:03:12``: hours, minutes, seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
