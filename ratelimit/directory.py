"""`Directory`: which quotas hold for this user and this action, answered from a cache in microseconds."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar, cast

from ratelimit.breaker import BreakerState
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.errors import ConfigError, RateLimitError, StoreThrottled, StoreUnavailable
from ratelimit.names import UserId, check_user
from ratelimit.quota import INACTIVE, UNLIMITED, Quotas
from ratelimit.store.directory import (
    DirectoryStore,
    Entry,
    Identity,
    Plan,
    UnreadableEntry,
    User,
    check_plan,
)

logger = logging.getLogger("ratelimit")


# Changing users and plans: read, change, replace if nobody was faster, else once more. So no change is lost.

T = TypeVar("T", bound=Entry)

_ATTEMPTS: Final = 10


class UnknownUser(RateLimitError, LookupError):
    """No such user is in the directory."""


class UnknownPlan(RateLimitError, LookupError):
    """No such plan is in the directory."""


class Contended(RateLimitError):
    """Others kept changing the same user or plan; nothing was written."""


class Register:
    """Writes to a `DirectoryStore`. Every method raises `StoreUnavailable`; after it, the change may have been made."""

    __slots__ = ("_clock", "_store")

    def __init__(self, store: DirectoryStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def change(self, kind: type[T], name: str, change: Callable[[T | None], T | None]) -> T | None:
        """What is there under this name becomes `change` of it, which may be asked again; None is for nothing.

        Raises `Contended`, `IdentityTaken`, and what `change` raises.
        """
        for _ in range(_ATTEMPTS):
            old = await self._store.read(kind, name)
            new = change(old)
            if old == new or await self._store.replace(old, new, now=self._clock.now()):
                return new
        raise Contended(f"{kind.__name__.lower()} {name!r} was changed by others {_ATTEMPTS} times over; try again")

    async def users(self, *, plan: str | None = None) -> AsyncIterator[User]:
        """All users, or those of a plan, as they are read page by page."""
        cursor = None
        while True:
            page = await self._store.page(User, plan=plan, cursor=cursor)
            for user in page.entries:
                yield user
            if (cursor := page.cursor) is None:
                return

    async def plans(self) -> AsyncIterator[Plan]:
        """All plans."""
        cursor = None
        while True:
            page = await self._store.page(Plan, cursor=cursor)
            for plan in page.entries:
                yield plan
            if (cursor := page.cursor) is None:
                return


# `DirectoryStats`: how the cache does. Each bound that may be hit has a counter that shows it was.


@dataclass(slots=True)
class DirectoryStats:
    """Sums since the directory was made."""

    hits: int = 0
    """Answered from the cache."""
    reads: int = 0
    """Asked of the store: users, plans and identities."""
    shared: int = 0
    """Joined a read that was under way."""
    failures: int = 0
    """Reads without a usable answer."""
    spared: int = 0
    """Not even tried, because the store had failed repeatedly."""
    late: int = 0
    """Gave up waiting for a read."""
    stale: int = 0
    """Answered by what was known before, because there was nothing newer to be had."""
    without: int = 0
    """Times that a policy's own quotas had to do, because nothing was known."""
    unknown_plans: int = 0
    """Times that a policy's own quotas held, because the user's plan does not exist."""
    evicted: int = 0
    """Gave way to others before their time was up: `max_users` is small for this traffic."""


# `Cache`: answers read once and kept for a short life, also that there is nothing; one flight per key. A read is a
# task of its own. Whoever needs its answer waits for it, for as long as the caller can, and may be cancelled without
# harm to the others; the task ends by its own deadline.

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Terms(NamedTuple):
    """What the caches of one directory have in common."""

    clock: Clock
    life: int
    """Microseconds that an answer is good for, counted from when it was asked for."""
    deadline: float
    """Seconds that a read may take."""
    breaker: BreakerState
    stats: DirectoryStats


class Cache(Generic[K, V]):
    """At most `most` answers of `read`, the most recently used ones."""

    __slots__ = ("_answers", "_flights", "_most", "_read", "_terms")

    def __init__(self, read: Callable[[K], Awaitable[V]], terms: Terms, *, most: int) -> None:
        self._read = read
        self._terms = terms
        self._most = most
        self._answers: OrderedDict[K, tuple[int, V]] = OrderedDict()
        self._flights: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K, *, by: float | None = None) -> V:
        """The answer for this key; an old one where the store gives none before `by`, a time of the event loop.

        Raises `StoreUnavailable` where there is no old one either.
        """
        now = self._terms.clock.now()
        found = self._answers.get(key)
        if found is not None and 0 <= now - found[0] < self._terms.life:
            self._answers.move_to_end(key)
            self._terms.stats.hits += 1
            return found[1]
        try:
            return await self._wait(self._flight(key, now), by)
        except StoreUnavailable:
            if found is None:
                raise
            self._terms.stats.stale += 1
            return found[1]

    def forget(self, key: K) -> None:
        """What is known is known no more, and what a read under way will bring is not kept."""
        self._answers.pop(key, None)
        self._flights.pop(key, None)

    def __len__(self) -> int:
        return len(self._answers)

    def _flight(self, key: K, now: int) -> asyncio.Task[V]:
        stats = self._terms.stats
        flight = self._flights.get(key)
        if flight is not None:
            stats.shared += 1
            return flight
        if not self._terms.breaker.admits(now):
            stats.spared += 1
            raise StoreUnavailable("users and plans could not be read repeatedly; it will be tried again in a while")
        flight = self._flights[key] = asyncio.create_task(self._fly(key, now))
        flight.add_done_callback(partial(self._landed, key, now))
        return flight

    async def _wait(self, flight: asyncio.Task[V], by: float | None) -> V:
        """Not `wait_for`, which would end the flight for all."""
        left = None if by is None else max(0.0, by - asyncio.get_running_loop().time())
        await asyncio.wait((flight,), timeout=left)
        if not flight.done():
            self._terms.stats.late += 1
            raise StoreUnavailable("users and plans could not be read in time")
        if flight.cancelled():
            raise StoreUnavailable("users and plans could not be read: the event loop is closing")
        return flight.result()

    async def _fly(self, key: K, now: int) -> V:
        terms = self._terms
        terms.stats.reads += 1
        try:
            async with asyncio.timeout(terms.deadline):
                value = await self._read(key)
        except TimeoutError as error:
            late = StoreUnavailable(f"users and plans could not be read within {terms.deadline} s")
            self._failed(late, now)
            raise late from error
        except (StoreThrottled, UnreadableEntry):  # one key's trouble
            terms.stats.failures += 1
            terms.breaker.succeeded()
            raise
        except StoreUnavailable as error:
            self._failed(error, now)
            raise
        except BaseException:
            terms.breaker.abandoned()
            raise
        if terms.breaker.succeeded():
            logger.warning("users and plans can be read again")
        return value

    def _failed(self, error: StoreUnavailable, now: int) -> None:
        self._terms.stats.failures += 1
        if self._terms.breaker.failed(now):
            logger.warning("users and plans cannot be read, what was known before holds: %s", error)

    def _landed(self, key: K, asked_at: int, flight: asyncio.Task[V]) -> None:
        wanted = self._flights.get(key) is flight
        if wanted:
            del self._flights[key]
        # Asking for the exception also tells asyncio that nobody needs to hear of it, should all have gone.
        if flight.cancelled() or flight.exception() is not None or not wanted:
            return
        self._answers[key] = (asked_at, flight.result())
        self._answers.move_to_end(key)
        if len(self._answers) > self._most:
            _, (read_at, _) = self._answers.popitem(last=False)
            self._terms.stats.evicted += asked_at - read_at < self._terms.life


DEFAULT_CACHE_FOR: Final = 30.0
DEFAULT_MAX_USERS: Final = 10_000
DEFAULT_DEADLINE: Final = 0.1
_FAILURES: Final = 3
_MAX_PLANS: Final = 1_000


class Directory:
    """Users and plans, read through a cache. One per process and event loop; share it freely between tasks.

    `store`      where they live: `MemoryDirectoryStore()`, or the one beside a DynamoDB store's counters.
    `cache_for`  seconds that an answer is good for: what others change shows after at most this long.
    `max_users`  users remembered, and identities; the longest unused give way.
    `deadline`   seconds that a question may wait for the store, all its reads together.
    """

    def __init__(
        self,
        store: DirectoryStore,
        *,
        clock: Clock | None = None,
        cache_for: float = DEFAULT_CACHE_FOR,
        max_users: int = DEFAULT_MAX_USERS,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        if not 0 <= cache_for < math.inf:
            raise ConfigError("cache_for", f"must be a number of seconds from 0 up, not {cache_for!r}")
        if max_users < 1:
            raise ConfigError("max_users", f"must be at least 1, not {max_users!r}")
        if not 0 < deadline <= 60:
            raise ConfigError("deadline", f"must be more than 0 and at most 60 seconds, not {deadline!r}")
        self.store = store
        self.clock: Clock = clock or SystemClock()
        self.stats = DirectoryStats()
        self._deadline = deadline
        self._register = Register(store, self.clock)
        terms = Terms(self.clock, round(cache_for * SECOND), deadline, BreakerState(failures=_FAILURES), self.stats)
        self._users: Cache[str, User | None] = Cache(partial(store.read, User), terms, most=max_users)
        self._plans: Cache[str, Plan | None] = Cache(partial(store.read, Plan), terms, most=_MAX_PLANS)
        self._ids: Cache[Identity, str | None] = Cache(store.find, terms, most=max_users)

    async def quotas_for(self, user: UserId, action: str) -> Quotas | None:
        """The quotas to check with; None where the action's policy decides by its own.

        In this order: nothing for who is inactive, the user's own, no limit for an admin, the plan's, None. Never
        raises for a store that fails: what was known before holds, or else None. Raises `InvalidUser`.
        """
        by = self._by()
        try:
            found = await self._users.get(check_user(user), by=by)
            if found is None:
                return None
            if (own := own_quotas(found, action)) is not None or found.plan is None:
                return own
            plan = await self._plans.get(found.plan, by=by)
        except StoreUnavailable:
            self.stats.without += 1
            return None
        if plan is None:
            self.stats.unknown_plans += 1
            return None
        return plan.quotas.get(action)

    async def user(self, user: UserId) -> User | None:
        """None where there is no such user. Raises `StoreUnavailable` where not even an old answer is known."""
        return await self._users.get(check_user(user), by=self._by())

    async def plan(self, name: str) -> Plan | None:
        """None where there is no such plan. Raises as `user` does, and `ConfigError` for what is no name of a plan."""
        return await self._plans.get(check_plan("plan", name), by=self._by())

    async def find(self, identity: Identity) -> User | None:
        """The user who has this e-mail or API key: `find(Identity.api_key(key))`. Raises as `user` does."""
        by = self._by()
        user = await self._ids.get(identity, by=by)
        found = None if user is None else await self._users.get(user, by=by)
        # Two answers of different age: an identity that was taken away meanwhile does not open the door.
        return found if found is not None and identity in found.identities else None

    async def put_user(self, user: User) -> None:
        """Whatever was there under this id, it is this now. Raises `IdentityTaken`, `StoreUnavailable`."""
        await self.change_user(user.id, lambda _: user)

    async def change_user(self, user: UserId, change: Callable[[User | None], User]) -> User:
        """The user becomes `change` of it; of None where there is none yet. No change is lost to a simultaneous one.

        Raises as `put_user` does, and what `change` raises.
        """
        return cast(User, await self._replace_user(user, change))

    async def remove_user(self, user: UserId) -> bool:
        """The user and all identities, not what was counted; False where there was none."""
        was_there = False

        def gone(old: User | None) -> None:
            nonlocal was_there
            was_there = was_there or old is not None

        await self._replace_user(user, gone)
        return was_there

    async def put_plan(self, plan: Plan) -> None:
        """Whatever was there under this name, it is this now."""
        await self.change_plan(plan.name, lambda _: plan)

    async def change_plan(self, name: str, change: Callable[[Plan | None], Plan]) -> Plan:
        """As `change_user`."""
        return cast(Plan, await self._replace_plan(name, change))

    async def remove_plan(self, name: str) -> bool:
        """False where there was none. For users who still have it, the policies' own quotas hold."""
        was_there = False

        def gone(old: Plan | None) -> None:
            nonlocal was_there
            was_there = was_there or old is not None

        await self._replace_plan(name, gone)
        return was_there

    def users(self, *, plan: str | None = None) -> AsyncIterator[User]:
        """All users, or a plan's, straight from the store; what changed a few seconds ago may not show yet."""
        return self._register.users(plan=plan)

    def plans(self) -> AsyncIterator[Plan]:
        """All plans, likewise."""
        return self._register.plans()

    async def _replace_user(self, user: UserId, change: Callable[[User | None], User | None]) -> User | None:
        user = check_user(user)
        touched: set[Identity] = set()

        def noting(old: User | None) -> User | None:
            new = change(old)
            for one in (old, new):
                touched.update(() if one is None else one.identities)
            return new

        try:
            return await self._register.change(User, user, noting)
        finally:  # also after a failure, when nobody knows what was written
            self._users.forget(user)
            for identity in touched:
                self._ids.forget(identity)

    async def _replace_plan(self, name: str, change: Callable[[Plan | None], Plan | None]) -> Plan | None:
        try:
            return await self._register.change(Plan, check_plan("plan", name), change)
        finally:
            self._plans.forget(name)

    def _by(self) -> float:
        """When, by the event loop's time, the caller will have waited long enough."""
        return asyncio.get_running_loop().time() + self._deadline


def own_quotas(user: User, action: str) -> Quotas | None:
    """What holds for this user whatever the plan; None where the plan decides."""
    if not user.active:
        return INACTIVE
    if (own := user.quotas.get(action)) is not None:
        return own
    return UNLIMITED if user.role == "admin" else None
