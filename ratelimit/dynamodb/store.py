"""`DynamoDBStore`: the counters in one table, one item per user and action, one `UpdateItem` per check."""

from __future__ import annotations

import asyncio
import random as _random
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self, Unpack

from ratelimit.dynamodb.client import Client, connect
from ratelimit.dynamodb.directory import DynamoDBDirectoryStore
from ratelimit.dynamodb.erasing import erase
from ratelimit.dynamodb.errors import explained
from ratelimit.dynamodb.events import DynamoDBEventStore
from ratelimit.dynamodb.retries import HARMLESS, Random, Retries, Sleep
from ratelimit.dynamodb.scans import DynamoDBScans
from ratelimit.dynamodb.schema import limit_key
from ratelimit.dynamodb.settings import Settings, StoreOptions, is_amazon
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.table import ensure_on, verify_on
from ratelimit.dynamodb.transport.base import Transport, constant, units
from ratelimit.dynamodb.transport.select import open_transport
from ratelimit.dynamodb.writer import ConditionalWriter, record_in
from ratelimit.errors import StoreUnavailable
from ratelimit.names import Key
from ratelimit.store.base import Outcome, Record, Trace, Write


class DynamoDBStore:
    """A `Store` on a DynamoDB table: `DynamoDBStore(table="limits", region="eu-west-1")`, or on ready `Settings`.

    It opens itself with its first use. `open` checks that the table is there and ours, which takes the permission
    `dynamodb:DescribeTable`. Every event loop that uses it has connections of its own, which `close` in that loop ends,
    or else the end of the loop; a forked process has, too. `stats` counts what was asked of DynamoDB.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        sleep: Sleep = asyncio.sleep,
        random: Random = _random.random,
        **options: Unpack[StoreOptions],
    ) -> None:
        self.settings = replace(settings, **options) if settings else Settings(**options)
        self.stats = Stats()
        self._retries = Retries(self.settings.attempts, self.stats, sleep=sleep, random=random)
        self._constant = constant(self.settings)
        self.events = DynamoDBEventStore(self._connection, self._lane, self.settings, self.stats, self._retries)
        self.directory = DynamoDBDirectoryStore(self._connection, self.settings, self.stats, self._retries)
        self.scans = DynamoDBScans(self._connection, self.settings, self.stats, self._retries)
        self._opened: dict[asyncio.AbstractEventLoop, _Opened] = {}
        self._opening: dict[asyncio.AbstractEventLoop, asyncio.Task[_Opened]] = {}

    async def open(self) -> None:
        """See `Store.open`. Creates the table first, where the settings say `create`."""
        await self._ready()

    async def close(self) -> None:
        """See `Store.close`."""
        loop = asyncio.get_running_loop()
        if (opening := self._opening.get(loop)) is not None:
            opening.cancel()
            await asyncio.wait([opening])
        await self.scans.close()
        if (opened := self._opened.pop(loop, None)) is not None:
            await opened.life.aclose()

    def apply(self, key: Key, write: Write, *, now: int) -> Coroutine[Any, Any, Outcome]:
        """See `Store.apply`."""
        opened = self._opened.get(asyncio._get_running_loop())  # type: ignore[arg-type]
        return self._apply_first(key, write) if opened is None else opened.writer.apply(key, write)

    async def read(self, key: Key) -> Record:
        """See `Store.read`."""
        opened = await self._ready()
        request = {"Key": limit_key(key), **self._constant, "ConsistentRead": True}
        answer = await self._ask("GetItem", opened, lambda: opened.connection.client.get_item(**request))
        self.stats.read_units += units(answer)
        return record_in(answer.get("Item", {}), self.settings.table)

    async def delete(self, key: Key) -> None:
        """See `Store.delete`."""
        opened = await self._ready()
        request = {"Key": limit_key(key), **self._constant}
        answer = await self._ask("DeleteItem", opened, lambda: opened.connection.client.delete_item(**request))
        self.stats.write_units += units(answer)

    async def erase(self, users: Collection[str]) -> Mapping[Trace, int]:
        """See `TableStore.erase`. Reads the whole table, one read unit for 4 KB of it."""
        return await erase(users, self.directory, self.events, self.scans)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _ask(
        self, operation: str, opened: _Opened, call: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """A call that may safely happen twice."""

        async def send() -> dict[str, Any]:
            with explained(opened.connection.place):
                return await call()

        return await self._retries.run(operation, send, on=HARMLESS)

    async def _apply_first(self, key: Key, write: Write) -> Outcome:
        return await (await self._ready()).writer.apply(key, write)

    async def _connection(self) -> Client:
        return (await self._ready()).connection

    async def _lane(self) -> Transport:
        return (await self._ready()).lane

    async def _ready(self) -> _Opened:
        """Opening is one task however many ask for it, and it goes on where one of them gives up waiting."""
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

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> _Opened:
        connection = await connect(self.settings)
        try:
            await (ensure_on if self.settings.create else verify_on)(connection, self._retries)
            lane = await open_transport(connection, self.settings, self.stats)
        except BaseException:
            await connection.close()
            raise
        tells = is_amazon(connection.place.endpoint)
        writer = ConditionalWriter(lane, self._retries, self.stats, self.settings.table, self.read, tells=tells)
        opened = _Opened(connection, lane, writer, self._live(loop, lane, connection))
        await anext(opened.life)
        return opened

    async def _live(
        self, loop: asyncio.AbstractEventLoop, lane: Transport, connection: Client
    ) -> AsyncGenerator[None, None]:
        """A loop that ends, as by `asyncio.run`, closes its generators: so this lets go of what is bound to it, where
        nobody did before."""
        try:
            yield
        finally:
            self._opened.pop(loop, None)
            await lane.close()
            await connection.close()

    def _opening_done(self, loop: asyncio.AbstractEventLoop, opening: asyncio.Task[_Opened]) -> None:
        self._opening.pop(loop, None)
        # Asking for the exception also tells asyncio that nobody needs to hear of it, should all have gone.
        if not opening.cancelled() and opening.exception() is None:
            self._opened[loop] = opening.result()

    def _forget_closed_loops(self) -> None:
        """Those that were closed without a word to what ran on them."""
        for known in (self._opened, self._opening):
            for loop in [loop for loop in known if loop.is_closed()]:
                known.pop(loop)


class _Opened:
    """An open store: its connection, the lane that checks take, and who sends them there, for one event loop."""

    __slots__ = ("connection", "lane", "life", "writer")

    def __init__(
        self, connection: Client, lane: Transport, writer: ConditionalWriter, life: AsyncGenerator[None, None]
    ) -> None:
        self.connection = connection
        self.lane = lane
        self.writer = writer
        self.life = life
