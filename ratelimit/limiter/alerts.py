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

from ratelimit.clock import instant
from ratelimit.decision import QuotaState
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.names import Key
from ratelimit.quota import Quota

MAX_WAITING: Final = 1000
_FINISH_S: Final = 10.0

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

    def __init__(self, hook: AlertHook | None) -> None:
        self.dropped = 0
        """Alerts not raised because `MAX_WAITING` others were still being handled."""
        self._hook = hook
        self._tasks: set[asyncio.Task[None]] = set()

    def spent(self, compiled: CompiledPolicy, key: Key, now: int, amount: int, states: tuple[QuotaState, ...]) -> None:
        """A write has just spent `amount` and left the quotas in these states."""
        if self._hook is None:
            return
        for place, threshold, least in compiled.alert_points:
            state = states[place]
            if state.used - amount < least <= state.used:
                self._raise(Alert(key.user, key.action, threshold, state.quota, state.used, instant(now)))

    async def finish(self) -> None:
        """Returns when every hook has, or after 10 s; those still at it then are cancelled, and count as dropped."""
        self.forget(asyncio.get_running_loop())
        if not self._tasks:
            return
        _, late = await asyncio.wait(set(self._tasks), timeout=_FINISH_S)
        if late:
            self.dropped += len(late)
            logger.warning("%d alerts were still being handled at the end; they are dropped", len(late))
            for task in late:
                task.cancel()
            await asyncio.wait(late)

    def forget(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Forget what was under way in other loops: it does not end any more."""
        self._tasks.difference_update([task for task in self._tasks if task.get_loop() is not loop])

    def _raise(self, alert: Alert) -> None:
        if len(self._tasks) >= MAX_WAITING:
            self.dropped += 1
            return
        task = asyncio.create_task(self._call(alert))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, alert: Alert) -> None:
        assert self._hook is not None
        try:
            answer = self._hook(alert)
            if isawaitable(answer):
                await answer
        except Exception:
            logger.exception("the alert hook failed for %s of %s", alert.threshold, alert.action)
