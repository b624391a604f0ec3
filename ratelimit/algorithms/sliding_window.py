"""Sliding window: the current window's count, and of the previous one the share that the sliding window still covers.

With windows of length `w` ending at `end`, `current + ceil(previous * (end - now) / w)` stays at or below `limit`. The
previous window no longer changes, so it is expected to be what it was last seen to be, and the current one is added to.
"""

from __future__ import annotations

from ratelimit.algorithms.base import Ops, Taken, give_back
from ratelimit.algorithms.fields import window_field
from ratelimit.clock import seconds
from ratelimit.decision import QuotaState
from ratelimit.quota import Quota, Span
from ratelimit.store.base import Add, Expect, Record

_NO_SPAN = Span(0, 0, 0)


class SlidingWindow:
    """A quota by sliding windows."""

    __slots__ = ("_current", "_previous", "_span", "lasts", "max_cost", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.max_cost = quota.limit
        self.lasts = quota.window.longest
        self._span = _NO_SPAN
        self._current = self._previous = ""

    def spend(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops | None:
        self._turn_to(now)
        previous = record.get(self._previous, 0)
        at_most = self.max_cost - self._weighted(previous, now)
        if record.get(self._current, 0) + cost > at_most:
            return None
        expected = Expect(self._previous, low=previous, high=previous, or_missing=previous == 0)
        return expected, Add(self._current, cost, at_most)

    def charge(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops:
        self._turn_to(now)
        return (Add(self._current, cost),)

    def refund(self, now: int, cost: int, record: Record | None, taken: Taken, position: int) -> Ops:
        self._turn_to(taken.at)
        return give_back(self._current, cost, record, taken)

    def state(self, now: int, cost: int, record: Record) -> QuotaState:
        self._turn_to(now)
        previous, current = record.get(self._previous, 0), record.get(self._current, 0)
        used = current + self._weighted(previous, now)
        if used + cost <= self.max_cost:
            retry_after: float | None = 0.0
        elif cost > self.max_cost:
            retry_after = None
        else:
            retry_after = seconds(self._fits_at(cost, previous, current) - now)
        empty_at = self._next_span().end if current else self._span.end if previous else now
        return QuotaState(self.quota, used, max(0, self.max_cost - used), seconds(empty_at - now), retry_after)

    def _weighted(self, previous: int, now: int) -> int:
        if not previous:
            return 0
        start, end = self._span.start, self._span.end
        return -(-previous * (end - now) // (end - start))

    def _fits_at(self, cost: int, previous: int, current: int) -> int:
        """Return the first microsecond at which `cost` fits, if nothing more is spent until then."""
        room = self.max_cost - cost - current
        if room >= 0:
            return _faded_at(self._span, previous, room)
        return _faded_at(self._next_span(), current, self.max_cost - cost)

    def _next_span(self) -> Span:
        return self.quota.window.span(self._span.end)

    def _turn_to(self, now: int) -> None:
        if not self._span.start <= now < self._span.end:
            window = self.quota.window
            self._span = window.span(now)
            self._current = window_field(window, self._span.index)
            self._previous = window_field(window, self._span.index - 1)


def _faded_at(span: Span, previous: int, room: int) -> int:
    """Return when in `span` the previous window's share has sunk to `room`: `previous * (end - t) <= room * length`."""
    if previous <= room:
        return span.start
    return span.end - room * (span.end - span.start) // previous
