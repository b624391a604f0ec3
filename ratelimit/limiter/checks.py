"""`Checks`: how one check is answered. At once where that is possible, else by the store, else by the standby."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import msgspec

from ratelimit.algorithms import Taken
from ratelimit.clock import Clock, seconds
from ratelimit.decision import Decision
from ratelimit.errors import StoreUnavailable
from ratelimit.limiter.background import Background
from ratelimit.limiter.batching import Coalescer
from ratelimit.limiter.compiled_policy import Planner, Planners
from ratelimit.limiter.counters import Advance, Ledger
from ratelimit.limiter.deadline import Guard, closed
from ratelimit.limiter.fallback import Standby
from ratelimit.limiter.leasing import Leases
from ratelimit.limiter.stats import LimiterStats
from ratelimit.names import Key

Observer: TypeAlias = Callable[[Decision, float], None]
"""Told of each decision of a check, and of the seconds it took."""


class Checks:
    """On a store that can fail, behind a `guard`; on the embedded one, where there is none, straight on the ledger:
    that one answers at once, so there is nothing to guard and nothing to coalesce."""

    def __init__(
        self,
        planners: Planners,
        ledger: Ledger,
        standby: Standby,
        guard: Guard | None,
        clock: Clock,
        deadline: float,
    ) -> None:
        self.closed = False
        self.observer: Observer | None = None
        self.stats = LimiterStats()
        self.background = Background()
        self.leases = Leases(ledger, self._take, self._give_back, self.background, clock)
        self._planners = planners
        self._ledger = ledger
        self._standby = standby
        self._clock = clock
        self._guard = guard
        self._loop: asyncio.AbstractEventLoop | None = None
        self.coalescer = None if guard is None else Coalescer(self._spend_many, clock, deadline)

    def entered(self) -> AbstractContextManager[object]:
        """Return `guarded()` for a verb that somebody asks for. Raises `LimiterClosed`."""
        if self.closed:
            raise closed()
        return self.guarded()

    def reopen(self) -> None:
        """Take checks again."""
        self.closed = False
        if self._guard is not None:
            self._guard.closed = False

    def leave_alone(self) -> None:
        """Nothing reaches the store any more."""
        if self._guard is not None:
            self._guard.closed = True

    def forked(self) -> bool:
        """This process is a copy: what is under way and what is held belong to the other. Whether anything was."""
        used = bool(self._loop) or not self.leases.is_empty
        self._loop = None
        self.leases.forget()
        self.background.forget(None)
        if self._guard is not None:
            self._guard.breaker.abandoned()
        return used

    def guarded(self) -> AbstractContextManager[object]:
        """A context for one call of the store. May raise `StoreUnavailable`."""
        return nullcontext() if self._guard is None else self._guard.call()

    async def finish(self) -> None:
        """Return when the checks under way by now have their answers, which the deadline sees to."""
        if self.coalescer is not None and self._guard is not None:
            await self.coalescer.finish()
            await self._guard.finish()

    async def check(self, key: Key, cost: int, planner: Planner | None = None) -> Decision:
        """See `Limiter.check`, whose arguments are known to be good ones here. Without a `planner`, by the quotas that
        the action has for this user. Raises `UnknownAction`."""
        if self.closed:
            raise closed()
        if planner is None:
            planner = self._planners.named.get(key.action)
        if planner is None:
            planner = await self._planners.of(key, None, None)
        now = self._clock.now()
        decision = self._at_once(planner, key, now, cost)
        if decision is None:
            try:
                decision = await self._spend(planner, key, now, cost)
            except StoreUnavailable:
                decision = None
        if decision is None:
            decision = await self._standby.check(planner, key, now, cost)
        if not decision.allowed:
            decision = in_mode(planner, decision)
        if self.observer is not None:
            self.observer(decision, seconds(max(0, self._clock.now() - now)))
        return decision

    def _at_once(self, planner: Planner, key: Key, now: int, cost: int) -> Decision | None:
        """The decision that does not have to wait for the store, if there is one."""
        most = planner.most
        if most is None:
            return self._count_behind(planner, key, now, cost)
        if cost > most:
            return self._ledger.too_large(planner, key, now, cost)
        if planner.lease is not None:
            granted = self.leases.grant(planner, key, now, cost)
            if granted is not None:
                self.stats.leased += 1
                return granted
            if self.leases.held(planner, key, now):
                return None
        refusal = self._ledger.known_refusal(planner, key, now, cost)
        if refusal is not None:
            self.stats.denials_cached += 1
        return refusal

    def _count_behind(self, planner: Planner, key: Key, now: int, cost: int) -> Decision | None:
        """Where there is no limit the answer is known, and is counted behind it."""
        if self._guard is None or self.background.is_full:
            return None
        self.background.start(self._spend(planner, key, now, cost), units=cost, or_else="uncounted")
        return Decision(
            allowed=True, policy=planner.policy.name, cost=cost, quotas=(), at_us=now, user=key.user, spent=cost
        )

    async def _spend(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        coalescer = self.coalescer
        if coalescer is None:
            return await self._spend_one(planner, key, now, cost)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._enter(loop, coalescer)
        course = (key, planner)
        if coalescer.is_taken(course):
            return await coalescer.join(course, cost)
        coalescer.take_off(course)
        try:
            return await self._spend_one(planner, key, now, cost)
        finally:
            coalescer.land(course)

    def _enter(self, loop: asyncio.AbstractEventLoop, coalescer: Coalescer) -> None:
        """From another loop than before, which is over: nothing that was under way there will come back."""
        self._loop = loop
        coalescer.forget(loop)
        self.background.forget(loop)

    async def _spend_one(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        if planner.lease is not None:
            return (await self.leases.spend(planner, key, now, (cost,)))[0]
        if self._guard is None:
            return await self._ledger.spend_one(planner, key, now, cost)
        with self._guard.call():
            return await self._ledger.spend_one(planner, key, now, cost)

    async def _spend_many(self, planner: Planner, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        self.stats.coalesced += len(costs)
        if planner.lease is not None:
            return await self.leases.spend(planner, key, now, costs)
        return await self._take(planner, key, now, costs)

    async def _take(
        self, planner: Planner, key: Key, now: int, costs: Sequence[int], advance: Advance | None = None
    ) -> list[Decision]:
        with self.guarded():
            return await self._ledger.spend(planner, key, now, costs, advance)

    async def _give_back(self, planner: Planner, key: Key, units: int, at: int) -> None:
        with self.guarded():
            await self._ledger.refund(planner, key, self._clock.now(), units, Taken(at, units))


def in_mode(planner: Planner, refusal: Decision) -> Decision:
    """A refusal as its policy means it: in shadow mode it is only noted."""
    if planner.policy.mode == "enforce":
        return refusal
    return msgspec.structs.replace(refusal, allowed=True, retry_after=0.0, shadow_denied=True)
