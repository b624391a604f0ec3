"""`BlockingDynamoDBStore`: a `DynamoDBStore` for threads, without an event loop: see `ratelimit/blocking.py`."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any, Final, TypeVar
from weakref import WeakSet

from ratelimit.blocking import Runner
from ratelimit.blocking_wait import wait_for
from ratelimit.dynamodb.access import Client, blocking_api, connect_blocking, way_of
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.store import DynamoDBStore, Opened, is_fast_wanted
from ratelimit.dynamodb.transport.base import Transport
from ratelimit.dynamodb.transport.connection import Endpoint
from ratelimit.dynamodb.transport.fast import FastTransport
from ratelimit.dynamodb.transport.pool import ThreadPool
from ratelimit.dynamodb.transport.signing import ThreadCredentials
from ratelimit.errors import StoreUnavailable
from ratelimit.names import Key
from ratelimit.store.base import Outcome, Write

T = TypeVar("T")


class BlockingDynamoDBStore(DynamoDBStore):
    """All of its methods but `scans` and `erase`, for coroutines that `runner` runs.

    A forked process has connections of its own, and goes on with whatever else was found out before the fork.
    """

    def __init__(self, settings: Settings, runner: Runner) -> None:
        super().__init__(settings, lean=True)
        self._runner = runner
        self._open: Opened | None = None
        self._job: Future[Opened] | None = None
        self._pool: ThreadPool | None = None
        self._credentials: ThreadCredentials | None = None
        _stores.add(self)

    async def close(self) -> None:
        """Let go of the connections; harmless when closed."""
        if (job := self._job) is not None:
            with suppress(StoreUnavailable):
                wait_for(partial(result_of, job))
        ready, self._open = self._open, None
        if ready is not None:
            await ready.transport.close()
            await ready.client.close()

    def apply(self, key: Key, write: Write, *, now: int) -> Coroutine[Any, Any, Outcome]:
        """Write in one `UpdateItem`, if the conditions hold."""
        ready = self._open
        return self._apply_first(key, write) if ready is None else ready.writer.apply(key, write)

    async def _ready(self) -> Opened:
        """Open, in one thread however many ask for it, which goes on where one of them gives up waiting."""
        if self._open is not None:
            return self._open
        if self._job is None:
            self._job = self._runner.start(self._make_ready(), "opening the store")
        return wait_for(partial(result_of, self._job))

    async def _make_ready(self) -> Opened:
        try:
            self._open = await self._connect_here()
            return self._open
        finally:
            self._job = None

    async def _connect_here(self) -> Opened:
        settings = self.settings
        way = wait_for(lambda left: way_of(settings)) if is_fast_wanted(settings) else None
        if way is not None:
            client = way.client(settings, blocking_api)
        else:
            client = wait_for(lambda left: connect_blocking(settings))
        return await self._open_on(client, way, self._new_fast_transport)

    def _new_fast_transport(
        self, client: Client, endpoint: Endpoint, slow: Transport, settings: Settings, stats: Stats
    ) -> FastTransport:
        pool = ThreadPool(
            endpoint,
            client.place,
            stats,
            size=settings.pool,
            wait_timeout=settings.connect_timeout,
            answer_timeout=settings.read_timeout,
        )
        self._pool = pool
        self._credentials = credentials = ThreadCredentials(client.credentials, self._refresh)
        return FastTransport(client, endpoint, slow, settings, stats, pool=pool, credentials=credentials)

    def _refresh(self, refresh: Coroutine[Any, Any, None]) -> Future[None]:
        return self._runner.start(refresh, "credentials")

    def _forked(self) -> None:
        """Keep what was found out; leave the connections to the parent. What one of its threads was in the middle of
        is begun anew."""
        is_busy = self._job is not None or (self._credentials is not None and self._credentials.is_refreshing)
        if self._open is None or is_busy:
            self._open = self._job = None
            return
        self._open.client.api.forget()
        if self._pool is not None:
            self._pool.forget()


_stores: Final[WeakSet[BlockingDynamoDBStore]] = WeakSet()


def _in_child() -> None:
    for store in list(_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def result_of(job: Future[T], left: float) -> T:
    """Return what the job does; wait for it so many seconds at most."""
    return job.result(None if left == inf else left)
