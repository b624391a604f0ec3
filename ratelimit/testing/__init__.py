"""What tests of your own need: a clock that only you turn. Use it with `MemoryStore`, and no test has to sleep."""

from __future__ import annotations

from datetime import UTC, datetime

from ratelimit.blocking import Signal, is_blocking
from ratelimit.clock import SECOND

_START = datetime(2026, 1, 5, 12, tzinfo=UTC)


class FakeClock:
    """A clock that stands still until told otherwise.

    `start` is an aware `datetime` or epoch seconds; by default noon of Monday 2026-01-05, UTC. Who waits by it
    (`limiter.wait`) goes on when `advance` has come to that moment. With `jumps`, and always in a thread that runs no
    event loop, whoever would wait turns it on instead.
    """

    def __init__(self, start: datetime | float = _START, *, jumps: bool = False) -> None:
        if isinstance(start, datetime) and start.tzinfo is None:
            raise ValueError("start must be an aware datetime: add tzinfo=UTC")
        self.jumps = jumps
        self._now = round((start.timestamp() if isinstance(start, datetime) else start) * SECOND)
        self._waiting: dict[Signal, int] = {}

    def now(self) -> int:
        """Microseconds since the epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Turn the clock on (or back, with a negative number): to the microsecond."""
        self._now += round(seconds * SECOND)
        for signal in [signal for signal, due in self._waiting.items() if due <= self._now]:
            signal.set()

    async def pause(self, seconds: float, signal: Signal) -> None:
        """Return when so many seconds have passed, or the signal is set."""
        due = self._now + round(seconds * SECOND)
        if self.jumps or is_blocking():
            self.advance((due - self._now) / SECOND)
            return
        self._waiting[signal] = due
        try:
            await signal.wait()
        finally:
            del self._waiting[signal]
