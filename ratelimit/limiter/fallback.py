"""`Standby`: the answers while the store gives none, as the policy's `on_unavailable` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import msgspec

from ratelimit.algorithms import Taken
from ratelimit.breaker import Breaker
from ratelimit.clock import seconds
from ratelimit.decision import Decision
from ratelimit.limiter.compiled_policy import Planner
from ratelimit.limiter.counters import Ledger
from ratelimit.names import Key

# Seconds after which a client may ask again when the store failed just now and nothing says when it will be back.
_RETRY: Final = 1.0

Answer: TypeAlias = Callable[[Planner, Key, int, int], Awaitable[Decision]]


class Standby:
    """The verbs that decide, without the store. `ledger` counts in this process's memory, for `"local"`."""

    def __init__(self, ledger: Ledger, breaker: Breaker) -> None:
        self._ledger = ledger
        self._breaker = breaker

    async def check(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """See `Limiter.check`."""
        return await self._answer(self._ledger.spend_one, planner, key, now, cost)

    async def peek(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """See `Limiter.peek`."""
        return await self._answer(self._ledger.peek, planner, key, now, cost)

    async def charge(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """See `Limiter.charge`."""
        return await self._answer(self._ledger.charge, planner, key, now, cost)

    async def refund(
        self, planner: Planner, key: Key, now: int, cost: int, taken: Taken, positions: Sequence[int]
    ) -> None:
        """Give back what was counted here while the store could not be asked."""
        await self._ledger.refund(planner, key, now, cost, taken, positions)

    async def _answer(self, locally: Answer, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """Where there is no limit there is nothing to refuse."""
        policy = planner.policy
        if policy.on_unavailable == "local" and policy.quotas:
            decision = await locally(planner, key, now, cost)
            return msgspec.structs.replace(decision, reason="unavailable") if decision.allowed else decision
        denied = policy.on_unavailable == "deny" and bool(policy.quotas)
        return Decision(
            allowed=not denied,
            policy=policy.name,
            cost=cost,
            quotas=(),
            retry_after=(seconds(self._breaker.wait(now)) or _RETRY) if denied else 0.0,
            reason="unavailable",
            at_us=now,
            user=key.user,
        )
