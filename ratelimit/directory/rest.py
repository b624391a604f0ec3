"""`Rest`: a store that keeps failing is left alone for a while, so that it costs microseconds and not a deadline."""

from __future__ import annotations

from typing import Final

from ratelimit.clock import SECOND

FAILURES: Final = 3
SHORTEST: Final = 1 * SECOND
LONGEST: Final = 30 * SECOND


class Rest:
    """After `FAILURES` in a row nothing is asked for a second; each failure after that doubles the rest.

    Time is an argument, in microseconds. A clock that steps back cannot make a rest longer than it was meant to be.
    """

    __slots__ = ("_failed", "_length", "_until")

    def __init__(self) -> None:
        self._failed = 0
        self._length = 0
        self._until = 0

    def resting(self, now: int) -> bool:
        """Whether the store is to be left alone now."""
        return 0 < self._until - now <= self._length

    def failed(self, now: int) -> bool:
        """The store did not answer. True where this is what begins the first rest."""
        self._failed += 1
        if self._failed < FAILURES or self.resting(now):
            return False
        first = self._length == 0
        self._length = SHORTEST if first else min(2 * self._length, LONGEST)
        self._until = now + self._length
        return first

    def succeeded(self) -> bool:
        """The store answered. True where it had been at rest."""
        rested = self._length > 0
        self._failed = self._length = self._until = 0
        return rested
