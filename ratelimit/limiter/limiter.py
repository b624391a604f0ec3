"""`Limiter`: may this user do this action now? Counted in a store, and decided in time whatever the store does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import msgspec

from ratelimit.algorithms.totals import days_of
from ratelimit.breaker import Breaker
from ratelimit.clock import SECOND, Clock, SystemClock, seconds
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, InvalidCost, StoreUnavailable
from ratelimit.limiter.alerts import AlertHook, Alerts
from ratelimit.limiter.background import Background
from ratelimit.limiter.coalescer import Coalescer
from ratelimit.limiter.guard import Guard
from ratelimit.limiter.leases import Leases
from ratelimit.limiter.ledger import Advance, Ledger
from ratelimit.limiter.planner import Planner
from ratelimit.limiter.planners import Planners
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy, QuotaSource
from ratelimit.quota import MAX_LIMIT, QuotasLike
from ratelimit.store.base import Store
from ratelimit.store.memory import MemoryStore

DEFAULT_DEADLINE: Final = 0.25
DEFAULT_DENIAL_CACHE: Final = 1.0
DEFAULT_MAX_BELIEFS: Final = 10_000
# Seconds after which a client may ask again when the store failed just now and nothing says when it will be back.
_RETRY_UNAVAILABLE: Final = 1.0

Run: TypeAlias = Callable[..., Awaitable[Any]]
Answer: TypeAlias = Callable[[Planner, Key, int, int], Awaitable[Decision]]


class Limiter:
    """Checks users' actions against policies. One per process and event loop; share it freely between tasks.

    `store`        where to count: `MemoryStore()`, or what `open_store` gave.
    `policies`     the named rules; an action no policy names needs `quotas` with the call.
    `directory`    a `Directory` of users and plans: a user's own quotas go over the policy's.
    `deadline`     seconds that a check may wait for the store, all its round trips together.
    `denial_cache` seconds for which a refusal is repeated without asking the store again; 0 asks each time. Exact, but
                   for what another process refunds or resets in the meantime.
    `on_alert`     called with an `Alert` when usage passes a part of a limit that the policy's `alert_at` names.
    `max_beliefs`  users' states remembered to plan the next write by: a bound on memory, about 1 KB each.
    """

    def __init__(
        self,
        store: Store,
        policies: Iterable[Policy] = (),
        *,
        clock: Clock | None = None,
        deadline: float = DEFAULT_DEADLINE,
        denial_cache: float = DEFAULT_DENIAL_CACHE,
        max_beliefs: int = DEFAULT_MAX_BELIEFS,
        directory: QuotaSource | None = None,
        on_alert: AlertHook | None = None,
    ) -> None:
        if not 0 < deadline <= 60:
            raise ConfigError("deadline", f"must be more than 0 and at most 60 seconds, not {deadline!r}")
        if not 0 <= denial_cache <= 60:
            raise ConfigError("denial_cache", f"must be between 0 and 60 seconds, not {denial_cache!r}")
        if max_beliefs < 1:
            raise ConfigError("max_beliefs", f"must be at least 1, not {max_beliefs!r}")
        self.store = store
        self.clock: Clock = clock or SystemClock()
        self.breaker = Breaker()
        remembered = round(denial_cache * SECOND)
        self._alerts = Alerts(on_alert)
        self._ledger = Ledger(store, max_beliefs, remembered, self._alerts)
        self._local = Ledger(MemoryStore(), max_beliefs, remembered, Alerts(None))
        self.background = Background()
        self._is_embedded = isinstance(store, MemoryStore)
        self._run: Run = _directly if self._is_embedded else Guard(self.clock, deadline, self.breaker).run
        self._leases = Leases(self._ledger, self._take, self._give_back, self.background)
        self._coalescer = Coalescer(self._take_or_lease, self.clock, deadline)
        self._planners = Planners(policies, directory)

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The named rules, by name."""
        return self._planners.policies

    async def open(self) -> None:
        """Open the store. Raises `StoreUnavailable`, or `StoreMisconfigured` where waiting would not help."""
        await self.store.open()

    async def close(self) -> None:
        """Finish counting, return what was taken ahead, and close the store."""
        self._leases.close()
        await self.background.finish()
        await self._alerts.finish()
        await self.store.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def check(
        self,
        user: str,
        action: str,
        *,
        cost: int = 1,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> Decision:
        """Spend `cost` units if every quota has room, or nothing at all. Where there is no limit, allowed at once.

        `quotas` and `algorithm` take the place of the policy's, or make up a policy where none has this name. Raises
        `UnknownAction`, `InvalidUser`, `InvalidAction`, `InvalidCost`, `InvalidQuota`; never for a store that fails.
        """
        key = Key.of(user, action)
        planner = await self._planners.of(key, quotas, algorithm)
        _check_cost(cost)
        now = self.clock.now()
        if planner.most is not None and cost > planner.most:
            return _in_mode(planner, self._ledger.too_large(planner, key, now, cost))
        if planner.most is None and not (self._is_embedded or self.background.is_full):
            counting = self._coalescer.spend(planner, key, now, cost)
            self.background.start(counting, units=cost, or_else="uncounted")
            return Decision(allowed=True, policy=planner.policy.name, cost=cost, quotas=(), at=now)
        if (granted := self._leases.grant(planner, key, now, cost)) is not None:
            return granted
        decision = self._ledger.known_refusal(planner, key, now, cost)
        if decision is None:
            try:
                decision = await self._spend(planner, key, now, cost)
            except StoreUnavailable:
                decision = await self._without_store(partial(_spend_one, self._local), planner, key, now, cost)
        return decision if decision.allowed else _in_mode(planner, decision)

    async def peek(
        self,
        user: str,
        action: str,
        *,
        cost: int = 1,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> Decision:
        """What `check` would answer now, spending nothing. Raises as `check` does."""
        key = Key.of(user, action)
        planner = await self._planners.of(key, quotas, algorithm)
        _check_cost(cost)
        now = self.clock.now()
        try:
            decision = await self._run(self._ledger.peek, planner, key, now, cost)
        except StoreUnavailable:
            decision = await self._without_store(self._local.peek, planner, key, now, cost)
        return decision if decision.allowed else _in_mode(planner, decision)

    async def charge(
        self,
        user: str,
        action: str,
        cost: int,
        *,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> Decision:
        """Spend what is owed afterwards: always allowed, and a quota may go over its limit. Raises as `check` does.

        Where the store cannot be reached nothing is charged to it, and the decision's `reason` is `"unavailable"`.
        """
        key = Key.of(user, action)
        planner = await self._planners.of(key, quotas, algorithm)
        _check_cost(cost)
        now = self.clock.now()
        try:
            decision: Decision = await self._run(self._ledger.charge, planner, key, now, cost)
        except StoreUnavailable:
            decision = await self._without_store(self._local.charge, planner, key, now, cost)
        return decision if decision.allowed else msgspec.structs.replace(decision, allowed=True, retry_after=0.0)

    async def refund(
        self,
        user: str,
        action: str,
        cost: int = 1,
        *,
        at: int | None = None,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> None:
        """Give back units that were spent, to the windows and totals of the moment `at` (a decision's `at`, or now).

        Never more than is left of them there. Raises `StoreUnavailable`, and what `check` raises.
        """
        key = Key.of(user, action)
        planner = await self._planners.of(key, quotas, algorithm)
        _check_cost(cost)
        now = self.clock.now()
        await self._run(self._ledger.refund, planner, key, now, cost, at=now if at is None else at)

    async def reset(self, user: str, action: str) -> None:
        """Forget what this user has spent of this action's quotas; the totals stay. Raises `StoreUnavailable`."""
        key = Key.of(user, action)
        await self._run(self._ledger.reset, key, self.clock.now())

    async def totals(
        self,
        user: str,
        *,
        since: date | None = None,
        until: date | None = None,
        actions: Iterable[str] | None = None,
    ) -> dict[str, dict[date, int]]:
        """Units used per action and UTC day, exact, oldest first, `since` and `until` included. One read an action.

        The actions are those that the policies name, unless given. Days are kept 35, the present one included. Raises
        `StoreUnavailable`.
        """
        await self.background.finish()
        found: dict[str, dict[date, int]] = {}
        for action in self.policies if actions is None else actions:
            record = await self._run(self._ledger.record, Key.of(user, action))
            found[action] = {
                day: used
                for day, used in days_of(record).items()
                if (since is None or since <= day) and (until is None or day <= until)
            }
        return found

    async def _spend(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """The embedded store answers before anybody else can ask: there is nothing to coalesce."""
        if self._is_embedded:
            return await _spend_one(self._ledger, planner, key, now, cost)
        return await self._coalescer.spend(planner, key, now, cost)

    async def _take_or_lease(self, planner: Planner, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        if planner.policy.lease is None:
            return await self._take(planner, key, now, costs)
        return await self._leases.spend(planner, key, now, costs)

    async def _take(
        self, planner: Planner, key: Key, now: int, costs: Sequence[int], advance: Advance | None = None
    ) -> list[Decision]:
        decisions: list[Decision] = await self._run(self._ledger.spend, planner, key, now, costs, advance)
        return decisions

    async def _give_back(self, planner: Planner, key: Key, units: int, at: int) -> None:
        await self._run(self._ledger.refund, planner, key, self.clock.now(), units, at=at)

    async def _without_store(
        self, locally: Answer, planner: Planner, key: Key, now: int, cost: int
    ) -> Decision:
        """The policy's answer while the store gives none. Where there is no limit there is nothing to refuse."""
        policy = planner.policy
        if policy.on_unavailable == "local" and policy.quotas:
            decision = await locally(planner, key, now, cost)
            return msgspec.structs.replace(decision, reason="unavailable") if decision.allowed else decision
        if policy.on_unavailable == "deny" and policy.quotas:
            wait = seconds(self.breaker.wait(now)) or _RETRY_UNAVAILABLE
            return _unasked(policy, now, cost, allowed=False, retry_after=wait)
        return _unasked(policy, now, cost, allowed=True, retry_after=0.0)


async def _spend_one(ledger: Ledger, planner: Planner, key: Key, now: int, cost: int) -> Decision:
    return (await ledger.spend(planner, key, now, (cost,)))[0]


async def _directly(call: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """For the embedded store, which answers at once and cannot fail: a deadline would only cost."""
    return await call(*args, **kwargs)


def _unasked(policy: Policy, now: int, cost: int, *, allowed: bool, retry_after: float) -> Decision:
    """A decision taken without the store."""
    return Decision(
        allowed=allowed,
        policy=policy.name,
        cost=cost,
        quotas=(),
        retry_after=retry_after,
        reason="unavailable",
        at=now,
    )


def _in_mode(planner: Planner, refusal: Decision) -> Decision:
    if planner.policy.mode == "enforce":
        return refusal
    return msgspec.structs.replace(refusal, allowed=True, retry_after=0.0, shadow_denied=True)


def _check_cost(cost: int) -> None:
    if type(cost) is not int or cost < 1:
        hint = "; to look without spending, use peek()" if cost == 0 else ""
        raise InvalidCost(f"cost must be a whole number of at least 1, not {cost!r}{hint}")
    if cost > MAX_LIMIT:
        raise InvalidCost(f"cost must be at most {MAX_LIMIT}, not {cost}")
