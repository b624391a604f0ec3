"""`Pace`: so many write units a second, and no more."""

from __future__ import annotations

import asyncio
from typing import Final

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.errors import InvalidInput
from ratelimit.usage.writer import Sleep

# A pause of the store is made up for, but only of this many microseconds: a table is not to be flooded afterwards.
_CATCH_UP: Final = SECOND // 2


class Pace:
    """Units are due one after the other, `rate` of them a second; None does not wait at all."""

    def __init__(self, rate: float | None, *, clock: Clock | None = None, sleep: Sleep = asyncio.sleep) -> None:
        if rate is not None and not 0 < rate <= 1_000_000:
            raise InvalidInput(f"--rate must be write units a second, above 0, not {rate!r}")
        self.rate = rate
        self._clock = clock or SystemClock()
        self._sleep = sleep
        self._due = 0.0

    async def take(self, units: float) -> None:
        """Returns when it is their turn."""
        if self.rate is None:
            return
        now = self._clock.now()
        turn = max(self._due, now - _CATCH_UP) if self._due else float(now)
        self._due = turn + units / self.rate * SECOND
        if turn > now:
            await self._sleep((turn - now) / SECOND)
