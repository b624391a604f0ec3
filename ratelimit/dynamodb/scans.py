"""`DynamoDBScans`: the whole table, page by page, by `Scan` with a filter.

Strongly consistent, so that a page sees all that was written before it was asked for: one read unit for 4 KB of
table, whatever is filtered out. A page is worth waiting for: scans have a connection of their own, whose timeout is not
that of a check. Given up early, it would be asked for again while the first request is still at work.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, Final, NamedTuple, TypeVar

from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.cursor import Page, decode_cursor, encode_cursor
from ratelimit.dynamodb import schema
from ratelimit.dynamodb.access import Client, connect
from ratelimit.dynamodb.calls import ConditionFailed, Retries, Stats, TableCalls
from ratelimit.dynamodb.directory import DynamoDBDirectoryStore
from ratelimit.dynamodb.events import DynamoDBEventStore, event_of
from ratelimit.dynamodb.schema import Item
from ratelimit.dynamodb.settings import Settings
from ratelimit.errors import StoreMisconfigured
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.base import (
    MAX_EVENTS_PER_PUT,
    SCAN_PAGE,
    WHOLE,
    Part,
    Record,
    Trace,
    batches,
    each_part_page,
    first_cursors,
)
from ratelimit.store.directory import User

T = TypeVar("T")

_EVENTS: Final = "tp = :type AND crt BETWEEN :since AND :until"
_RECORDS: Final = "tp = :type"
_EXPIRED: Final = "#ttl < :now"
_READ_TIMEOUT_S: Final = 60.0
_SEARCH_ATTEMPTS: Final = 10
_PARTS: Final = 4
_DELETES_AT_ONCE: Final = 25
_USER: Final = "USR#"
_EMAIL: Final = "EMAIL#"


class DynamoDBScans:
    def __init__(
        self, opened: Callable[[], Awaitable[Client]], settings: Settings, stats: Stats, retries: Retries
    ) -> None:
        self._opened = opened
        self._settings = replace(settings, read_timeout=max(settings.read_timeout, _READ_TIMEOUT_S))
        self._calls = TableCalls(self._connect, settings, stats, retries)
        self._client: tuple[asyncio.AbstractEventLoop, Client] | None = None
        self._connecting = asyncio.Lock()

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client[1].close()

    async def events(
        self, *, since: int, until: int, cursor: str | None = None, part: Part = WHOLE
    ) -> Page[UsageEvent]:
        values = {
            ":type": {"S": schema.EVENT_TYPE},
            ":since": {"N": str(since // 1000)},
            ":until": {"N": str(until // 1000)},
        }
        request = {"FilterExpression": _EVENTS, "ExpressionAttributeValues": values, "Limit": SCAN_PAGE}
        found = await self._scan(request, cursor, part, _event)
        return Page(tuple(event for event in found.entries if since <= event.at_ms < until), found.cursor)

    async def records(
        self, *, field: str | None = None, cursor: str | None = None, part: Part = WHOLE
    ) -> Page[tuple[Key, Record]]:
        request: dict[str, Any] = {
            "FilterExpression": _RECORDS,
            "ExpressionAttributeValues": {":type": {"S": schema.LIMIT_TYPE}},
        }
        if field is not None:
            request["FilterExpression"] += " AND attribute_exists(#field)"
            request["ProjectionExpression"] = "PK, #field"
            request["ExpressionAttributeNames"] = {"#field": field}
        return await self._scan(request, cursor, part, _record)

    async def search(
        self, request: Mapping[str, Any], read: Callable[[Item], T | None], *, cursor: str | None, part: Part
    ) -> Page[T]:
        """Return a page of what a filter lets through. Outlast a throttle, as what is under way takes its time."""
        return await self._scan(request, cursor, part, read, attempts=_SEARCH_ATTEMPTS)

    async def _connect(self) -> Client:
        opened = await self._opened()  # which makes the table, where the settings say so
        loop = asyncio.get_running_loop()
        async with self._connecting:
            if self._client is None or self._client[0] is not loop:
                self._client = loop, await connect(self._settings, opened.clock)
            return self._client[1]

    async def _scan(
        self,
        request: Mapping[str, Any],
        cursor: str | None,
        part: Part,
        read: Callable[[Item], T | None],
        *,
        attempts: int | None = None,
    ) -> Page[T]:
        segment: dict[str, Any] = {} if part.of == 1 else {"Segment": part.index, "TotalSegments": part.of}
        start = None if cursor is None else schema.item_key(*decode_cursor(cursor, tuple[str, str]))
        items, last = await self._calls.page(
            "Scan", start=start, attempts=attempts, ConsistentRead=True, **request, **segment
        )
        rest = encode_cursor((last[schema.PK]["S"], last[schema.SK]["S"])) if last else None
        entries = (self._read(item, read) for item in items)
        return Page(tuple(entry for entry in entries if entry is not None), rest)

    def _read(self, item: Item, read: Callable[[Item], T | None]) -> T | None:
        try:
            return read(item)
        except (KeyError, ValueError, TypeError) as error:
            where = item.get(schema.PK, {}).get("S")
            raise StoreMisconfigured(
                f"table {self._calls.table!r} holds an item that cannot be read, under {where!r}: {error!r}"
            ) from error


def _event(item: Item) -> UsageEvent | None:
    user = schema.parse_event_pk(item[schema.PK]["S"])
    return None if user is None else event_of(user, item)


def _record(item: Item) -> tuple[Key, Record] | None:
    key = schema.parse_limit_pk(item[schema.PK]["S"])
    return None if key is None else (key, schema.record_of(item))


class _Found(NamedTuple):
    trace: Trace
    key: Item


async def erase(
    users: Collection[str], directory: DynamoDBDirectoryStore, events: DynamoDBEventStore, scans: DynamoDBScans
) -> Counter[Trace]:
    """Delete everything that the table holds of these users, and return how much it was.

    Nothing in the table leads from a user to all of their items: an action that no policy names has a partition of its
    own, and so has every day. So all of it is read, filtered where it lies, and only the keys of what is theirs come
    back. The entry goes last, with what it is found by: it is what tells a user's e-mails.
    """
    names = _Names(users, [mail for user in users async for mail in _emails(directory, user)])
    request = names.request()

    async def ask(part: Part, cursor: str | None) -> Page[_Found]:
        return await scans.search(request, names.found, cursor=cursor, part=part)

    erased: Counter[Trace] = Counter()
    last: list[_Found] = []
    async with aclosing(each_part_page(ask, first_cursors(_PARTS), of=_PARTS)) as pages:
        async for _, page in pages:
            last += (one for one in page.entries if one.trace in ("entries", "identities"))
            await _delete(events, [one for one in page.entries if one.trace not in ("entries", "identities")], erased)
    await _delete(events, last, erased)
    return erased


async def erase_actions(actions: Collection[str], calls: TableCalls, events: DynamoDBEventStore) -> int:
    """Delete the counters of these actions, of all users, and return how many there were. Reads the whole table."""
    values = {f":v{number}": {"S": f"#LIM#{schema.escape(action)}"} for number, action in enumerate(actions)}
    test = " OR ".join(f"contains({schema.PK}, {value})" for value in values)
    request = {"FilterExpression": test, "ExpressionAttributeValues": values, "ConsistentRead": True}
    erased = 0
    async for keys in _each_key(calls, request):
        found = [
            item for item in keys if (key := schema.parse_limit_pk(item[schema.PK]["S"])) and key.action in actions
        ]
        for group in batches(found, MAX_EVENTS_PER_PUT):
            await events.delete(group)
        erased += len(found)
    return erased


async def sweep_table(settings: Settings, *, clock: Clock | None = None) -> int:
    """Delete the items whose time is over, and return how many there were. Reads the whole table; may be repeated.

    For a table that does not do it itself: one strongly consistent over its regions. An item that is written again
    meanwhile stays: its time has moved.
    """
    settings = replace(settings, read_timeout=max(settings.read_timeout, _READ_TIMEOUT_S))
    async with await connect(settings) as client:

        async def opened() -> Client:
            return client

        calls = TableCalls(opened, settings, stats := Stats(), Retries(_SEARCH_ATTEMPTS, stats))
        expired: dict[str, Any] = {
            "ExpressionAttributeNames": {"#ttl": schema.TTL},
            "ExpressionAttributeValues": {":now": {"N": str((clock or SystemClock()).now() // SECOND)}},
        }

        async def delete(key: Item) -> bool:
            try:
                await calls.run("DeleteItem", Key=key, ConditionExpression=_EXPIRED, **expired)
            except ConditionFailed:  # it was written again, or is gone
                return False
            return True

        swept = 0
        async for keys in _each_key(calls, {"FilterExpression": _EXPIRED, **expired}):
            for group in batches(keys, _DELETES_AT_ONCE):
                swept += sum(await asyncio.gather(*map(delete, group)))
        return swept


def _each_key(calls: TableCalls, request: Mapping[str, Any]) -> AsyncIterator[list[Item]]:
    projection = f"{schema.PK}, {schema.SK}"
    return calls.pages("Scan", attempts=_SEARCH_ATTEMPTS, Limit=SCAN_PAGE, ProjectionExpression=projection, **request)


async def _delete(events: DynamoDBEventStore, found: Sequence[_Found], erased: Counter[Trace]) -> None:
    for group in batches(found, MAX_EVENTS_PER_PUT):
        await events.delete([one.key for one in group])
        erased.update(one.trace for one in group)


async def _emails(directory: DynamoDBDirectoryStore, user: str) -> AsyncIterator[str]:
    with suppress(StoreMisconfigured):  # an entry that cannot be read goes all the same
        entry = await directory.read(User, user)
        for identity in () if entry is None else entry.identities:
            if identity.kind == "email":
                yield identity.value


class _Names:
    """What a user's keys begin with, also in earlier layouts: those escaped nothing, and kept events by e-mail."""

    def __init__(self, users: Collection[str], emails: Collection[str]) -> None:
        self._owners = users
        self._begin = {
            _USER: {form for user in users for form in (schema.escape(user), user)},
            _EMAIL: {form for name in (*users, *emails) for form in (schema.escape(name), name)},
        }

    def request(self) -> dict[str, Any]:
        texts = list(self._texts())
        tests = [test.format(f":v{number}") for number, (test, _) in enumerate(texts)]
        return {
            "FilterExpression": " OR ".join(tests),
            "ExpressionAttributeValues": {f":v{number}": {"S": text} for number, (_, text) in enumerate(texts)},
            "ProjectionExpression": f"{schema.PK}, {schema.SK}, {schema.TYPE}, {schema.OWNER}",
        }

    def found(self, item: Item) -> _Found | None:
        """Return what an item is; None where it is not the user's, or of another project in the same table."""
        trace = self._trace(item)
        return None if trace is None else _Found(trace, {schema.PK: item[schema.PK], schema.SK: item[schema.SK]})

    def _texts(self) -> Iterator[tuple[str, str]]:
        for prefix, forms in self._begin.items():
            for form in sorted(forms):
                if prefix == _USER:
                    yield f"{schema.PK} = {{}}", prefix + form
                yield f"begins_with({schema.PK}, {{}})", f"{prefix}{form}#"
        for user in self._owners:
            yield f"{schema.OWNER} = {{}}", user

    def _trace(self, item: Item) -> Trace | None:
        pk, sk = item[schema.PK]["S"], item[schema.SK]["S"]
        if item.get(schema.TYPE) == {"S": schema.IDENTITY_TYPE} and item.get(schema.OWNER, {}).get("S") in self._owners:
            return "identities"
        for prefix, forms in self._begin.items():
            for form in forms:
                if pk == prefix + form and prefix == _USER and sk == schema.META:
                    return "entries"
                if pk.startswith(f"{prefix}{form}#") and (trace := _trace_of(pk.removeprefix(f"{prefix}{form}#"))):
                    return trace
        return None


def _trace_of(rest: str) -> Trace | None:
    kind, _, name = rest.partition("#")
    if "#" in name:
        return None
    traces: dict[str, Trace] = {"LIM": "counters", "ULOG": "events", "UID": "event_ids"}
    return traces.get(kind)
