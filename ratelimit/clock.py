"""The one place that reads a clock. Everywhere else, time is an argument: whole microseconds since the Unix epoch."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

SECOND: Final = 1_000_000
MINUTE: Final = 60 * SECOND
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Clock(Protocol):
    """Anything that tells the time."""

    def now(self) -> int:
        """Return microseconds since the Unix epoch, UTC."""
        ...


class SystemClock:
    """The machine's wall clock: quotas follow the calendar, so a monotonic clock would not do."""

    def now(self) -> int:
        """Return microseconds since the Unix epoch, UTC."""
        return time.time_ns() // 1000 if _replaced_by is None else _replaced_by.now()


_replaced_by: Clock | None = None


def replace_system_clock(clock: Clock | None) -> None:
    """Have every `SystemClock` of this process show what this clock does; None for the machine's own. For tests."""
    global _replaced_by
    _replaced_by = clock


def real_clock(clock: Clock) -> Clock:
    """Return the clock that this one shows."""
    return clock if _replaced_by is None or not isinstance(clock, SystemClock) else _replaced_by


def instant(microseconds: int) -> datetime:
    """Return the moment as people and programs take it: an aware `datetime`, exact."""
    return _EPOCH + timedelta(microseconds=microseconds)


def since_epoch(moment: datetime) -> int:
    """Return the microseconds since the epoch of an aware `datetime`, exact."""
    return (moment - _EPOCH) // _MICROSECOND


def seconds(microseconds: int) -> float:
    """Return a span of time for people and programs: seconds, exact to the microsecond below 285 years."""
    return microseconds / SECOND
