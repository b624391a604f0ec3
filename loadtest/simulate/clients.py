"""One simulated process: what it does with a check, by mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ratelimit.breaker import BreakerState
from ratelimit.clock import Clock
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.limiter import Limiter
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import Counters
from ratelimit.limiter.deadline import CircuitBreaker
from ratelimit.limiter.limiter import DEFAULT_DEADLINE
from ratelimit.names import Key
from ratelimit.policy import Lease, Policy
from ratelimit.store import Store

ACTION = "load"


class Process(Protocol):
    """Whoever answers checks."""

    async def check(self, user: str, action: str) -> Decision:
        """May this user do this action now?"""
        ...

    async def close(self) -> None:
        """Return what was taken ahead."""
        ...


@dataclass(frozen=True, slots=True)
class Mode:
    """`plain` (a write for every check), `coalesced` (what a policy does by itself), or with a lease."""

    name: str
    plain: bool = False
    lease: Lease = None

    @classmethod
    def parse(cls, text: str) -> Mode:
        """`plain`, `coalesced`, `lease=50`, `lease=auto` (or `50`, `auto`). Raises `ConfigError`."""
        text = text.strip().lower()
        if text == "plain":
            return cls("plain", plain=True)
        if text == "coalesced":
            return cls("coalesced")
        amount = text.removeprefix("lease=")
        if amount == "auto":
            return cls("lease=auto", lease="auto")
        if amount.isascii() and amount.isdecimal() and int(amount) > 0:
            return cls(f"lease={int(amount)}", lease=int(amount))
        raise ConfigError("modes", f"unknown mode {text!r}; use plain, coalesced, lease=50 or lease=auto")

    def process(self, store: Store, quotas: str, clock: Clock) -> Process:
        """A process that has just started. Where the store gives no answer it refuses, so that nothing is uncounted."""
        policy = Policy(ACTION, quotas, lease=self.lease, on_unavailable="deny")
        return Plain(store, policy, clock) if self.plain else Limiter(store, [policy], clock=clock)


class Plain:
    """What a naive client does: a conditional write for every check. Same counters, same deadline and breaker as
    `Limiter`; no coalescer, no denial cache, no lease."""

    def __init__(self, store: Store, policy: Policy, clock: Clock) -> None:
        self._counters = Counters(store, max_records=10_000, denial_cache=0)
        self._circuit = CircuitBreaker(clock, DEFAULT_DEADLINE, BreakerState())
        self._compiled = CompiledPolicy(policy)
        self._clock = clock

    async def check(self, user: str, action: str) -> Decision:
        now = self._clock.now()
        try:
            with self._circuit.call():
                return await self._counters.spend_one(self._compiled, Key(user, action), now, 1)
        except StoreUnavailable:
            return Decision(
                allowed=False, policy=action, cost=1, quotas=(), retry_after=1.0, reason="unavailable", at_us=now
            )

    async def close(self) -> None:
        """Nothing is held."""
