"""Fixed window: at most `limit` units in each window, windows aligned to UTC. The one that people expect of `5/day`."""

from __future__ import annotations

from ratelimit.algorithms.base import Ops, Taken, give_back
from ratelimit.algorithms.fields import window_field
from ratelimit.clock import SECOND
from ratelimit.decision import QuotaState
from ratelimit.quota import Quota
from ratelimit.store.base import Add, Record

_MAX_KEPT_COSTS = 64


class FixedWindow:
    """A quota by fixed windows. Adds commute, so that racers on one counter never get in each other's way."""

    __slots__ = ("_end", "_field", "_ops", "_start", "lasts", "max_cost", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.max_cost = quota.limit
        self.lasts = 0
        self._start = self._end = 0
        self._field = ""
        self._ops: dict[int, Ops] = {}

    def spend(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops | None:
        if not self._start <= now < self._end:
            self._turn_to(now)
        if record.get(self._field, 0) + cost > self.max_cost:
            return None
        ops = self._ops.get(cost)
        if ops is None:
            if len(self._ops) >= _MAX_KEPT_COSTS:
                self._ops.clear()
            ops = self._ops[cost] = (Add(self._field, cost, self.max_cost),)
        return ops

    def charge(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops:
        self._turn_to(now)
        return (Add(self._field, cost),)

    def refund(self, now: int, cost: int, record: Record | None, taken: Taken, position: int) -> Ops:
        self._turn_to(taken.at)
        return give_back(self._field, cost, record, taken)

    def state(self, now: int, cost: int, record: Record) -> QuotaState:
        if not self._start <= now < self._end:
            self._turn_to(now)
        used = record.get(self._field, 0)
        left = self.max_cost - used
        ends = (self._end - now) / SECOND
        if left >= cost:
            retry_after: float | None = 0.0
        else:
            retry_after = None if cost > self.max_cost else ends
        return QuotaState(self.quota, used, left if left > 0 else 0, ends, retry_after)

    def _turn_to(self, now: int) -> None:
        if self._start <= now < self._end:
            return
        span = self.quota.window.span(now)
        self._start, self._end = span.start, span.end
        self._field = window_field(self.quota.window, span.index)
        self._ops.clear()
