"""`open_store`, and the store that it opens: what everything on it is run by."""

from __future__ import annotations

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from ratelimit.blocking import Runner
from ratelimit.errors import ConfigError
from ratelimit.factory import store_from_url
from ratelimit.store import MemoryStore, TableStore
from ratelimit.store.directory import DirectoryStore
from ratelimit.store.hashed import HashedUserStore

T = TypeVar("T")


class BlockingDirectoryStore(NamedTuple):
    """Where the users and plans of a store are, for `Directory`."""

    inner: DirectoryStore
    runner: Runner


class Store:
    """A store for threads. Made by `open_store`; `with` closes it."""

    def __init__(self, inner: TableStore, runner: Runner) -> None:
        self.inner = inner
        self.runner = runner

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


def store_from(url: str, *, user_hash_key: str | None = None) -> Store:
    """Return the store that a URL names, not yet open; with hashed users where there is a key. Raises `ConfigError`."""
    runner = Runner()
    if urlsplit(url).scheme == "dynamodb":
        # Imported here: AWS's client takes its time, and an app on the embedded store never needs it.
        from ratelimit.dynamodb import parse_url
        from ratelimit.dynamodb.blocking import BlockingDynamoDBStore

        try:
            store: TableStore = BlockingDynamoDBStore(parse_url(url), runner)
        except ConfigError as error:
            raise error.under("store") from None
    else:
        store = store_from_url(url)
    return Store(store if user_hash_key is None else HashedUserStore(store, user_hash_key), runner)


def store_of(store: object) -> Store:
    """Return the store for threads: itself, or around one in memory, always the same. Raises `ConfigError`."""
    if isinstance(store, Store):
        return store
    if isinstance(store, MemoryStore):
        runner = _runners.get(store)
        if runner is None:
            runner = _runners.setdefault(store, Runner())
        return Store(store, runner)
    url = repr(store) if isinstance(store, str) else "'memory://'"
    raise ConfigError(
        "store", f"expected a store of ratelimit.sync, not {store!r}; open one: ratelimit.sync.open_store({url})"
    )


_runners: Final[WeakKeyDictionary[MemoryStore, Runner]] = WeakKeyDictionary()
