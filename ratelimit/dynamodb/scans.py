"""`DynamoDBScans`: the whole table, page by page, by `Scan` with a filter.

Strongly consistent, so that a page sees all that was written before it was asked for: one read unit for 4 KB of
table, whatever is filtered out. A page is worth waiting for: scans have a connection of their own, whose timeout is not
that of a check. Given up early, it would be asked for again while the first request is still at work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar

from ratelimit.cursor import decode_cursor, encode_cursor
from ratelimit.dynamodb.client import Client, connect
from ratelimit.dynamodb.errors import AnswerLost, explained
from ratelimit.dynamodb.events import event_of
from ratelimit.dynamodb.expressions import record_of
from ratelimit.dynamodb.retries import HARMLESS, Retries
from ratelimit.dynamodb.schema import EVENT_TYPE, LIMIT_TYPE, PK, SK, Item, parse_event_pk, parse_limit_pk
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.transport.base import units
from ratelimit.errors import StoreMisconfigured
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.base import SCAN_PAGE, WHOLE, Part, Record, ScanPage

T = TypeVar("T")

_EVENTS: Final = "tp = :type AND crt BETWEEN :since AND :until"
_RECORDS: Final = "tp = :type"
_READ_TIMEOUT: Final = 60.0
_SEARCH_ATTEMPTS: Final = 10


class DynamoDBScans:
    """The `scans` of a `DynamoDBStore`."""

    def __init__(
        self, opened: Callable[[], Awaitable[Client]], settings: Settings, stats: Stats, retries: Retries
    ) -> None:
        self._opened = opened
        self._settings = replace(settings, read_timeout=max(settings.read_timeout, _READ_TIMEOUT))
        self._stats = stats
        self._retries = retries
        self._table = settings.table
        self._constant: dict[str, Any] = {"TableName": settings.table, "ConsistentRead": True}
        if settings.consumed:
            self._constant["ReturnConsumedCapacity"] = "TOTAL"
        self._connection: tuple[asyncio.AbstractEventLoop, Client] | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        """Let go of the connection; harmless when there is none."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection[1].close()

    async def events(
        self, *, since: int, until: int, cursor: str | None = None, part: Part = WHOLE
    ) -> ScanPage[UsageEvent]:
        """See `Scans.events`."""
        values = {
            ":type": {"S": EVENT_TYPE},
            ":since": {"N": str(since // 1000)},
            ":until": {"N": str(until // 1000)},
        }
        request = {"FilterExpression": _EVENTS, "ExpressionAttributeValues": values, "Limit": SCAN_PAGE}
        found = await self._scan(request, cursor, part, _event)
        return ScanPage(tuple(event for event in found.entries if since <= event.at_ms < until), found.cursor)

    async def records(
        self, *, field: str | None = None, cursor: str | None = None, part: Part = WHOLE
    ) -> ScanPage[tuple[Key, Record]]:
        """See `Scans.records`."""
        request: dict[str, Any] = {
            "FilterExpression": _RECORDS,
            "ExpressionAttributeValues": {":type": {"S": LIMIT_TYPE}},
        }
        if field is not None:
            request["FilterExpression"] += " AND attribute_exists(#field)"
            request["ProjectionExpression"] = "PK, #field"
            request["ExpressionAttributeNames"] = {"#field": field}
        return await self._scan(request, cursor, part, _record)

    async def search(
        self, request: Mapping[str, Any], read: Callable[[Item], T | None], *, cursor: str | None, part: Part
    ) -> ScanPage[T]:
        """A page of whatever a filter lets through. Outlasts a throttle, as what is under way takes its time."""
        return await self._scan(request, cursor, part, read, attempts=_SEARCH_ATTEMPTS)

    async def _connect(self) -> Client:
        opened = await self._opened()  # which makes the table, where the settings say so
        loop = asyncio.get_running_loop()
        async with self._connecting:
            if self._connection is None or self._connection[0] is not loop:
                self._connection = loop, await connect(self._settings, opened.clock)
            return self._connection[1]

    async def _scan(
        self,
        request: Mapping[str, Any],
        cursor: str | None,
        part: Part,
        read: Callable[[Item], T | None],
        *,
        attempts: int | None = None,
    ) -> ScanPage[T]:
        where: dict[str, Any] = {} if part.of == 1 else {"Segment": part.index, "TotalSegments": part.of}
        if cursor is not None:
            pk, sk = decode_cursor(cursor, tuple[str, str])
            where["ExclusiveStartKey"] = {PK: {"S": pk}, SK: {"S": sk}}

        async def send() -> dict[str, Any]:
            connection = await self._connect()
            with explained(connection.place):
                answer: dict[str, Any] = await connection.client.scan(**self._constant, **request, **where)
            if "Items" not in answer:
                raise AnswerLost(f"table {self._table!r} answered a scan without items")
            return answer

        answer = await self._retries.run("Scan", send, on=HARMLESS, attempts=attempts)
        self._stats.read_units += units(answer)
        last = answer.get("LastEvaluatedKey")
        rest = encode_cursor((last[PK]["S"], last[SK]["S"])) if last else None
        entries = (self._read(item, read) for item in answer["Items"])
        return ScanPage(tuple(entry for entry in entries if entry is not None), rest)

    def _read(self, item: Item, read: Callable[[Item], T | None]) -> T | None:
        try:
            return read(item)
        except (KeyError, ValueError, TypeError) as error:
            where = item.get(PK, {}).get("S")
            raise StoreMisconfigured(
                f"table {self._table!r} holds an item that cannot be read, under {where!r}: {error!r}"
            ) from error


def _event(item: Item) -> UsageEvent | None:
    user = parse_event_pk(item[PK]["S"])
    return None if user is None else event_of(user, item)


def _record(item: Item) -> tuple[Key, Record] | None:
    key = parse_limit_pk(item[PK]["S"])
    return None if key is None else (key, record_of(item))
