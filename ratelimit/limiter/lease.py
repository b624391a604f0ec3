"""`Lease`: the units that a process holds of one key, and how many it is wise to take ahead."""

from __future__ import annotations

from typing import Final

from ratelimit.clock import SECOND
from ratelimit.limiter.ledger import Advance

# "auto" takes at least what it expects to be asked for in this long; a throttled write doubles it, up to the most.
AHEAD: Final = SECOND // 10
MAX_AHEAD: Final = 5 * SECOND
# What a process takes ahead is at most one unit in so many of those that are left.
SHARE: Final = 4
# "auto" does not know yet what everybody takes, on the first writes of a key: then it takes what it is asked for itself
# in this long, at most one unit in so many of those that are left, since any number of processes may do the same.
AHEAD_ALONE: Final = SECOND
SHARE_ALONE: Final = 200
# "auto" aims at this many writes of one item a second, by all processes together: half of what DynamoDB takes.
WRITES: Final = 500


class Lease:
    """Units held for one user, action and its quotas, good from `start` until `end` (microseconds)."""

    __slots__ = (
        "_ahead", "_counted", "_counted_at", "_everybody", "_own", "_since",
        "asked", "end", "start", "taken_at", "units", "used_at",
    )  # fmt: skip

    def __init__(self, now: int) -> None:
        self.units = 0
        self.asked = 0
        """Units asked of this process since it last measured, granted or not: a throttled process needs them too."""
        self.start = self.end = 0
        self.taken_at = self.used_at = now
        self._ahead = AHEAD
        self._since = now
        self._own = 0
        self._everybody = 0
        self._counted: int | None = None
        self._counted_at = now

    def advance(self, lease: int | str | None, now: int) -> Advance:
        """Everything that is held, so that nobody else grants it while it is being accounted for, and what to take:
        as much as the policy says, or by what is asked for and by what everybody takes.

        If each write takes what all processes use in 1/`WRITES` of a second, they write `WRITES` times a second,
        however many they are and however uneven their shares.
        """
        held, self.units = self.units, 0
        if isinstance(lease, int):
            return Advance(held, lease, SHARE)
        rate = self._rate(now)
        if not self._everybody:
            return Advance(held, rate * max(self._ahead, AHEAD_ALONE) // SECOND, SHARE_ALONE)
        ahead = max(rate * self._ahead // SECOND, self._everybody // WRITES)
        return Advance(held, min(ahead, rate * MAX_AHEAD // SECOND), SHARE)

    def saw(self, counted: int, now: int) -> None:
        """So many units were `counted` today by everybody; the same number as before tells of no write."""
        if counted == self._counted:
            return
        self._ahead = max(AHEAD, self._ahead * 9 // 10)
        if self._counted is None:
            self._counted, self._counted_at = counted, now
        elif not 0 <= now - self._counted_at < AHEAD:
            self._everybody = _a_second(max(0, counted - self._counted), max(AHEAD, now - self._counted_at))
            self._counted, self._counted_at = counted, now

    def throttled(self) -> None:
        """Write more seldom."""
        self._ahead = min(2 * self._ahead, MAX_AHEAD)

    def _rate(self, now: int) -> int:
        """Units a second that this process is asked for."""
        elapsed = now - self._since
        if 0 <= elapsed < AHEAD:
            return max(self._own, _a_second(self.asked, AHEAD))
        self._own = _a_second(self.asked, max(AHEAD, elapsed))
        self._since, self.asked = now, 0
        return self._own


def _a_second(units: int, elapsed: int) -> int:
    return units * SECOND // elapsed
