"""`Checker`: how one check is answered. At once where that is possible, else by the store, else by the fallback."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, Final, TypeAlias

import msgspec

from ratelimit.breaker import BreakerState
from ratelimit.clock import SECOND, Clock, seconds
from ratelimit.decision import Decision
from ratelimit.errors import StoreUnavailable
from ratelimit.limiter.background import BackgroundWrites
from ratelimit.limiter.batching import Coalescer
from ratelimit.limiter.compiled_policy import CachedRecord, CompiledPolicy
from ratelimit.limiter.counters import Counters, in_mode
from ratelimit.limiter.deadline import BlockingCircuit, CircuitBreaker, closed
from ratelimit.limiter.joint import JointChecker
from ratelimit.limiter.leasing import Leases
from ratelimit.limiter.policy_resolver import PolicyResolver
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.quota import QuotasLike

Observer: TypeAlias = Callable[[Decision, float], None]
"""Told of each decision of a check, and of the seconds it took."""
Answer: TypeAlias = Decision | Coroutine[Any, Any, Decision]
"""A decision, or what has to be awaited for it."""

# Seconds after which a client may ask again when the store failed just now and nothing says when it will be back.
_RETRY_AFTER_S: Final = 1.0

Verb: TypeAlias = Callable[[CompiledPolicy, Key, int, int], Awaitable[Decision]]


class Fallback:
    """Answers while the store gives none, as the policy's `on_unavailable` says.

    `counters` count in this process's memory, for `"local"`.
    """

    def __init__(self, counters: Counters, breaker: BreakerState) -> None:
        self.counters = counters
        self._breaker = breaker

    async def answer(self, verb: Verb, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        """Decide, as the policy has it; `verb` is the method of `counters` that does so for `"local"`."""
        policy = compiled.policy
        if policy.on_unavailable == "local" and policy.quotas:
            decision = await verb(compiled, key, now, cost)
            return msgspec.structs.replace(decision, reason="unavailable") if decision.allowed else decision
        denied = policy.on_unavailable == "deny" and bool(policy.quotas)
        return Decision(
            allowed=not denied,
            policy=policy.name,
            cost=cost,
            quotas=(),
            retry_after=(seconds(self._breaker.wait(now)) or _RETRY_AFTER_S) if denied else 0.0,
            reason="unavailable",
            at_us=now,
            user=key.user,
        )


class Checker:
    """A limiter's checks, and all that they leave under way.

    On a store that can fail they go through a `circuit`. On the embedded one there is none: it answers at once, so
    there is nothing to wait for and nothing to coalesce. Nor do threads coalesce: see `BlockingCircuit`.
    """

    def __init__(
        self,
        resolver: PolicyResolver,
        counters: Counters,
        fallback: Fallback,
        circuit: CircuitBreaker | None,
        clock: Clock,
        deadline: float,
        background: BackgroundWrites,
    ) -> None:
        self.observer: Observer | None = None
        self.stats = background.stats
        self.background = background
        self.leases = Leases(counters, self.store_call, self.background, clock)
        self.coalescer: Coalescer[int, Decision] | None = None
        self._blocking_circuit = circuit if isinstance(circuit, BlockingCircuit) else None
        if circuit is not None and self._blocking_circuit is None:
            self.coalescer = Coalescer(self._spend_many, clock, deadline)
        self.joint = JointChecker(self, counters, fallback, clock, deadline)
        self._closed = False
        self._resolver = resolver
        self._counters = counters
        self._fallback = fallback
        self._clock = clock
        self._circuit = circuit
        counters.on_stale = self._clean_in_background
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        self._closed = False
        if self._circuit is not None:
            self._circuit.closed = False

    async def close(self) -> None:
        """Let the checks under way have their answers, return what was taken ahead, and leave the store alone."""
        self._closed = True
        if self.coalescer is not None:
            await self.coalescer.finish()
            await self.joint.finish()
        if self._circuit is not None:
            await self._circuit.finish()
        await self.leases.close()
        await self.background.tasks.drain()
        if self._circuit is not None:
            self._circuit.closed = True

    def call(self) -> AbstractContextManager[object]:
        """Return a context for a call of the store that somebody asks for.

        Raises `LimiterClosed` and `StoreUnavailable`, as the context does.
        """
        self.check_open()
        return self.store_call()

    def check_open(self) -> None:
        """Raise `LimiterClosed` where nothing is decided any more."""
        if self._closed:
            raise closed()

    def store_call(self) -> AbstractContextManager[object]:
        """Return a context for a call of the store, also of those who were let in before it closed."""
        return nullcontext() if self._circuit is None else self._circuit.call()

    def observe(self, decisions: Sequence[Decision], since: int) -> None:
        if self.observer is not None:
            for decision in decisions:
                self.observer(decision, seconds(max(0, self._clock.now() - since)))

    def fork(self) -> bool:
        """Leave what is under way and held to the process that this one is a copy of. Return whether anything was."""
        used = bool(self._loop) or not self.leases.is_empty
        self._loop = None
        self.leases.forget()
        self.background.tasks.forget(None)
        if self._circuit is not None:
            self._circuit.forget()
        return used

    def check(self, key: Key, cost: int, compiled: CompiledPolicy | None = None) -> Answer:
        """Decide; the arguments are known to be good ones. By default by the quotas that the action has for this user.

        Raises `UnknownAction`, as what is awaited does.
        """
        if self._closed:
            raise closed()
        if compiled is None:
            compiled = self._resolver.named.get(key.action)
            if compiled is None:
                return self.check_by(key, cost, None, None)
        now = self._clock.now()
        cached = self._counters.cache.get_or_make(key, CachedRecord)
        decision = self._answer_locally(compiled, key, now, cost, cached)
        if decision is None:
            return self._ask(compiled, key, now, cost, cached)
        return decision if decision.allowed and self.observer is None else self.tell(compiled, decision, now)

    async def check_by(
        self, key: Key, cost: int, quotas: QuotasLike | None, algorithm: AlgorithmName | None
    ) -> Decision:
        """Decide by the quotas of the call, else by those that the action has for this user."""
        answer = self.check(key, cost, await self._resolver.of_check(key, quotas, algorithm))
        return answer if isinstance(answer, Decision) else await answer

    async def _ask(self, compiled: CompiledPolicy, key: Key, now: int, cost: int, cached: CachedRecord) -> Decision:
        """Return the store's decision, else the fallback's."""
        decision: Decision | None
        circuit = self._blocking_circuit
        try:
            if compiled.max_cost is not None and cost > compiled.max_cost:
                decision = await self.refuse(compiled, key, now, cost)
            elif circuit is None or compiled.lease is not None:
                decision = await self._spend(compiled, key, now, cost, cached)
            else:
                before = circuit.begin()
                try:
                    decision = await self._counters.spend_one(compiled, key, now, cost, cached)
                except BaseException as error:
                    circuit.end(before, error)
                    raise
                circuit.end(before)
        except StoreUnavailable:
            decision = None
        if decision is None:
            decision = await self._fallback.answer(self._fallback.counters.spend_one, compiled, key, now, cost)
        return decision if decision.allowed and self.observer is None else self.tell(compiled, decision, now)

    async def refuse(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        """Refuse a cost that can never pass, whatever the store answers: it is asked for what is told of the quotas."""
        if not self._counters.is_told(compiled, key, now):
            with suppress(StoreUnavailable), self.store_call():
                await self._counters.look(key, now)
        return self._counters.too_large(compiled, key, now, cost)

    def tell(self, compiled: CompiledPolicy, decision: Decision, now: int) -> Decision:
        """Return the decision as its policy means it, and let the observer know."""
        if not decision.allowed:
            decision = in_mode(compiled, decision)
        if self.observer is not None:
            took = self._clock.now() - now
            self.observer(decision, took / SECOND if took > 0 else 0.0)
        return decision

    def _answer_locally(
        self, compiled: CompiledPolicy, key: Key, now: int, cost: int, cached: CachedRecord
    ) -> Decision | None:
        """Return the decision that does not have to wait for the store, if there is one."""
        max_cost = compiled.max_cost
        if max_cost is None and self._circuit is not None:
            return self._count_in_background(compiled, key, now, cost, cached)
        if max_cost is not None and cost > max_cost:
            told = self._counters.is_told(compiled, key, now)
            return self._counters.too_large(compiled, key, now, cost) if told else None
        if compiled.lease is not None:
            granted = self.leases.grant(compiled, key, now, cost)
            if granted is not None:
                self.stats.leased += 1
                return granted
            if self.leases.held(compiled, key, now):
                return None
        counters = self._counters
        if cached.refused_at >= 0:
            refusal = counters.known_refusal(compiled, key, now, cost, cached)
            if refusal is not None:
                self.stats.denials_cached += 1
                return refusal
        if self._circuit is not None or compiled.lease is not None:
            return None
        return counters.spend_at_once(compiled, key, now, cost, cached)

    def _count_in_background(
        self, compiled: CompiledPolicy, key: Key, now: int, cost: int, cached: CachedRecord
    ) -> Decision | None:
        """Where there is no limit the answer is known, and is counted behind it."""
        if self.background.tasks.is_full:
            return None
        self.background.start(self._spend(compiled, key, now, cost, cached), units=cost, loss="uncounted")
        return Decision(
            allowed=True, policy=compiled.policy.name, cost=cost, quotas=(), at_us=now, user=key.user, spent=cost
        )

    async def _spend(self, compiled: CompiledPolicy, key: Key, now: int, cost: int, cached: CachedRecord) -> Decision:
        """Return the store's decision, in a batch where a write of this record is under way."""
        coalescer = self.coalescer
        batch_key = (key, compiled)
        if coalescer is not None:
            self._enter(asyncio.get_running_loop(), coalescer)
            if not coalescer.begin(batch_key):
                return await coalescer.enqueue(batch_key, cost)
        try:
            if compiled.lease is not None:
                return (await self.leases.spend(compiled, key, now, (cost,)))[0]
            with self.store_call():
                return await self._counters.spend_one(compiled, key, now, cost, cached)
        finally:
            if coalescer is not None:
                coalescer.end(batch_key)

    def _enter(self, loop: asyncio.AbstractEventLoop, coalescer: Coalescer[int, Decision]) -> None:
        """Begin in another loop than before, which is over: nothing that was under way there will come back."""
        if loop is not self._loop:
            self._loop = loop
            coalescer.forget(loop)
            self.background.tasks.forget(loop)

    async def _spend_many(self, compiled: CompiledPolicy, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        self.stats.coalesced += len(costs)
        if compiled.lease is not None:
            return await self.leases.spend(compiled, key, now, costs)
        with self.store_call():
            return await self._counters.spend(compiled, key, now, costs)

    def _clean_in_background(self, key: Key, cached: CachedRecord, now: int) -> None:
        if not self.background.tasks.is_full:
            self.background.start(self._clean(key, cached, now))

    async def _clean(self, key: Key, cached: CachedRecord, now: int) -> None:
        with self.store_call():
            await self._counters.clean(key, cached, now)
