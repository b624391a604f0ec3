"""Concurrency: at most `limit` slots at the same time, each given back when what it was taken for has ended.

The record has one counter of the slots in use, to which a slot is added only where there is room. When one that nobody
gives back is over stands in a field beside it (see `limiter/holding.py`). Of what a request costs it knows nothing.
"""

from __future__ import annotations

from typing import Final

from ratelimit.algorithms.base import Ops, Taken
from ratelimit.algorithms.fields import SLOTS
from ratelimit.decision import QuotaState
from ratelimit.quota import MAX_LIMIT, Quota
from ratelimit.store.base import Add, Record

RETRY_AFTER_S: Final = 1.0
"""When a slot will be free cannot be known: whoever finds none is told to ask again so soon."""


class Concurrency:
    """A quota of slots."""

    __slots__ = ("_ops", "lasts", "max_cost", "quota")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.max_cost = MAX_LIMIT if quota.limit else 0
        self.lasts = 0
        self._ops: Ops = (Add(SLOTS, 1, quota.limit),)

    def spend(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops | None:
        return self._ops if record.get(SLOTS, 0) < self.quota.limit else None

    def charge(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops:
        """Nothing that is owed afterwards takes a slot."""
        return ()

    def renew(self, now: int, record: Record) -> Ops:
        """A counter knows of no limit."""
        return ()

    def refund(self, now: int, cost: int, record: Record | None, taken: Taken, position: int) -> Ops:
        """A slot goes back with what holds it, not with units."""
        return ()

    def state(self, now: int, cost: int, record: Record) -> QuotaState:
        used = max(0, record.get(SLOTS, 0))
        left = max(0, self.quota.limit - used)
        retry_after = 0.0 if left else RETRY_AFTER_S if self.quota.limit else None
        return QuotaState(self.quota, used, left, 0.0, retry_after)
