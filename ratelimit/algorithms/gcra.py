"""GCRA, the generic cell rate algorithm (ITU-T I.371): a token bucket of `burst` units, refilled evenly, in one number.

The number is the theoretical arrival time (`tat`), in nanoseconds, at which the bucket is full again. A unit moves it
one `emission_interval` (window / limit) on; it may lie at most `burst` intervals ahead of now. The interval is rounded
up to the nanosecond, so the rate is never above the quota's, and below it by at most one part in a million up to 1,000
units a second. Calendar windows refill over their longest length (a month over 31 days).
"""

from __future__ import annotations

from ratelimit.algorithms.base import Ops, Taken
from ratelimit.algorithms.fields import bucket_field
from ratelimit.clock import seconds
from ratelimit.decision import QuotaState
from ratelimit.quota import Quota
from ratelimit.store.write import Add, Expect, Put, Record

_NANOSECONDS = 1000


class Gcra:
    """See `Rule`."""

    __slots__ = ("_capacity", "_emission_interval", "_field", "most", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.most = 0 if quota.limit == 0 else quota.burst or quota.limit
        self._field = bucket_field(quota.window)
        self._emission_interval = -(-quota.window.longest * _NANOSECONDS // max(1, quota.limit))
        self._capacity = self.most * self._emission_interval

    def spend(self, now: int, cost: int, belief: Record) -> Ops | None:
        """See `Rule.spend`."""
        now *= _NANOSECONDS
        increment = cost * self._emission_interval
        latest = now + self._capacity - increment
        tat = belief.get(self._field)
        if tat is None or tat < now:
            return self._start(now, increment) if cost <= self.most else None
        if tat > latest:
            return None
        return Expect(self._field, low=now, high=latest), Add(self._field, increment)

    def charge(self, now: int, cost: int, belief: Record) -> Ops:
        """See `Rule.charge`."""
        now *= _NANOSECONDS
        increment = cost * self._emission_interval
        tat = belief.get(self._field)
        if tat is None or tat < now:
            return self._start(now, increment)
        return Expect(self._field, low=now), Add(self._field, increment)

    def refund(self, now: int, cost: int, record: Record | None, taken: Taken, position: int) -> Ops:
        """See `Rule.refund`. A bucket that has filled up since then stays full: `tat` in the past means just that."""
        if record is not None and record.get(self._field, 0) <= now * _NANOSECONDS:
            return ()
        return Expect(self._field, low=0), Add(self._field, -cost * self._emission_interval)

    def state(self, now: int, cost: int, record: Record) -> QuotaState:
        """See `Rule.state`."""
        ahead = max(0, record.get(self._field, 0) - now * _NANOSECONDS)
        used = -(-ahead // self._emission_interval)
        excess = ahead + cost * self._emission_interval - self._capacity
        retry_after = None if cost > self.most else _seconds(max(0, excess))
        remaining = max(0, self._capacity - ahead) // self._emission_interval
        return QuotaState(self.quota, used, remaining, _seconds(ahead), retry_after)

    def _start(self, now: int, increment: int) -> Ops:
        """The first spending from a full bucket: nobody else may have begun in the meantime."""
        return Expect(self._field, high=now - 1, or_missing=True), Put(self._field, now + increment)


def _seconds(nanoseconds: int) -> float:
    """Rounded up to the microsecond, so that waiting this long is always enough."""
    return seconds(-(-nanoseconds // _NANOSECONDS))
