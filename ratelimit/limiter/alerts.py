"""Threshold alerts: a hook hears when a user's usage of a quota passes a part of its limit.

Counts of a fixed window only grow, and each write knows the count it left behind, so of all processes exactly one write
passes a threshold, and exactly one alert is raised per window and threshold. (After a refund or a reset it may be
passed again; and a write whose answer was lost passes it unheard.) Sliding windows and buckets drain continuously:
there, each passing upwards is an alert.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from inspect import isawaitable
from typing import Final, TypeAlias

import msgspec

from ratelimit.blocking import Deferred
from ratelimit.clock import instant
from ratelimit.decision import QuotaState
from ratelimit.limiter.background import LimiterStats
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.names import Key
from ratelimit.quota import Quota
from ratelimit.tasks import Tasks

MAX_PENDING_ALERTS: Final = 1000
_DRAIN_TIMEOUT_S: Final = 10.0

logger = logging.getLogger("ratelimit")


class Alert(msgspec.Struct, frozen=True):
    """Usage has reached `threshold * quota.limit`."""

    user: str
    action: str
    threshold: float
    quota: Quota
    used: int
    at: datetime
    """When it was reached (UTC)."""


AlertHook: TypeAlias = Callable[[Alert], Awaitable[None] | None]


class Alerts:
    """Calls the hook, sync or async, out of the way of the check; what it raises is logged and goes no further."""

    def __init__(self, hook: AlertHook, stats: LimiterStats, tasks: Tasks | Deferred) -> None:
        self._hook = hook
        self._stats = stats
        self._tasks = tasks

    def observe(
        self, compiled: CompiledPolicy, key: Key, now: int, amount: int, states: tuple[QuotaState, ...]
    ) -> None:
        """Raise the alerts of a write that has just spent `amount` and left the quotas in these states."""
        for place, threshold, least in compiled.alert_points:
            state = states[place]
            if state.used - amount < least <= state.used:
                self._raise(Alert(key.user, key.action, threshold, state.quota, state.used, instant(now)))

    async def drain(self) -> None:
        """Return when every hook has, or after 10 s; those still at it then are cancelled, and count as dropped."""
        late = await self._tasks.drain(_DRAIN_TIMEOUT_S, cancel=True)
        if late:
            self._stats.alerts_dropped += late
            logger.warning("%d alerts were still being handled at the end; they are dropped", late)

    def forget(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Forget what was under way in other loops: it does not end any more."""
        self._tasks.forget(loop)

    def _raise(self, alert: Alert) -> None:
        if self._tasks.is_full:
            self._stats.alerts_dropped += 1
        else:
            self._tasks.start(self._call(alert))

    async def _call(self, alert: Alert) -> None:
        try:
            answer = self._hook(alert)
            if isawaitable(answer):
                await answer
        except Exception:
            logger.exception("the alert hook failed for %s of %s", alert.threshold, alert.action)
