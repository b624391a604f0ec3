"""`Directory`: which quotas hold for this user and this action, answered from a cache in microseconds."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final, cast

from ratelimit.breaker import Breaker
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.directory.cache import Cache, Terms
from ratelimit.directory.register import Register
from ratelimit.directory.stats import DirectoryStats
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.names import UserId, check_user
from ratelimit.quota import INACTIVE, UNLIMITED, Quotas
from ratelimit.store.directory import DirectoryStore, Identity, Plan, User, check_plan

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
        terms = Terms(self.clock, round(cache_for * SECOND), deadline, Breaker(failures=_FAILURES), self.stats)
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
