"""The one place that reads a clock. Everywhere else, time is an argument: whole microseconds since the Unix epoch."""

from __future__ import annotations

import time
from typing import Final, Protocol

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR


class Clock(Protocol):
    """Anything that tells the time."""

    def now(self) -> int:
        """Microseconds since the Unix epoch, UTC."""
        ...


class SystemClock:
    """The machine's wall clock: quotas follow the calendar, so a monotonic clock would not do."""

    def now(self) -> int:
        """See `Clock.now`."""
        return time.time_ns() // 1000


def seconds(microseconds: int) -> float:
    """A span of time for people and programs: seconds, exact to the microsecond below 285 years."""
    return microseconds / SECOND
