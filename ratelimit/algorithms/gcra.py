"""GCRA, the generic cell rate algorithm (ITU-T I.371): a token bucket of `burst` units, refilled evenly, in one number.

The number is the theoretical arrival time (`tat`), in nanoseconds, at which the bucket is full again. A unit moves it
one `emission_interval` (window / limit) on; it may lie at most `burst` intervals ahead of now. The interval is rounded
up to the nanosecond, so the rate is never above the quota's, and below it by at most one part in a million up to 1,000
units a second. Calendar windows refill over their longest length (a month over 31 days).

How many units the number stands for depends on the limit that it was written by, so that is a field beside it. A bucket
of another limit is converted by the first write that spends: units used stay units used. Where it keeps changing under
that write, as while processes with the old and the new limit race, it is spent from as it is.

A refund moves `tat` back by what the decision still holds: units that have flowed back since are not given back again.
Those of a decision that ended at `position` lie ahead of now by `position - now`, less what was given back since, of
which it is not known on which side of them it lay; and in any case `held * emission_interval` less the time since the
decision. So what is given back in all is a third field, and a `position` counts from it.
"""

from __future__ import annotations

from ratelimit.algorithms.base import Ops, Taken
from ratelimit.algorithms.fields import bucket_field, bucket_limit_field, bucket_returned_field
from ratelimit.clock import DAY, SECOND
from ratelimit.decision import QuotaState
from ratelimit.quota import Quota
from ratelimit.store.base import Add, Expect, Op, Put, Record

_NANOSECONDS = 1000
# How much further than cached a debt may lie by what others charge meanwhile.
_SLACK = 366 * DAY * _NANOSECONDS


class Gcra:
    """A quota as a bucket."""

    __slots__ = (
        "_counted_by_limit",
        "_emission_interval",
        "_field",
        "_limit",
        "_limit_field",
        "_longest",
        "_returned_field",
        "lasts",
        "max_cost",
        "quota",
    )

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.max_cost = 0 if quota.limit == 0 else quota.burst or quota.limit
        self._field = bucket_field(quota.window)
        self._limit_field = bucket_limit_field(quota.window)
        self._returned_field = bucket_returned_field(quota.window)
        self._limit = max(1, quota.limit)
        self._longest = quota.window.longest * _NANOSECONDS
        self._emission_interval = -(-self._longest // self._limit)
        self.lasts = self.max_cost * self._emission_interval // _NANOSECONDS
        self._counted_by_limit = Expect(self._limit_field, low=self._limit, high=self._limit)

    def spend(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops | None:
        now *= _NANOSECONDS
        tat = record.get(self._field)
        if tat is None or tat < now:
            return self._start(now, cost) if cost <= self.max_cost else None
        limit = record.get(self._limit_field, self._limit)
        interval = self._interval(limit)
        full = now + self.max_cost * interval
        if tat + cost * interval > full:
            return None
        if limit != self._limit and not contended:
            return self._convert(now, tat, limit, cost)
        return self._counted_by(limit, record), Expect(self._field, low=now), Add(self._field, cost * interval, full)

    def charge(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops:
        """Bounded, far beyond what is known: the write has to know how long the debt may last."""
        now *= _NANOSECONDS
        tat = record.get(self._field)
        if tat is None or tat < now:
            return self._start(now, cost)
        limit = record.get(self._limit_field, self._limit)
        if limit != self._limit and not contended:
            return self._convert(now, tat, limit, cost)
        increment = cost * self._interval(limit)
        add = Add(self._field, increment, tat + increment + _SLACK)
        return self._counted_by(limit, record), Expect(self._field, low=now), add

    def renew(self, now: int, record: Record) -> Ops:
        """Let a quota that has changed take effect though nothing fits; nothing where it has already. Only to a limit
        that refills faster: until then, a slower one loses nothing by waiting."""
        now *= _NANOSECONDS
        tat, limit = record.get(self._field, 0), record.get(self._limit_field, self._limit)
        return self._convert(now, tat, limit, 0) if tat >= now and limit < self._limit else ()

    def refund(self, now: int, cost: int, record: Record | None, taken: Taken, position: int) -> Ops:
        known = taken.cached if record is None else record
        limit, returned = known.get(self._limit_field, self._limit), known.get(self._returned_field, 0)
        interval = self._interval(limit)
        elapsed = max(0, now - taken.at) * _NANOSECONDS
        now *= _NANOSECONDS
        fastest = min(interval, self._emission_interval)
        of_its_own = (taken.held * fastest - elapsed) * interval // fastest
        by_position = position - returned - now if limit == self._limit else 0
        back = min(cost * interval, max(of_its_own, by_position))
        reserved = taken.reserved.get(self._field, 0)
        if record is not None:
            back = min(back, record.get(self._field, 0) - now - reserved)
        if back <= 0:
            return ()
        # Others that are given back at the same time are in the way only where it depends on them.
        most = returned if back > of_its_own else None
        tat = known.get(self._field, now)
        return (
            self._counted_by(limit, known),
            Expect(self._field, low=now + reserved + back if reserved else 0, high=max(tat, now) + _SLACK),
            Add(self._field, -back),
            Expect(self._returned_field, low=0, high=most, or_missing=True),
            Add(self._returned_field, back),
        )

    def state(self, now: int, cost: int, record: Record) -> QuotaState:
        """At the pace of the limit that the record has: a refusal changes nothing of it."""
        tat = record.get(self._field, 0)
        interval = self._interval(record.get(self._limit_field, self._limit))
        ahead = tat - now * _NANOSECONDS
        if ahead < 0:
            ahead = 0
        left = self.max_cost * interval - ahead
        excess = cost * interval - left
        retry_after = None if cost > self.max_cost else 0.0 if excess <= 0 else _seconds(excess)
        remaining = left // interval if left > 0 else 0
        position = tat + record.get(self._returned_field, 0)
        return QuotaState(self.quota, -(-ahead // interval), remaining, _seconds(ahead), retry_after, position)

    def _start(self, now: int, cost: int) -> Ops:
        """The first spending from a full bucket: nobody else may have begun in the meantime."""
        return (
            Expect(self._field, high=now - 1, or_missing=True),
            Put(self._field, now + cost * self._emission_interval, now + self.max_cost * self._emission_interval),
            Put(self._limit_field, self._limit),
        )

    def _convert(self, now: int, tat: int, limit: int, cost: int) -> Ops:
        """Count by this quota's limit from now on, if the bucket is just as it was last seen. What is ahead now
        counts as given back: no position of before means anything after."""
        ahead = -(-(tat - now) * self._emission_interval // self._interval(limit))
        return (
            Expect(self._field, low=tat, high=tat),
            Put(
                self._field, now + ahead + cost * self._emission_interval, now + self.max_cost * self._emission_interval
            ),
            Expect(self._limit_field, low=limit, high=limit),
            Put(self._limit_field, self._limit),
            Expect(self._returned_field, low=0, or_missing=True),
            Add(self._returned_field, tat - now),
        )

    def _counted_by(self, limit: int, record: Record) -> Op:
        known = self._limit_field in record
        if known and limit == self._limit:
            return self._counted_by_limit
        return Expect(self._limit_field, low=limit, high=limit, or_missing=not known)

    def _interval(self, limit: int) -> int:
        return self._emission_interval if limit == self._limit else -(-self._longest // limit)


def _seconds(nanoseconds: int) -> float:
    """Rounded up to the microsecond, so that waiting this long is always enough."""
    return -(-nanoseconds // _NANOSECONDS) / SECOND
