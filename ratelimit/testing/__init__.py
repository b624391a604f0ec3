"""What tests of your own need: a clock that only you turn. Use it with `MemoryStore`, and no test has to sleep."""

from __future__ import annotations

from datetime import UTC, datetime

from ratelimit.clock import SECOND

_START = datetime(2026, 1, 5, 12, tzinfo=UTC)


class FakeClock:
    """A clock that stands still until told otherwise.

    `start` is an aware `datetime` or epoch seconds; by default noon of Monday 2026-01-05, UTC.
    """

    def __init__(self, start: datetime | float = _START) -> None:
        if isinstance(start, datetime) and start.tzinfo is None:
            raise ValueError("start must be an aware datetime: add tzinfo=UTC")
        self._now = round((start.timestamp() if isinstance(start, datetime) else start) * SECOND)

    def now(self) -> int:
        """Microseconds since the epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Turn the clock on (or back, with a negative number): to the microsecond."""
        self._now += round(seconds * SECOND)
