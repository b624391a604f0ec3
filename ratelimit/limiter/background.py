"""What goes on behind answers: writes that none waits for, and alerts.

The writes count where there is no limit, return what was taken ahead, and clean up. Of alerts a hook hears when a
user's usage of a quota passes a part of its limit. Counts of a fixed window only grow, and each write knows the count
it left behind, so of all processes exactly one write passes a threshold, and exactly one alert is raised per window and
threshold. (After a refund or a reset it may be passed again; and a write whose answer was lost passes it unheard.)
Sliding windows and buckets drain continuously: there, each passing upwards is an alert.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from inspect import isawaitable
from typing import Final, Literal, TypeAlias

import msgspec

from ratelimit.blocking import Deferred
from ratelimit.clock import instant
from ratelimit.decision import QuotaState
from ratelimit.errors import StoreUnavailable
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.names import Key
from ratelimit.quota import Quota
from ratelimit.tasks import Tasks

MAX_BACKGROUND_WRITES: Final = 10_000
MAX_PENDING_ALERTS: Final = 1000
_DRAIN_TIMEOUT_S: Final = 10.0

Loss: TypeAlias = Literal["uncounted", "unreturned"]

logger = logging.getLogger("ratelimit")


@dataclass(slots=True)
class LimiterStats:
    """What a limiter has spared the store since it was made, and what it has lost."""

    denials_cached: int = 0
    """Checks refused by what the store had said a moment before."""
    leased: int = 0
    """Checks granted from units taken ahead."""
    coalesced: int = 0
    """Checks that went out together with others."""
    alerts_dropped: int = 0
    """Alerts not raised because too many others were still being handled."""
    lost: Counter[Loss] = field(default_factory=Counter)
    """Units that the store did not take: `uncounted` are missing from the totals of users without a limit,
    `unreturned` were taken ahead, or for an answer that does not count, and stay spent."""


class BackgroundWrites:
    """Writes under way, at most `MAX_BACKGROUND_WRITES`. Each is bounded by the limiter's deadline."""

    def __init__(self, stats: LimiterStats, tasks: Tasks | Deferred) -> None:
        self.stats = stats
        self.tasks = tasks

    def start(self, write: Awaitable[object], *, units: int = 0, loss: Loss | None = None) -> None:
        """See the write through, whoever asked for it having gone on. Without a `loss`, nobody misses what fails."""
        self.tasks.start(self.see_through(write, units, loss))

    async def see_through(self, write: Awaitable[object], units: int, loss: Loss | None) -> None:
        try:
            await write
        except StoreUnavailable as error:
            if loss is None:
                return
            if not self.stats.lost[loss]:
                logger.warning("units are %s: %s", loss, error)
            self.stats.lost[loss] += units


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

    def forget(self) -> None:
        self._tasks.forget(None)

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
