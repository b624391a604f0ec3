"""The answers while the store gives none, as the policy's `on_unavailable` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from ratelimit.algorithms import Taken
from ratelimit.breaker import BreakerState
from ratelimit.clock import seconds
from ratelimit.decision import Decision
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import Counters
from ratelimit.names import Key

# Seconds after which a client may ask again when the store failed just now and nothing says when it will be back.
_RETRY_AFTER_S: Final = 1.0

Answer: TypeAlias = Callable[[CompiledPolicy, Key, int, int], Awaitable[Decision]]


class Fallback:
    """The verbs that decide, without the store. `counters` count in this process's memory, for `"local"`."""

    def __init__(self, counters: Counters, breaker: BreakerState) -> None:
        self._counters = counters
        self._breaker = breaker

    async def check(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        """Answer a check."""
        return await self._answer(self._counters.spend_one, compiled, key, now, cost)

    async def peek(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        """Answer a peek."""
        return await self._answer(self._counters.peek, compiled, key, now, cost)

    async def charge(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        """Answer a charge."""
        return await self._answer(self._counters.charge, compiled, key, now, cost)

    async def refund(
        self, compiled: CompiledPolicy, key: Key, now: int, cost: int, taken: Taken, positions: Sequence[int]
    ) -> None:
        """Give back what was counted here while the store could not be asked."""
        await self._counters.refund(compiled, key, now, cost, taken, positions)

    async def _answer(self, locally: Answer, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        policy = compiled.policy
        if policy.on_unavailable == "local" and policy.quotas:
            decision = await locally(compiled, key, now, cost)
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
