"""`open_store`, the store that it opens, which runs everything on it, and its users and plans, `Directory`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, Self, TypeVar, cast
from weakref import WeakKeyDictionary

from ratelimit import directory
from ratelimit.blocking import Runner
from ratelimit.clock import Clock
from ratelimit.directory import DEFAULT_CACHE_FOR, DEFAULT_DEADLINE, DEFAULT_MAX_USERS, DirectoryStats
from ratelimit.errors import ConfigError, within
from ratelimit.opening import over_regions, settings_here, store_from_url, with_timelines
from ratelimit.regions import Regions
from ratelimit.store import MemoryStore, TableStore
from ratelimit.store.directory import DirectoryStore, Plan, User
from ratelimit.store.hashed import HashedUserStore

P = ParamSpec("P")
T = TypeVar("T")


def twin_of(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """Return the method, for a class whose `_run` runs a coroutine, and whose `_core` has this method."""
    name = method.__name__

    @wraps(method)
    def call(self: Any, /, *args: P.args, **options: P.kwargs) -> T:
        result: T = self._run(getattr(self._core, name)(*args, **options))
        return result

    return call


class BlockingDirectoryStore(NamedTuple):
    """Where the users and plans of a store are, for `Directory`."""

    inner: DirectoryStore
    runner: Runner


class Store:
    """A store for threads. Made by `open_store`; `with` closes it."""

    def __init__(self, inner: TableStore, runner: Runner, on_a_loop: Callable[[], TableStore]) -> None:
        self.inner = inner
        self.runner = runner
        self.on_a_loop = on_a_loop
        """Returns the same store for an event loop: the usage log's thread has one."""

    @property
    def directory(self) -> BlockingDirectoryStore:
        """The users and plans."""
        return BlockingDirectoryStore(self.inner.directory, self.runner)

    def open(self) -> None:
        """Make ready; harmless when it is. Raises `StoreUnavailable`, or `StoreMisconfigured`."""
        self.run(self.inner.open())

    def close(self) -> None:
        """Let go of connections; harmless when closed."""
        self.run(self.inner.close())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what a coroutine on the inner store does."""
        return self.runner.run(work, "open_store")

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(url: str) -> Store:
    """Open a store: `store = open_store(url)`, or `with open_store(url) as store:`, which closes it.

    URLs and errors are those of `ratelimit.open_store`.
    """
    store = store_from(url)
    try:
        store.open()
    except BaseException:
        store.close()
        raise
    return store


def store_from(
    url: str, *, user_hash_key: str | None = None, regions: Regions | None = None, timelines: bool = False
) -> Store:
    """Return the store that a URL names, as `store_from_url` does; with hashed users where there is a key. Raises
    `ConfigError`."""
    if not url.startswith("dynamodb://"):
        return _hashed(store_of(store_from_url(url)), user_hash_key)
    # Imported here: AWS's client takes its time, and an app on the embedded store never needs it.
    from ratelimit.dynamodb import DynamoDBStore, parse_url
    from ratelimit.dynamodb.store import BlockingDynamoDBStore

    runner = Runner()
    with within("store"):
        settings = settings_here(with_timelines(parse_url(url), timelines), regions)
        if settings.failover:
            raise ConfigError("failover", "needs an event loop, to ask the regions behind the answers; turn it off")
        inner = over_regions(settings, regions, lambda each: BlockingDynamoDBStore(each, runner))
    made = Store(inner, runner, lambda: over_regions(settings, regions, partial(DynamoDBStore, lean=True)))
    return _hashed(made, user_hash_key)


def _hashed(store: Store, key: str | None) -> Store:
    if key is None:
        return store
    return Store(HashedUserStore(store.inner, key), store.runner, lambda: HashedUserStore(store.on_a_loop(), key))


def store_of(store: object) -> Store:
    """Return the store for threads: itself, or around one in memory, always the same. Raises `ConfigError`."""
    if isinstance(store, Store):
        return store
    if isinstance(store, MemoryStore):
        runner = _runners.get(store)
        if runner is None:
            runner = _runners.setdefault(store, Runner())
        return Store(store, runner, lambda: cast(TableStore, _Locked(store, runner)))
    url = repr(store) if isinstance(store, str) else "'memory://'"
    raise ConfigError(
        "store", f"expected a store of ratelimit.sync, not {store!r}; open one: ratelimit.sync.open_store({url})"
    )


class _Locked:
    """What an event loop may ask of a store in memory while threads use it. Nothing of that ever waits."""

    def __init__(self, inner: object, runner: Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name in ("events", "directory", "scans"):
            return _Locked(found, self._runner)
        if not iscoroutinefunction(found):
            return found

        async def call(*args: Any, **options: Any) -> Any:
            with self._runner.lock:
                return await found(*args, **options)

        return call


_runners: Final[WeakKeyDictionary[MemoryStore, Runner]] = WeakKeyDictionary()


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
