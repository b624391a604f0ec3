"""`Directory`: users and plans, for threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from ratelimit import directory
from ratelimit.clock import Clock
from ratelimit.directory import DEFAULT_CACHE_FOR, DEFAULT_DEADLINE, DEFAULT_MAX_USERS, DirectoryStats
from ratelimit.errors import ConfigError
from ratelimit.store.directory import Plan, User
from ratelimit.sync.store import BlockingDirectoryStore
from ratelimit.sync.twin import twin_of

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
        self._runner = store.runner
        self._core = directory.Directory(
            store.inner, clock=clock, cache_for=cache_for, max_users=max_users, deadline=deadline
        )

    @property
    def stats(self) -> DirectoryStats:
        """Sums since it was made."""
        return self._core.stats

    quotas_for = twin_of(directory.Directory.quotas_for)
    user = twin_of(directory.Directory.user)
    plan = twin_of(directory.Directory.plan)
    find = twin_of(directory.Directory.find)
    put_user = twin_of(directory.Directory.put_user)
    change_user = twin_of(directory.Directory.change_user)
    remove_user = twin_of(directory.Directory.remove_user)
    put_plan = twin_of(directory.Directory.put_plan)
    change_plan = twin_of(directory.Directory.change_plan)
    remove_plan = twin_of(directory.Directory.remove_plan)

    def users(self, *, plan: str | None = None) -> Iterator[User]:
        """Return all users, or a plan's, straight from the store; what changed a few seconds ago may not show yet."""
        return self._each(self._core.users(plan=plan))

    def plans(self) -> Iterator[Plan]:
        """Return all plans, likewise."""
        return self._each(self._core.plans())

    def _each(self, entries: AsyncIterator[T]) -> Iterator[T]:
        async def following() -> list[T]:
            try:
                return [await anext(entries)]
            except StopAsyncIteration:
                return []

        while found := self._run(following()):
            yield from found

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work, "Directory")
