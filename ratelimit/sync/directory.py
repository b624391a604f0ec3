"""`Directory`: users and plans, for threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from ratelimit import directory
from ratelimit.clock import Clock
from ratelimit.directory import DEFAULT_CACHE_FOR, DEFAULT_DEADLINE, DEFAULT_MAX_USERS, DirectoryStats
from ratelimit.errors import ConfigError
from ratelimit.names import UserId
from ratelimit.quota import Quotas
from ratelimit.store.directory import Identity, Plan, User
from ratelimit.sync.store import BlockingDirectoryStore

T = TypeVar("T")


class Directory:
    """Users and plans, read through a cache, as `ratelimit.Directory`, whose arguments and methods it has.

    One per process, for all of its threads: `Directory(store.directory)`, with what `open_store` gave.
    """

    def __init__(
        self,
        store: BlockingDirectoryStore,
        *,
        clock: Clock | None = None,
        cache_for: float = DEFAULT_CACHE_FOR,
        max_users: int = DEFAULT_MAX_USERS,
        deadline: float = DEFAULT_DEADLINE,
    ) -> None:
        if not isinstance(store, BlockingDirectoryStore):
            raise ConfigError("store", f"expected the directory of a store of ratelimit.sync, not {store!r}")
        self.runner = store.runner
        self.core = directory.Directory(
            store.inner, clock=clock, cache_for=cache_for, max_users=max_users, deadline=deadline
        )

    @property
    def stats(self) -> DirectoryStats:
        """Sums since it was made."""
        return self.core.stats

    def quotas_for(self, user: UserId, action: str) -> Quotas | None:
        """Return the quotas to check with; None where the action's policy decides by its own. Raises `InvalidUser`."""
        return self._run(self.core.quotas_for(user, action))

    def user(self, user: UserId) -> User | None:
        """Return the user, or None. Raises `StoreUnavailable` where not even an old answer is known."""
        return self._run(self.core.user(user))

    def plan(self, name: str) -> Plan | None:
        """Return the plan, or None. Raises as `user` does, and `ConfigError` for what is no name of a plan."""
        return self._run(self.core.plan(name))

    def find(self, identity: Identity) -> User | None:
        """Return the user who has this e-mail or API key: `find(Identity.api_key(key))`. Raises as `user` does."""
        return self._run(self.core.find(identity))

    def put_user(self, user: User) -> None:
        """Make the user this one, whatever was there under this id. Raises `IdentityTaken`, `StoreUnavailable`."""
        self._run(self.core.put_user(user))

    def change_user(self, user: UserId, change: Callable[[User | None], User]) -> User:
        """Make the user `change` of it; of None where there is none yet. No change is lost to a simultaneous one."""
        return self._run(self.core.change_user(user, change))

    def remove_user(self, user: UserId) -> bool:
        """Remove the user and all identities, not what was counted; return False where there was none."""
        return self._run(self.core.remove_user(user))

    def put_plan(self, plan: Plan) -> None:
        """Make the plan this one, whatever was there under this name. Raises `StoreUnavailable`."""
        self._run(self.core.put_plan(plan))

    def change_plan(self, name: str, change: Callable[[Plan | None], Plan]) -> Plan:
        """Make the plan `change` of it, as `change_user` does."""
        return self._run(self.core.change_plan(name, change))

    def remove_plan(self, name: str) -> bool:
        """Remove the plan; return False where there was none. For its users, the policies' own quotas hold then."""
        return self._run(self.core.remove_plan(name))

    def users(self, *, plan: str | None = None) -> Iterator[User]:
        """Return all users, or a plan's, straight from the store; what changed a few seconds ago may not show yet."""
        return self._each(self.core.users(plan=plan))

    def plans(self) -> Iterator[Plan]:
        """Return all plans, likewise."""
        return self._each(self.core.plans())

    def _each(self, entries: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> list[T]:
            try:
                return [await anext(entries)]
            except StopAsyncIteration:
                return []

        while found := self._run(following()):
            yield from found

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work, "Directory")
