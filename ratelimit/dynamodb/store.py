"""`DynamoDBStore`: the counters in one table, one item per user and action, one `UpdateItem` per check. Of event loops;
`BlockingDynamoDBStore` of threads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Final, NamedTuple, Self, TypeAlias, TypeVar, Unpack
from weakref import WeakSet

from ratelimit.blocking import Runner, aside
from ratelimit.blocking_wait import wait_for
from ratelimit.dynamodb.access import (
    Client,
    LoopApi,
    Way,
    blocking_api,
    connect,
    connect_blocking,
    import_client,
    way_of,
)
from ratelimit.dynamodb.calls import Retries, Stats, TableCalls
from ratelimit.dynamodb.control import prepare
from ratelimit.dynamodb.directory import DynamoDBDirectoryStore
from ratelimit.dynamodb.errors import explained
from ratelimit.dynamodb.events import DynamoDBEventStore
from ratelimit.dynamodb.scans import DynamoDBScans, erase, erase_actions
from ratelimit.dynamodb.schema import PK, limit_key, limit_pk
from ratelimit.dynamodb.settings import Settings, StoreOptions, is_amazon
from ratelimit.dynamodb.transport.base import BotoTransport, Transport
from ratelimit.dynamodb.transport.connection import Endpoint, open_connection
from ratelimit.dynamodb.transport.fast import FastTransport
from ratelimit.dynamodb.transport.pool import Pool, ThreadPool
from ratelimit.dynamodb.transport.signing import CredentialsCache, ThreadCredentials
from ratelimit.dynamodb.writer import ConditionalWriter, read_record, record_in
from ratelimit.errors import StoreUnavailable
from ratelimit.names import Key
from ratelimit.store.base import Outcome, Record, Trace, Write

T = TypeVar("T")

SWITCH: Final = "RATELIMIT_FAST_LANE"
"""The variable that turns the fast transport off, whatever the settings say."""

_OFF: Final = ("off", "false", "no", "0")
_WARM_CONNECTIONS: Final = 4
"""Made in advance: the first checks after a start find the handshakes done."""

NewFastTransport: TypeAlias = Callable[[Client, Endpoint, Transport, Settings, Stats], FastTransport]


class DynamoDBStore:
    """A `Store` on a DynamoDB table: `DynamoDBStore(table="limits", region="eu-west-1")`, or on ready `Settings`.

    It opens itself with its first use. `open` checks that the table is there and ours, which takes the permission
    `dynamodb:DescribeTable`. Every event loop that uses it has connections of its own, which `close` in that loop ends,
    or else the end of the loop; a forked process has, too. `stats` counts what was asked of DynamoDB.
    """

    def __init__(
        self, settings: Settings | None = None, *, lean: bool = False, **options: Unpack[StoreOptions]
    ) -> None:
        """With `lean`, import AWS's client only where it is needed: its event loops may stand still meanwhile, as that
        of a thread that only writes."""
        self.settings = replace(settings, **options) if settings else Settings(**options)
        self.stats = Stats()
        self._retries = Retries(self.settings.attempts, self.stats)
        self._calls = TableCalls(self._client, self.settings, self.stats, self._retries)
        self.events = DynamoDBEventStore(self._calls)
        self.directory = DynamoDBDirectoryStore(self._calls)
        self.scans = DynamoDBScans(self._client, self.settings, self.stats, self._retries)
        self._is_lean = lean or "AWS_LAMBDA_FUNCTION_NAME" in os.environ
        """Whether AWS's client is imported only where the environment does not say all: on Lambda a cold start counts,
        and one request at a time is served."""
        self._opened: dict[asyncio.AbstractEventLoop, Opened] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[Opened]] = {}
        if not self._is_lean:
            import_client()  # now, and not when an event loop would stand still meanwhile

    async def open(self) -> None:
        """Connect, and verify the table; create it first, where the settings say `create`."""
        await self._ready()

    async def close(self) -> None:
        """Let go of what belongs to this event loop; harmless when closed."""
        loop = asyncio.get_running_loop()
        if (opening := self._opening.get(loop)) is not None:
            opening.cancel()
            await asyncio.wait([opening])
        await self.scans.close()
        if (opened := self._opened.pop(loop, None)) is not None:
            assert opened.life is not None
            await opened.life.aclose()

    def apply(self, key: Key, write: Write, *, now: int) -> Coroutine[Any, Any, Outcome]:
        """Write in one `UpdateItem`, if the conditions hold."""
        opened = self._opened.get(asyncio._get_running_loop())  # type: ignore[arg-type]
        return self._apply_first(key, write) if opened is None else opened.writer.apply(key, write)

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        """Write in one `TransactWriteItems`, if all conditions hold: it takes twice the units."""
        return await (await self._ready()).writer.apply_all(writes)

    async def read(self, key: Key) -> Record:
        """Read the record, strongly consistent."""
        return await read_record(self._calls, key)

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        """Read the records in one `BatchGetItem`, strongly consistent."""
        items = await self._calls.items([limit_key(key) for key in keys], consistent=True)
        found = {item[PK]["S"]: record_in(item, self.settings.table) for item in items}
        return [found.get(limit_pk(key), {}) for key in keys]

    async def delete(self, key: Key) -> None:
        await self._calls.run("DeleteItem", Key=limit_key(key))

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """Delete all that there is of these users. Reads the whole table, one read unit for 4 KB of it."""
        return await erase(users, self.directory, self.events, self.scans)

    async def erase_actions(self, actions: Collection[str]) -> int:
        """Delete the counters of these actions, of all users; return how many there were. Reads the whole table."""
        return await erase_actions(actions, self._calls, self.events)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _apply_first(self, key: Key, write: Write) -> Outcome:
        return await (await self._ready()).writer.apply(key, write)

    async def _client(self) -> Client:
        return (await self._ready()).client

    async def _ready(self) -> Opened:
        """Open, in one task however many ask for it, which goes on where one of them gives up waiting."""
        loop = asyncio.get_running_loop()
        if (opened := self._opened.get(loop)) is not None:
            return opened
        if (opening := self._opening.get(loop)) is None:
            self._forget_closed_loops()
            opening = self._opening[loop] = loop.create_task(self._connect(loop))
            opening.add_done_callback(partial(self._opening_done, loop))
        await asyncio.wait([opening])
        if opening.cancelled():
            raise StoreUnavailable(f"the store on table {self.settings.table!r} was closed while it opened")
        return opening.result()

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> Opened:
        settings = self.settings
        way = await aside(lambda: way_of(settings)) if self._is_lean and is_fast_wanted(settings) else None
        if way is None:
            client = await connect(settings)
        else:
            client = way.client(settings, LoopApi)
        opened = await self._open_on(client, way, new_fast_transport)
        life = self._live(loop, opened.transport, client)
        await anext(life)
        return opened._replace(life=life)

    async def _open_on(self, client: Client, way: Way | None, new_fast: NewFastTransport) -> Opened:
        settings = self.settings
        transport: Transport | None = None
        try:
            if way is not None:
                slow = BotoTransport(client, settings, self.stats)
                client.fast = transport = new_fast(client, way.endpoint, slow, settings, self.stats)
            await prepare(client, self._retries, settings)
            if transport is None:
                transport = await open_transport(client, settings, self.stats, new_fast)
        except BaseException:
            if transport is not None:
                await transport.close()
            await client.close()
            raise
        tells = is_amazon(client.place.endpoint)
        writer = ConditionalWriter(transport, self._calls, self._retries, tells=tells)
        return Opened(client, transport, writer)

    async def _live(
        self, loop: asyncio.AbstractEventLoop, transport: Transport, client: Client
    ) -> AsyncGenerator[None, None]:
        """A loop that ends, as by `asyncio.run`, closes its generators: so this lets go of what is bound to it, where
        nobody did before."""
        try:
            yield
        finally:
            self._opened.pop(loop, None)
            await transport.close()
            await client.close()

    def _opening_done(self, loop: asyncio.AbstractEventLoop, opening: asyncio.Task[Opened]) -> None:
        self._opening.pop(loop, None)
        # Asking for the exception also tells asyncio that nobody needs to hear of it, should all have gone.
        if not opening.cancelled() and opening.exception() is None:
            self._opened[loop] = opening.result()

    def _forget_closed_loops(self) -> None:
        """Forget those that were closed without a word to what ran on them."""
        for known in (self._opened, self._opening):
            for loop in [loop for loop in known if loop.is_closed()]:
                known.pop(loop)


class Opened(NamedTuple):
    client: Client
    transport: Transport
    writer: ConditionalWriter
    life: AsyncGenerator[None, None] | None = None


class BlockingDynamoDBStore(DynamoDBStore):
    """The same for threads, without an event loop: all of its methods but `scans` and `erase`, for coroutines that
    `runner` runs (see `ratelimit/blocking.py`).

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
        if (job := self._job) is not None:
            with suppress(StoreUnavailable):
                wait_for(partial(result_of, job))
        ready, self._open = self._open, None
        if ready is not None:
            await ready.transport.close()
            await ready.client.close()

    def apply(self, key: Key, write: Write, *, now: int) -> Coroutine[Any, Any, Outcome]:
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


def is_fast_wanted(settings: Settings) -> bool:
    """Return whether neither the settings nor the variable turn the fast transport off."""
    return settings.fast and os.environ.get(SWITCH, "").lower() not in _OFF


async def open_transport(
    client: Client, settings: Settings, stats: Stats, new_fast: NewFastTransport | None = None
) -> Transport:
    """Open what the settings, the environment and the way to the endpoint allow. Raise `StoreUnavailable`."""
    from ratelimit.dynamodb.session import NoFastTransport, find_endpoint  # which whoever has made the client has

    boto = BotoTransport(client, settings, stats)
    if not is_fast_wanted(settings):
        return boto
    try:
        with explained(client.place):
            endpoint = await find_endpoint(client)
    except NoFastTransport as reason:
        client.fallback = str(reason)
        return boto
    client.fast = fast = (new_fast or new_fast_transport)(client, endpoint, boto, settings, stats)
    try:
        await fast.pool.warm(_WARM_CONNECTIONS)
    except BaseException:  # cancelled: the store is closed while it opens
        await fast.close()
        raise
    return fast


def new_fast_transport(
    client: Client, endpoint: Endpoint, slow: Transport, settings: Settings, stats: Stats
) -> FastTransport:
    """Return one for the event loop that runs."""
    pool = Pool(
        partial(open_connection, endpoint, client.place, settings.connect_timeout),
        stats,
        size=settings.pool,
        wait_timeout=settings.connect_timeout,
        answer_timeout=settings.read_timeout,
    )
    credentials = CredentialsCache(client.credentials)
    return FastTransport(client, endpoint, slow, settings, stats, pool=pool, credentials=credentials)
