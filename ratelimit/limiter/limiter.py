"""`Limiter`: may this user do this action now? Counted in a store, and decided in time whatever the store does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from types import TracebackType
from typing import Final, Self, TypeAlias

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
from ratelimit.limiter.standby import Answer, Standby
from ratelimit.limiter.stats import LimiterStats
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy, QuotaSource
from ratelimit.quota import MAX_LIMIT, QuotasLike
from ratelimit.store.base import Store
from ratelimit.store.memory import MemoryStore

DEFAULT_DEADLINE: Final = 0.25
DEFAULT_DENIAL_CACHE: Final = 1.0
DEFAULT_MAX_BELIEFS: Final = 10_000

Observer: TypeAlias = Callable[[Decision, float], None]
"""Told of each decision of a check, and of the seconds it took."""


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
        self.directory = directory
        self.observer: Observer | None = None
        """What metrics and traces hang on; called in the middle of a check, it has to be quick and must not raise."""
        self.stats = LimiterStats()
        self.breaker = Breaker()
        remembered = round(denial_cache * SECOND)
        self.alerts = Alerts(on_alert)
        self._ledger = Ledger(store, max_beliefs, remembered, self.alerts)
        self._standby = Standby(Ledger(MemoryStore(), max_beliefs, remembered, Alerts(None)), self.breaker)
        self.background = Background()
        self._is_embedded = isinstance(store, MemoryStore)
        # The embedded store answers at once and cannot fail: there is nothing to guard, and nothing to coalesce.
        guard = Guard(self.clock, deadline, self.breaker)
        self._call: Callable[[], AbstractContextManager[object]] = nullcontext if self._is_embedded else guard.call
        self._leases = Leases(self._ledger, self._take, self._give_back, self.background)
        self._coalescer = Coalescer(self._spend_one, self._spend_many, self.clock, deadline)
        self._spend: Answer = self._ledger.spend_one if self._is_embedded else self._coalescer.spend
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
        await self.alerts.finish()
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
        planner = self._planners.named.get(action) if quotas is None and algorithm is None else None
        if planner is None:
            planner = await self._planners.of(key, quotas, algorithm)
        _check_cost(cost)
        now = self.clock.now()
        decision = self._at_once(planner, key, now, cost)
        if decision is None:
            try:
                decision = await self._spend(planner, key, now, cost)
            except StoreUnavailable:
                decision = await self._standby.check(planner, key, now, cost)
        if not decision.allowed:
            decision = _in_mode(planner, decision)
        if self.observer is not None:
            self.observer(decision, seconds(max(0, self.clock.now() - now)))
        return decision

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
            with self._call():
                decision = await self._ledger.peek(planner, key, now, cost)
        except StoreUnavailable:
            decision = await self._standby.peek(planner, key, now, cost)
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
            with self._call():
                decision = await self._ledger.charge(planner, key, now, cost)
        except StoreUnavailable:
            decision = await self._standby.charge(planner, key, now, cost)
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
        with self._call():
            await self._ledger.refund(planner, key, now, cost, at=now if at is None else at)

    async def reset(self, user: str, action: str) -> None:
        """Forget what this user has spent of this action's quotas; the totals stay. Raises `StoreUnavailable`."""
        key = Key.of(user, action)
        with self._call():
            await self._ledger.reset(key, self.clock.now())

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
            key = Key.of(user, action)
            with self._call():
                record = await self._ledger.record(key)
            found[action] = {
                day: used
                for day, used in days_of(record).items()
                if (since is None or since <= day) and (until is None or day <= until)
            }
        return found

    def _at_once(self, planner: Planner, key: Key, now: int, cost: int) -> Decision | None:
        """The decision that does not have to wait for the store, if there is one."""
        if planner.most is None:
            return self._count_behind(planner, key, now, cost)
        if cost > planner.most:
            return self._ledger.too_large(planner, key, now, cost)
        if planner.policy.lease is not None and (granted := self._leases.grant(planner, key, now, cost)) is not None:
            self.stats.leased += 1
            return granted
        refusal = self._ledger.known_refusal(planner, key, now, cost)
        if refusal is not None:
            self.stats.denials_cached += 1
        return refusal

    def _count_behind(self, planner: Planner, key: Key, now: int, cost: int) -> Decision | None:
        """Where there is no limit the answer is known, and is counted behind it."""
        if self._is_embedded or self.background.is_full:
            return None
        self.background.start(self._spend(planner, key, now, cost), units=cost, or_else="uncounted")
        return Decision(allowed=True, policy=planner.policy.name, cost=cost, quotas=(), at=now)

    async def _spend_one(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        if planner.policy.lease is not None:
            return (await self._leases.spend(planner, key, now, (cost,)))[0]
        with self._call():
            return await self._ledger.spend_one(planner, key, now, cost)

    async def _spend_many(self, planner: Planner, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        self.stats.coalesced += len(costs)
        if planner.policy.lease is not None:
            return await self._leases.spend(planner, key, now, costs)
        return await self._take(planner, key, now, costs)

    async def _take(
        self, planner: Planner, key: Key, now: int, costs: Sequence[int], advance: Advance | None = None
    ) -> list[Decision]:
        with self._call():
            return await self._ledger.spend(planner, key, now, costs, advance)

    async def _give_back(self, planner: Planner, key: Key, units: int, at: int) -> None:
        with self._call():
            await self._ledger.refund(planner, key, self.clock.now(), units, at=at)


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
