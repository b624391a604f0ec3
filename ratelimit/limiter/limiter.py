"""`Limiter`: may this user do this action now? Counted in a store, and decided in time whatever the store does."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from typing import Any, Final, Self, overload
from weakref import WeakSet

import msgspec
from msgspec.structs import force_setattr

from ratelimit.algorithms import Taken
from ratelimit.algorithms.fields import Per
from ratelimit.algorithms.totals import kept_range, totals_of
from ratelimit.blocking import Deferred
from ratelimit.breaker import BreakerState
from ratelimit.clock import SECOND, Clock, SystemClock, since_epoch
from ratelimit.decision import Decision, JointDecision
from ratelimit.errors import ConfigError, InvalidCost, InvalidInput, QuotaExceeded, StoreThrottled, StoreUnavailable
from ratelimit.limiter.background import (
    MAX_BACKGROUND_WRITES,
    MAX_PENDING_ALERTS,
    AlertHook,
    Alerts,
    BackgroundWrites,
    LimiterStats,
)
from ratelimit.limiter.checker import Answer, Checker, Fallback, Observer
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import Counters, in_mode
from ratelimit.limiter.deadline import CircuitBreaker
from ratelimit.limiter.holding import Hold
from ratelimit.limiter.joint import JointPart, Spend
from ratelimit.limiter.policy_resolver import PolicyResolver
from ratelimit.limiter.slots import MAX_RENEWALS, Holds, Reservation, Slot
from ratelimit.limiter.waiting import DEFAULT_TIMEOUT, WaitQueues, check_timeout
from ratelimit.names import Key, UserId, check_user
from ratelimit.policy import DECIDED_ALONE, AlgorithmName, Policy, QuotaSource
from ratelimit.quota import MAX_LIMIT, QuotasLike
from ratelimit.regions.sum import split_of
from ratelimit.store.base import MAX_WRITES_AT_ONCE, Store
from ratelimit.store.memory import MemoryStore
from ratelimit.tasks import Tasks

DEFAULT_DEADLINE: Final = 0.25
DEFAULT_DENIAL_CACHE: Final = 1.0
DEFAULT_MAX_BELIEFS: Final = 10_000

logger = logging.getLogger("ratelimit")


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
    `enabled`      False lets everything pass, as if each quota were `"unlimited"`.

    `breaker` is the state of the circuit breaker around the store, `stats` what was spared and lost.
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
        enabled: bool = True,
    ) -> None:
        _check_store(store)
        _check_bounds(deadline, denial_cache, max_beliefs)
        self.store = store
        self.clock: Clock = clock or SystemClock()
        self.directory = directory
        self.breaker = BreakerState()
        self.stats = LimiterStats()
        denial_cache_us = round(denial_cache * SECOND)
        self._alerts = (
            None if on_alert is None else Alerts(on_alert, self.stats, self._tasks("an alert", MAX_PENDING_ALERTS))
        )
        self._counters = Counters(store, max_beliefs, denial_cache_us, self._alerts)
        self._fallback = Fallback(Counters(MemoryStore(), max_beliefs, denial_cache_us), self.breaker)
        circuit = None if isinstance(store, MemoryStore) else self._circuit(deadline)
        background = BackgroundWrites(self.stats, self._tasks("a background write", MAX_BACKGROUND_WRITES))
        self._waits = WaitQueues(self.clock, self._tasks("a wait that was given up"))
        self._resolver = PolicyResolver(policies, directory, enabled=enabled, split=split_of(store))
        self._checker = Checker(
            self._resolver, self._counters, self._fallback, circuit, self.clock, deadline, background
        )
        tasks = self._tasks("giving back a slot", MAX_RENEWALS)
        self._holds = Holds(
            self._checker, self._counters, self._fallback, self.clock, tasks, self._aside(), self._waits
        )
        _limiters.add(self)

    # What `ratelimit.sync` does without an event loop.

    def _circuit(self, deadline: float) -> CircuitBreaker:
        return CircuitBreaker(self.clock, deadline, self.breaker)

    def _tasks(self, what: str, limit: int | None = None) -> Tasks | Deferred:
        return Tasks(what, limit=limit)

    def _aside(self) -> Callable[[Coroutine[Any, Any, None]], object] | None:
        return None

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The named rules, by name."""
        return self._resolver.policies

    @property
    def observer(self) -> Observer | None:
        """Told of each decision of a check, and its seconds, before it is returned: has to be quick, must not raise."""
        return self._checker.observer

    @observer.setter
    def observer(self, observer: Observer | None) -> None:
        self._checker.observer = observer

    async def open(self) -> None:
        """Open the store. Raises `StoreUnavailable`, or `StoreMisconfigured` where waiting would not help."""
        self._waits.open()
        self._checker.open()
        await self.store.open()

    async def drain(self) -> None:
        """Return when all that goes on behind answers has ended: what is counted where there is no limit, alerts.

        For a process that is frozen between its answers, and for tests.
        """
        await self._waits.drain()
        await self._checker.background.tasks.drain()
        if self._alerts is not None:
            await self._alerts.drain()

    async def close(self) -> None:
        """Let the checks under way have their answers, return what was taken ahead, and close the store.

        A check after that raises `LimiterClosed`, and so does a `wait` under way, until `open` is called again. To
        close twice is harmless.
        """
        await self._waits.close()
        await self._holds.close()
        await self._checker.close()
        if self._alerts is not None:
            await self._alerts.drain()
        await self.store.close()

    def _forget(self) -> None:
        """Forget what is believed of the store, what is held of it by a lease, and who waits: for tests."""
        self._waits.forget()
        self._checker.leases.forget()
        for counters in (self._counters, self._fallback.counters):
            counters.cache.clear()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def check(
        self,
        user: UserId,
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
        answer = self._begin(user, action, cost, quotas, algorithm)
        return answer if isinstance(answer, Decision) else await answer

    def _begin(
        self, user: UserId, action: str, cost: int, quotas: QuotasLike | None, algorithm: AlgorithmName | None
    ) -> Answer:
        compiled = self._resolver.named.get(action) if type(action) is str else None
        # The name of a policy was checked with the policy.
        key = Key.of(user, action) if compiled is None else tuple.__new__(Key, (check_user(user), action))
        if type(cost) is not int or not 0 < cost <= MAX_LIMIT:
            raise _bad_cost(cost)
        if quotas is None and algorithm is None:
            return self._checker.check(key, cost, compiled)
        return self._checker.check_by(key, cost, quotas, algorithm)

    async def wait(
        self,
        user: UserId,
        action: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        cost: int = 1,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> Decision:
        """Spend `cost` units as soon as they fit, within `timeout` seconds. Return the decision that allows it.

        Those who wait in this process for one user and action have their turns in the order in which they came. Only
        the first asks the store, and again after its `retry_after`, or when units go back here. Raises `QuotaExceeded`,
        at once where the units could not fit in time, or never can, and when others in front have taken too long. Then
        nothing was spent, nor for a task that is cancelled. Raises `LimiterClosed`, and what `check` raises.
        """
        key = Key.of(user, action)
        _whole_cost(cost)
        check_timeout(timeout)
        check = partial(self.check, user, action, cost=cost, quotas=quotas, algorithm=algorithm)
        max_cost = (await self._resolver.of_check(key, quotas, algorithm)).max_cost
        if max_cost is not None and cost > max_cost:  # which does not wait for others to be told so
            decision = await check()
            if not decision.allowed:
                raise QuotaExceeded(decision)
            return decision
        return await self._waits.wait(key, check, self._undo, cost=cost, timeout=timeout)

    def slot(
        self,
        user: UserId,
        action: str,
        *,
        cost: int = 1,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
        timeout: float | None = None,
    ) -> Slot:
        """Return one of the slots of a policy such as `10 concurrent`, to be taken with `async with`.

        Its other quotas spend `cost` units, which stay spent. A slot is given back at the end of the block, and renewed
        meanwhile; if this process dies, it comes back by itself after the policy's `hold`. With a `timeout` it is
        waited for so many seconds, in the order of `wait`. Raises as `check` does, and within `async with`
        `QuotaExceeded`, where nothing was taken.
        """
        return Slot(self._holds, self._hold(user, action, cost, 0, quotas, algorithm), cost, timeout)

    def reserve(
        self,
        user: UserId,
        action: str,
        cost: int,
        *,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
        timeout: float | None = None,
    ) -> Reservation:
        """Return a reservation of `cost` units, to be taken with `async with`, and settled at what was used of them.

        They are spent at once, as by `check`, and a slot is taken where the policy has them. What was not used is given
        back at the end of the block. If this process dies, all of them come back by themselves after the policy's
        `hold`. Raises as `slot` does.
        """
        return Reservation(self._holds, self._hold(user, action, cost, cost, quotas, algorithm), cost, timeout)

    def _hold(
        self,
        user: UserId,
        action: str,
        cost: int,
        units: int,
        quotas: QuotasLike | None,
        algorithm: AlgorithmName | None,
    ) -> Callable[[], Awaitable[Hold]]:
        key = Key.of(user, action)
        _whole_cost(cost)

        async def new_hold() -> Hold:
            compiled = await self._resolver.of(key, quotas, algorithm)
            if compiled.policy.together:
                raise InvalidInput(f"{action!r} is decided together with others, and {DECIDED_ALONE}")
            is_limited = compiled.max_cost is not None
            if not units and not compiled.is_concurrent and is_limited and self.directory is None:
                raise InvalidInput(f"{action!r} has no slots; give it a quota such as '10 concurrent', or check it")
            return Hold(compiled, key, units)

        return new_hold

    async def _undo(self, decision: Decision) -> None:
        await self._checker.background.see_through(self._refund(decision, None), decision.spent, "unreturned")

    async def check_all(self, spends: Iterable[Spend | tuple[UserId, str] | tuple[UserId, str, int]]) -> JointDecision:
        """Spend all of it if every quota has room, or nothing at all: of several users, actions or both.

        `check_all([("alice", "api"), ("acme", "org", 5)])`, or `Spend(…)` where quotas are given; no user and action
        twice. For everybody else, at every moment, either all is spent or nothing. What many checks share is best named
        last: those of one process leave together then. Raises as `check` does, and `InvalidInput`, also where a policy
        is missing that another one of them has in `together`.
        """
        asked = [_spend(one) for one in spends]
        actions = [Key.of(one.user, one.action).action for one in asked]
        for action in actions:
            policy = self.policies.get(action)
            for name in () if policy is None else policy.together:
                if name not in actions:
                    raise InvalidInput(f"{action!r} is decided together with {name!r}: add a check of that")
        return await self._check_all(asked)

    async def _check_all(self, asked: Sequence[Spend]) -> JointDecision:
        if not 0 < len(asked) <= MAX_WRITES_AT_ONCE:
            raise InvalidInput(f"expected 1 to {MAX_WRITES_AT_ONCE} checks to decide together, not {len(asked)}")
        group = []
        for user, action, cost, quotas, algorithm in asked:
            key = Key.of(user, action)
            group.append(JointPart(await self._resolver.of_spending(key, quotas, algorithm), key, _whole_cost(cost)))
        if len({part.key for part in group}) < len(group):
            raise InvalidInput("two of the checks are of one user and action: add up their costs")
        if any(part.compiled.policy.together for part in group):
            compiled = self._resolver.of_group([part.compiled for part in group])
            group = [part._replace(compiled=one) for part, one in zip(group, compiled, strict=True)]
        return JointDecision(tuple(await self._checker.joint.check(group)))

    async def peek(
        self,
        user: UserId,
        action: str,
        *,
        cost: int = 1,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> Decision:
        """Return what `check` would answer now, spending nothing. Raises as `check` does."""
        compiled, key, now = await self._prepare(user, action, cost, quotas, algorithm)
        held = self._checker.leases.held(compiled, key, now)
        try:
            with self._checker.call():
                decision = await self._counters.peek(compiled, key, now, cost, held)
        except StoreUnavailable:
            decision = await self._fallback.answer(self._fallback.counters.peek, compiled, key, now, cost)
        return decision if decision.allowed else in_mode(compiled, decision)

    async def charge(
        self,
        user: UserId,
        action: str,
        cost: int,
        *,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> Decision:
        """Spend what is owed afterwards: always allowed, and a quota may go over its limit. Raises as `check` does.

        Where the store cannot be reached nothing is charged to it, and the decision's `reason` is `"unavailable"`.
        """
        compiled, key, now = await self._prepare(user, action, cost, quotas, algorithm)
        try:
            with self._checker.call():
                decision = await self._counters.charge(compiled, key, now, cost)
        except StoreUnavailable:
            decision = await self._fallback.answer(self._fallback.counters.charge, compiled, key, now, cost)
        return decision if decision.allowed else msgspec.structs.replace(decision, allowed=True, retry_after=0.0)

    @overload
    async def refund(self, user: Decision, *, cost: int | None = None) -> None: ...

    @overload
    async def refund(
        self,
        user: UserId,
        action: str,
        cost: int = 1,
        *,
        at: datetime | None = None,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> None: ...

    async def refund(
        self,
        user: Decision | UserId,
        action: str | None = None,
        cost: int | None = None,
        *,
        at: datetime | None = None,
        quotas: QuotasLike | None = None,
        algorithm: AlgorithmName | None = None,
    ) -> None:
        """Give back what a decision took, or `cost` units of it: once, and nothing where it took nothing.

        `refund(decision)` goes to the windows, the bucket and the totals that the decision took from. What has flowed
        back into a bucket since is not given back a second time. The other form, `refund(user, action, cost, at=…)`, is
        for those who have no decision any more: it cannot know what was taken, and gives back no more than is left at
        that moment (an aware `datetime`; by default now), whoever took it. What is reserved goes back by the decision
        of its reservation, or at its end: once, however that comes. Raises `StoreUnavailable` (whether something
        was given back is then not known, and a decision's units are not given back again), and what `check` raises.
        """
        if isinstance(user, Decision):
            if (action, at, quotas, algorithm) != (None, None, None, None):
                raise InvalidInput("a decision says itself what it took: beside it, only cost=… can be given")
            await self._refund(user, cost)
            return
        units = 1 if cost is None else cost
        compiled, key, now = await self._prepare(user, action, units, quotas, algorithm)
        taken = Taken(now if at is None else _moment(at), units)
        with self._checker.call():
            await self._counters.refund(compiled, key, now, units, taken)
        self._waits.ask_now(key)

    async def _prepare(
        self, user: UserId, action: str | None, cost: int, quotas: QuotasLike | None, algorithm: AlgorithmName | None
    ) -> tuple[CompiledPolicy, Key, int]:
        key = Key.of(user, action)
        compiled = await self._resolver.of(key, quotas, algorithm)
        _whole_cost(cost)
        return compiled, key, self.clock.now()

    async def _refund(self, decision: Decision, cost: int | None) -> None:
        wanted = decision.spent if cost is None else _whole_cost(cost)
        if await self._holds.refund(decision, wanted):
            return
        held = decision.spent - decision.refunded
        units = min(held, wanted)
        if units <= 0:
            return
        if not decision.quotas:
            await self._checker.background.tasks.drain()  # which may not have counted it yet
        compiled, key = self._resolver.of_decision(decision), Key(decision.user, decision.policy)
        now, taken = self.clock.now(), Taken(decision.at_us, held)
        positions = [state.position for state in decision.quotas]
        if decision.reason == "unavailable":
            force_setattr(decision, "refunded", decision.refunded + units)
            await self._fallback.counters.refund(compiled, key, now, units, taken, positions)
            return
        with self._checker.call():
            force_setattr(decision, "refunded", decision.refunded + units)
            try:
                await self._counters.refund(compiled, key, now, units, taken, positions)
            except StoreThrottled:  # which is the store's word that nothing was written
                force_setattr(decision, "refunded", decision.refunded - units)
                raise
        self._waits.ask_now(key)

    async def reset(self, user: UserId, action: str) -> None:
        """Forget what this user has spent of this action's quotas; the totals stay. Raises `StoreUnavailable`.

        Slots and reserved units stay taken by whoever holds them. What other processes hold by a lease they still
        grant.
        """
        key = Key.of(user, action)
        await self._checker.leases.release(key)
        with self._checker.call():
            await self._counters.reset(key, self.clock.now())
        self._waits.ask_now(key)

    async def totals(
        self,
        user: UserId,
        since: date | None = None,
        until: date | None = None,
        *,
        per: Per = "day",
        actions: Iterable[str] | None = None,
    ) -> dict[str, dict[date, int]]:
        """Return the units used per action and UTC day, `since` and `until` included, exact, oldest first.

        With `per="month"`, per calendar month, by its first day. By default of all that are kept: 35 days, 13 months.
        The actions are those that the policies name, unless given: one read each. Raises `OutOfRetention`, and
        `StoreUnavailable`.
        """
        first, last = kept_range(self.clock.now(), since, until, per)
        await self._checker.background.tasks.drain()
        found: dict[str, dict[date, int]] = {}
        for action in self.policies if actions is None else actions:
            key = Key.of(user, action)
            with self._checker.call():
                record = await self.store.read(key)
            found[action] = totals_of(record, per, since=first, until=last)
        return found


def _check_store(store: object) -> None:
    if isinstance(store, Store):
        return
    if isinstance(store, Awaitable):
        raise ConfigError("store", "expected a store, and this is one about to open; await it: await open_store(…)")
    url = repr(store) if isinstance(store, str) else "'memory://'"
    raise ConfigError("store", f"expected a store, not {store!r}; open one first: Limiter(await open_store({url}))")


def _check_bounds(deadline: float, denial_cache: float, max_beliefs: int) -> None:
    if not 0 < deadline <= 60:
        raise ConfigError("deadline", f"must be more than 0 and at most 60 seconds, not {deadline!r}")
    if not 0 <= denial_cache <= 60:
        raise ConfigError("denial_cache", f"must be between 0 and 60 seconds, not {denial_cache!r}")
    if max_beliefs < 1:
        raise ConfigError("max_beliefs", f"must be at least 1, not {max_beliefs!r}")


_limiters: Final[WeakSet[Limiter]] = WeakSet()


def all_limiters() -> list[Limiter]:
    """Return those of this process, the blocking ones included."""
    return list(_limiters)


def _after_fork() -> None:
    for limiter in all_limiters():
        counted = isinstance(limiter.store, MemoryStore) and len(limiter.store) > 0
        limiter._waits.forget()
        limiter._holds.forget()
        if limiter._checker.fork() or counted:
            if limiter._alerts is not None:
                limiter._alerts.forget()
            logger.warning(
                "process %d was forked from one that uses this limiter: what is counted in memory, held by a lease or"
                " under way there is not shared; make the limiter after the fork",
                os.getpid(),
            )


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _spend(one: object) -> Spend:
    if isinstance(one, Spend):
        return one
    if not isinstance(one, tuple) or not 2 <= len(one) <= 3:
        raise InvalidInput(f"expected (user, action), (user, action, cost) or Spend(…), not {one!r}")
    return Spend(*one)


def _whole_cost(cost: int) -> int:
    if type(cost) is not int or not 0 < cost <= MAX_LIMIT:
        raise _bad_cost(cost)
    return cost


def _moment(at: object) -> int:
    if isinstance(at, datetime) and at.tzinfo is not None:
        return since_epoch(at)
    hint = "add tzinfo=UTC" if isinstance(at, datetime) else "a decision's `at` is one"
    raise InvalidInput(f"at must be an aware datetime, not {at!r}; {hint}")


def _bad_cost(cost: object) -> InvalidCost:
    if type(cost) is int and cost > MAX_LIMIT:
        return InvalidCost(f"cost must be at most {MAX_LIMIT}; this one has {cost.bit_length()} bits")
    hint = "; to look without spending, use peek()" if cost == 0 else ""
    return InvalidCost(f"cost must be a whole number of at least 1, not {cost!r}{hint}")
