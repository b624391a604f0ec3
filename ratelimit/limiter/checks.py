"""`Checks`: how one check is answered. At once where that is possible, else by the store, else by the fallback."""

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
from ratelimit.limiter.compiled_policy import CompiledPolicy, PolicyResolver
from ratelimit.limiter.counters import Counters, Prefetch
from ratelimit.limiter.deadline import CircuitBreaker, closed
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.leasing import Leases
from ratelimit.limiter.stats import LimiterStats
from ratelimit.names import Key

Observer: TypeAlias = Callable[[Decision, float], None]
"""Told of each decision of a check, and of the seconds it took."""


class Checks:
    """On a store that can fail, behind a `circuit`; on the embedded one, where there is none, straight on the counters:
    that one answers at once, so there is nothing to circuit and nothing to coalesce."""

    def __init__(
        self,
        resolver: PolicyResolver,
        counters: Counters,
        fallback: Fallback,
        circuit: CircuitBreaker | None,
        clock: Clock,
        deadline: float,
    ) -> None:
        self.closed = False
        self.observer: Observer | None = None
        self.stats = LimiterStats()
        self.background = Background()
        self.leases = Leases(counters, self._take, self._give_back, self.background, clock)
        self._resolver = resolver
        self._counters = counters
        self._fallback = fallback
        self._clock = clock
        self._circuit = circuit
        self._loop: asyncio.AbstractEventLoop | None = None
        self.coalescer = None if circuit is None else Coalescer(self._spend_many, clock, deadline)

    def entered(self) -> AbstractContextManager[object]:
        """Return `guarded()` for a verb that somebody asks for. Raises `LimiterClosed`."""
        if self.closed:
            raise closed()
        return self.guarded()

    def reopen(self) -> None:
        """Take checks again."""
        self.closed = False
        if self._circuit is not None:
            self._circuit.closed = False

    def leave_alone(self) -> None:
        """Nothing reaches the store any more."""
        if self._circuit is not None:
            self._circuit.closed = True

    def forked(self) -> bool:
        """This process is a copy: what is under way and what is held belong to the other. Whether anything was."""
        used = bool(self._loop) or not self.leases.is_empty
        self._loop = None
        self.leases.forget()
        self.background.forget(None)
        if self._circuit is not None:
            self._circuit.breaker.abandoned()
        return used

    def guarded(self) -> AbstractContextManager[object]:
        """A context for one call of the store. May raise `StoreUnavailable`."""
        return nullcontext() if self._circuit is None else self._circuit.call()

    async def finish(self) -> None:
        """Return when the checks under way by now have their answers, which the deadline sees to."""
        if self.coalescer is not None and self._circuit is not None:
            await self.coalescer.finish()
            await self._circuit.finish()

    async def check(self, key: Key, cost: int, compiled: CompiledPolicy | None = None) -> Decision:
        """See `Limiter.check`, whose arguments are known to be good ones here. Without a `compiled`, by the quotas that
        the action has for this user. Raises `UnknownAction`."""
        if self.closed:
            raise closed()
        if compiled is None:
            compiled = self._resolver.named.get(key.action)
        if compiled is None:
            compiled = await self._resolver.of(key, None, None)
        now = self._clock.now()
        decision = self._at_once(compiled, key, now, cost)
        if decision is None:
            try:
                decision = await self._spend(compiled, key, now, cost)
            except StoreUnavailable:
                decision = None
        if decision is None:
            decision = await self._fallback.check(compiled, key, now, cost)
        if not decision.allowed:
            decision = in_mode(compiled, decision)
        if self.observer is not None:
            self.observer(decision, seconds(max(0, self._clock.now() - now)))
        return decision

    def _at_once(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision | None:
        """The decision that does not have to wait for the store, if there is one."""
        most = compiled.max_cost
        if most is None:
            return self._count_behind(compiled, key, now, cost)
        if cost > most:
            return self._counters.too_large(compiled, key, now, cost)
        if compiled.lease is not None:
            granted = self.leases.grant(compiled, key, now, cost)
            if granted is not None:
                self.stats.leased += 1
                return granted
            if self.leases.held(compiled, key, now):
                return None
        refusal = self._counters.known_refusal(compiled, key, now, cost)
        if refusal is not None:
            self.stats.denials_cached += 1
        return refusal

    def _count_behind(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision | None:
        """Where there is no limit the answer is known, and is counted behind it."""
        if self._circuit is None or self.background.is_full:
            return None
        self.background.start(self._spend(compiled, key, now, cost), units=cost, or_else="uncounted")
        return Decision(
            allowed=True, policy=compiled.policy.name, cost=cost, quotas=(), at_us=now, user=key.user, spent=cost
        )

    async def _spend(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        coalescer = self.coalescer
        if coalescer is None:
            return await self._spend_one(compiled, key, now, cost)
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._enter(loop, coalescer)
        batch_key = (key, compiled)
        if coalescer.is_writing(batch_key):
            return await coalescer.enqueue(batch_key, cost)
        coalescer.begin(batch_key)
        try:
            return await self._spend_one(compiled, key, now, cost)
        finally:
            coalescer.end(batch_key)

    def _enter(self, loop: asyncio.AbstractEventLoop, coalescer: Coalescer) -> None:
        """From another loop than before, which is over: nothing that was under way there will come back."""
        self._loop = loop
        coalescer.forget(loop)
        self.background.forget(loop)

    async def _spend_one(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        if compiled.lease is not None:
            return (await self.leases.spend(compiled, key, now, (cost,)))[0]
        if self._circuit is None:
            return await self._counters.spend_one(compiled, key, now, cost)
        with self._circuit.call():
            return await self._counters.spend_one(compiled, key, now, cost)

    async def _spend_many(self, compiled: CompiledPolicy, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        self.stats.coalesced += len(costs)
        if compiled.lease is not None:
            return await self.leases.spend(compiled, key, now, costs)
        return await self._take(compiled, key, now, costs)

    async def _take(
        self, compiled: CompiledPolicy, key: Key, now: int, costs: Sequence[int], prefetch: Prefetch | None = None
    ) -> list[Decision]:
        with self.guarded():
            return await self._counters.spend(compiled, key, now, costs, prefetch)

    async def _give_back(self, compiled: CompiledPolicy, key: Key, units: int, at: int) -> None:
        with self.guarded():
            await self._counters.refund(compiled, key, self._clock.now(), units, Taken(at, units))


def in_mode(compiled: CompiledPolicy, refusal: Decision) -> Decision:
    """A refusal as its policy means it: in shadow mode it is only noted."""
    if compiled.policy.mode == "enforce":
        return refusal
    return msgspec.structs.replace(refusal, allowed=True, retry_after=0.0, shadow_denied=True)
