"""The answers while the store gives none, as the policy's `on_unavailable` says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import msgspec

from ratelimit.breaker import BreakerState
from ratelimit.clock import seconds
from ratelimit.decision import Decision
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import Counters
from ratelimit.names import Key

# Seconds after which a client may ask again when the store failed just now and nothing says when it will be back.
_RETRY_AFTER_S: Final = 1.0

Verb: TypeAlias = Callable[[CompiledPolicy, Key, int, int], Awaitable[Decision]]


class Fallback:
    """Answers without the store. `counters` count in this process's memory, for `"local"`."""

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
