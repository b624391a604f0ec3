"""`Directory`: which quotas hold for this user and this action, answered from a cache in microseconds."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Final, Generic, NamedTuple, TypeVar, cast

from ratelimit.blocking import is_blocking, loop_time, timeout
from ratelimit.breaker import BreakerState
from ratelimit.cache import LRUCache
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.cursor import each_page
from ratelimit.errors import ConfigError, RateLimitError, StoreThrottled, StoreUnavailable
from ratelimit.names import UserId, check_user
from ratelimit.quota import INACTIVE, UNLIMITED, Quotas
from ratelimit.settings import stat
from ratelimit.store.directory import DirectoryStore, Entry, Identity, Plan, UnreadableEntry, User, check_plan

logger = logging.getLogger("ratelimit")


T = TypeVar("T", bound=Entry)
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

DEFAULT_CACHE_FOR: Final = 30.0
DEFAULT_MAX_USERS: Final = 10_000
DEFAULT_DEADLINE: Final = 0.1
MAX_CACHED_PLANS: Final = 1_000
MAX_FAILURES: Final = 3
_ATTEMPTS: Final = 10


class UnknownUser(RateLimitError, LookupError):
    """No such user is in the directory."""


class UnknownPlan(RateLimitError, LookupError):
    """No such plan is in the directory."""


class Contended(RateLimitError):
    """Others kept changing the same user or plan; nothing was written."""


@dataclass(slots=True)
class DirectoryStats:
    """Sums since the directory was made. Each bound that may be hit has one that shows it was."""

    hits: int = stat("Questions about users and plans answered from the cache.")
    reads: int = stat("Questions about users and plans asked of the store.")
    shared: int = stat("Questions that joined a read under way.")
    failures: int = stat("Reads of users and plans without a usable answer.")
    spared: int = stat("Reads not even tried, because the store had failed repeatedly.")
    late: int = stat("Questions that gave up waiting for a read.")
    stale: int = stat("Questions answered by what was known before.")
    without: int = stat("Times that a policy's own quotas had to do, because nothing was known.")
    unknown_plans: int = stat("Times that a policy's own quotas held, because the user's plan does not exist.")
    evicted: int = stat("Answers that gave way to others before their time was up.")
    """Then `max_users` is small for this traffic."""


class CacheOptions(NamedTuple):
    """What the caches of one directory have in common."""

    clock: Clock
    life: int
    """Microseconds that an answer is good for, counted from when it was asked for."""
    deadline: float
    """Seconds that a read may take."""
    breaker: BreakerState
    stats: DirectoryStats


class ReadThroughCache(Generic[K, V]):
    """The most recently used answers of `read`, also that there is nothing, kept for a short life; one read per key.

    A read is a task of its own. Whoever needs its answer waits for it, for as long as the caller can, and may be
    cancelled without harm to the others; the task ends by its own deadline.
    """

    __slots__ = ("_answers", "_forgotten", "_options", "_read", "_reads")

    def __init__(self, read: Callable[[K], Awaitable[V]], options: CacheOptions, *, max_entries: int) -> None:
        self._read = read
        self._options = options
        self._answers: LRUCache[K, tuple[int, V]] = LRUCache(max_entries)
        """By key, when it was asked for, and the answer."""
        self._reads: dict[K, asyncio.Task[V]] = {}
        self._forgotten = 0
        """How often anything was, so that a read in a thread notices."""

    async def get(self, key: K, *, by: float | None = None) -> V:
        """Return the answer for this key; an old one where the store gives none before `by`, as `loop_time` has it.

        Raises `StoreUnavailable` where there is no old one either.
        """
        now = self._options.clock.now()
        found = self._answers.peek(key)
        if found is not None and 0 <= now - found[0] < self._options.life:
            self._answers.get(key)
            self._options.stats.hits += 1
            return found[1]
        try:
            if is_blocking():
                return await self._ask_here(key, now, by)
            return await self._wait(self._start(key, now), by)
        except StoreUnavailable:
            if found is None:
                raise
            self._options.stats.stale += 1
            return found[1]

    def forget(self, key: K) -> None:
        """Forget what is known, and do not keep what a read under way will bring."""
        self._answers.pop(key)
        self._reads.pop(key, None)
        self._forgotten += 1

    def __len__(self) -> int:
        return len(self._answers)

    def _start(self, key: K, now: int) -> asyncio.Task[V]:
        stats = self._options.stats
        read = self._reads.get(key)
        if read is not None:
            stats.shared += 1
            return read
        self._admit(now)
        read = self._reads[key] = asyncio.create_task(self._ask(key, now))
        read.add_done_callback(partial(self._ended, key, now))
        return read

    def _admit(self, now: int) -> None:
        if not self._options.breaker.admits(now):
            self._options.stats.spared += 1
            raise StoreUnavailable("users and plans could not be read repeatedly; it will be tried again in a while")

    async def _ask_here(self, key: K, now: int, by: float | None) -> V:
        """Without an event loop, whoever needs the answer reads, for as long as the caller can wait."""
        self._admit(now)
        forgotten = self._forgotten
        value = await self._ask(key, now, by)
        if forgotten == self._forgotten:
            self._keep(key, now, value)
        return value

    async def _wait(self, read: asyncio.Task[V], by: float | None) -> V:
        """Not `wait_for`, which would end the read for all."""
        left = None if by is None else max(0.0, by - loop_time())
        await asyncio.wait((read,), timeout=left)
        if not read.done():
            self._options.stats.late += 1
            raise StoreUnavailable("users and plans could not be read in time")
        if read.cancelled():
            raise StoreUnavailable("users and plans could not be read: the event loop is closing")
        return read.result()

    async def _ask(self, key: K, now: int, by: float | None = None) -> V:
        options = self._options
        options.stats.reads += 1
        try:
            left = options.deadline if by is None else min(options.deadline, by - loop_time())
            async with timeout(left):
                value = await self._read(key)
        except TimeoutError as error:
            late = StoreUnavailable(f"users and plans could not be read within {options.deadline} s")
            self._failed(late, now)
            raise late from error
        except (StoreThrottled, UnreadableEntry):  # one key's trouble
            options.stats.failures += 1
            options.breaker.succeeded()
            raise
        except StoreUnavailable as error:
            self._failed(error, now)
            raise
        except BaseException:
            options.breaker.abandoned()
            raise
        if options.breaker.succeeded():
            logger.warning("users and plans can be read again")
        return value

    def _failed(self, error: StoreUnavailable, now: int) -> None:
        self._options.stats.failures += 1
        if self._options.breaker.failed(now):
            logger.warning("users and plans cannot be read, what was known before holds: %s", error)

    def _ended(self, key: K, asked_at: int, read: asyncio.Task[V]) -> None:
        wanted = self._reads.get(key) is read
        if wanted:
            del self._reads[key]
        # Asking for the exception also tells asyncio that nobody needs to hear of it, should all have gone.
        if read.cancelled() or read.exception() is not None or not wanted:
            return
        self._keep(key, asked_at, read.result())

    def _keep(self, key: K, asked_at: int, value: V) -> None:
        evicted = self._answers.put(key, (asked_at, value))
        if evicted is not None:
            self._options.stats.evicted += asked_at - evicted[1][0] < self._options.life


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
        breaker = BreakerState(failures=MAX_FAILURES)
        options = CacheOptions(self.clock, round(cache_for * SECOND), deadline, breaker, self.stats)
        self._users = ReadThroughCache[str, User | None](partial(store.read, User), options, max_entries=max_users)
        read_plan = partial(store.read, Plan)
        self._plans = ReadThroughCache[str, Plan | None](read_plan, options, max_entries=MAX_CACHED_PLANS)
        self._ids = ReadThroughCache[Identity, str | None](store.find, options, max_entries=max_users)

    async def quotas_for(self, user: UserId, action: str) -> Quotas | None:
        """Return the quotas to check with; None where the action's policy decides by its own.

        In this order: nothing for who is inactive, the user's own, no limit for an admin, the plan's, None. Never
        raises for a store that fails: what was known before holds, or else None. Raises `InvalidUser`.
        """
        by = self._by()
        try:
            found = await self._users.get(check_user(user), by=by)
            if found is None:
                return None
            if (own := _own_quotas(found, action)) is not None or found.plan is None:
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
        """Return the user, or None. Raises `StoreUnavailable` where not even an old answer is known."""
        return await self._users.get(check_user(user), by=self._by())

    async def plan(self, name: str) -> Plan | None:
        """Return the plan, or None. Raises as `user` does, and `ConfigError` for what is no name of a plan."""
        return await self._plans.get(check_plan("plan", name), by=self._by())

    async def find(self, identity: Identity) -> User | None:
        """Return the user who has this e-mail or API key: `find(Identity.api_key(key))`. Raises as `user` does."""
        by = self._by()
        user = await self._ids.get(identity, by=by)
        found = None if user is None else await self._users.get(user, by=by)
        # Two answers of different age: an identity that was taken away meanwhile finds nobody.
        return found if found is not None and identity in found.identities else None

    async def put_user(self, user: User) -> None:
        """Make the user this one, whatever was there under this id. Raises `IdentityTaken`, `StoreUnavailable`."""
        await self.change_user(user.id, lambda _: user)

    async def change_user(self, user: UserId, change: Callable[[User | None], User]) -> User:
        """Make the user `change` of it; of None where there is none yet. No change is lost to a simultaneous one.

        `change` may be asked again. Raises as `put_user` does, `Contended`, and what `change` raises.
        """
        return cast(User, (await self._replace_user(user, change))[1])

    async def remove_user(self, user: UserId) -> bool:
        """Remove the user and all identities, not what was counted; return False where there was none."""
        return (await self._replace_user(user, lambda _: None))[0] is not None

    async def put_plan(self, plan: Plan) -> None:
        """Make the plan this one, whatever was there under this name. Raises `StoreUnavailable`."""
        await self.change_plan(plan.name, lambda _: plan)

    async def change_plan(self, name: str, change: Callable[[Plan | None], Plan]) -> Plan:
        """Make the plan `change` of it, as `change_user` does."""
        return cast(Plan, (await self._replace_plan(name, change))[1])

    async def remove_plan(self, name: str) -> bool:
        """Remove the plan; return False where there was none. For its users, the policies' own quotas hold then."""
        return (await self._replace_plan(name, lambda _: None))[0] is not None

    def users(self, *, plan: str | None = None) -> AsyncIterator[User]:
        """Return all users, or a plan's, straight from the store; what changed a few seconds ago may not show yet."""
        return self._every(User, plan)

    def plans(self) -> AsyncIterator[Plan]:
        """Return all plans, likewise."""
        return self._every(Plan)

    async def _every(self, kind: type[T], plan: str | None = None) -> AsyncIterator[T]:
        async for entries in each_page(lambda cursor: self.store.page(kind, plan=plan, cursor=cursor)):
            for entry in entries:
                yield entry

    async def _replace_user(
        self, user: UserId, change: Callable[[User | None], User | None]
    ) -> tuple[User | None, User | None]:
        user = check_user(user)
        touched: set[Identity] = set()

        def noting(old: User | None) -> User | None:
            new = change(old)
            for one in (old, new):
                touched.update(() if one is None else one.identities)
            return new

        try:
            return await self._replace(User, user, noting)
        finally:  # also after a failure, when nobody knows what was written
            self._users.forget(user)
            for identity in touched:
                self._ids.forget(identity)

    async def _replace_plan(
        self, name: str, change: Callable[[Plan | None], Plan | None]
    ) -> tuple[Plan | None, Plan | None]:
        try:
            return await self._replace(Plan, check_plan("plan", name), change)
        finally:
            self._plans.forget(name)

    async def _replace(
        self, kind: type[T], name: str, change: Callable[[T | None], T | None]
    ) -> tuple[T | None, T | None]:
        """Read, change, and replace if nobody was faster, else once more: so no change is lost. Return both."""
        for _ in range(_ATTEMPTS):
            old = await self.store.read(kind, name)
            new = change(old)
            if old == new or await self.store.replace(old, new, now=self.clock.now()):
                return old, new
        raise Contended(f"{kind.__name__.lower()} {name!r} was changed by others {_ATTEMPTS} times over; try again")

    def _by(self) -> float:
        return loop_time() + self._deadline


def _own_quotas(user: User, action: str) -> Quotas | None:
    """Return what holds for this user whatever the plan; None where the plan decides."""
    if not user.active:
        return INACTIVE
    if (own := user.quotas.get(action)) is not None:
        return own
    return UNLIMITED if user.role == "admin" else None
