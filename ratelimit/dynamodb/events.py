"""`DynamoDBEventStore`: usage events in the same table as the counters, written in batches, read by user and day."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence, Set
from datetime import date
from typing import Any, Final

from ratelimit.dynamodb.calls import HARMLESS, ConditionFailed, TableCalls
from ratelimit.dynamodb.schema import (
    ACTION,
    AT,
    CREATED,
    DATA,
    EVENT_TYPE,
    ID_TYPE,
    PK,
    RESOURCE,
    SK,
    STATUS,
    TTL,
    TYPE,
    Attribute,
    Item,
    action_of_event_sk,
    event_pk,
    event_sk,
    event_sk_bound,
    id_pk,
    id_sk,
    parse_event_pk,
    parse_event_sk,
)
from ratelimit.dynamodb.timeline import TimelinePageReader, timeline_keys
from ratelimit.dynamodb.transport.base import Transport
from ratelimit.errors import IndexNotFound, StoreMisconfigured, StoreRefused, StoreThrottled, StoreUnavailable
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.store.base import (
    ANY,
    MAX_EVENTS_PER_PUT,
    EventFilter,
    Position,
    TimelinePage,
    TimelinePlace,
    day_of,
    placed,
    places_of,
    position_of,
)

_COST: Final = "cst"
_ALLOWED: Final = "ok"
_DURATION: Final = "ms"
_REQUEST_ID: Final = "rid"
_METADATA: Final = "met"


def event_item(event: UsageEvent, timelines: Collection[str] = ()) -> dict[str, Attribute]:
    """Return the item of an event; its key is a function of the event, so that a repeated write changes nothing.

    `timelines` are the actions whose events are on a timeline.
    """
    data: dict[str, Attribute] = {
        ACTION: {"S": event.action},
        _COST: {"N": str(event.cost)},
        _ALLOWED: {"BOOL": event.allowed},
    }
    if event.status is not None:
        data[STATUS] = {"N": str(event.status)}
    if event.duration is not None:
        data[_DURATION] = {"N": str(event.duration)}
    if event.resource is not None:
        data[RESOURCE] = {"S": event.resource}
    if event.request_id is not None:
        data[_REQUEST_ID] = {"S": event.request_id}
    if event.metadata:
        # As text: it comes back exactly as it was, and costs less than a map, in bytes and in time.
        data[_METADATA] = {"S": encode_metadata(event.metadata).decode()}
    item: dict[str, Attribute] = {
        PK: {"S": event_pk(event.user, day_of(event.at_ms))},
        SK: {"S": event_sk(position_of(event))},
        TYPE: {"S": EVENT_TYPE},
        DATA: {"M": data},
        CREATED: {"N": str(event.at_ms // 1000)},
        TTL: {"N": str(event.expires_at)},
    }
    return item | timeline_keys(event) if event.action in timelines else item


def event_of(user: str, item: Item) -> UsageEvent | None:
    """Return the event that an item holds; None where it is another project's. Raise `ValueError`, `KeyError`, ..."""
    position = parse_event_sk(item[SK]["S"])
    if position is None:
        return None
    data = item[DATA]["M"]
    return UsageEvent(
        id=position.id,
        user=user,
        action=position.action,
        at_ms=position.at,
        cost=int(data[_COST]["N"]),
        allowed=data[_ALLOWED]["BOOL"],
        status=_number(data, STATUS, int),
        duration=_number(data, _DURATION, float),
        resource=data.get(RESOURCE, {}).get("S"),
        request_id=data.get(_REQUEST_ID, {}).get("S"),
        metadata=json.loads(data[_METADATA]["S"]) if _METADATA in data else {},
    )


def _number(data: Item, name: str, kind: type[Any]) -> Any:
    return kind(data[name]["N"]) if name in data else None


def id_item(event: UsageEvent) -> dict[str, Attribute]:
    """Return the note of where an id was first seen."""
    return {
        **id_key(event),
        TYPE: {"S": ID_TYPE},
        AT: {"N": str(event.at_ms)},
        ACTION: {"S": event.action},
        TTL: {"N": str(event.expires_at)},
    }


def id_key(event: UsageEvent) -> dict[str, Attribute]:
    return item_key(id_pk(event.user), id_sk(event.id))


def _key(user: str, position: Position) -> tuple[str, str]:
    return event_pk(user, day_of(position.at)), event_sk(position)


def item_key(pk: str, sk: str) -> dict[str, Attribute]:
    return {PK: {"S": pk}, SK: {"S": sk}}


def noted_position(event_id: str, item: Item) -> Position:
    return Position(int(item[AT]["N"]), item[ACTION]["S"], event_id)


_NOT_THERE: Final = {"ConditionExpression": "attribute_not_exists(PK)"}
_KEYS_AT_ONCE: Final = 1000
_MAX_BATCH_GET: Final = 100
"""DynamoDB's bound for one `BatchGetItem`."""


class DynamoDBEventStore:
    """The `events` of a `DynamoDBStore`.

    Events whose id was made for them go 25 to a `BatchWriteItem`, one write unit each. An id that was given costs two
    calls and two units: a note of where the id was first seen, and the event, unless it is there.
    """

    def __init__(self, calls: TableCalls, transport: Callable[[], Awaitable[Transport]]) -> None:
        self._calls = calls
        self._transport = transport

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        """Write events, and return those that were not. Try once: who calls knows how long it can wait."""
        direct = [event for event in events if event.placed_by_id]
        parts = [direct] if direct else []
        parts += [[event] for event in events if not event.placed_by_id]
        results = await asyncio.gather(*(self._put_part(part, timelines) for part in parts), return_exceptions=True)
        unwritten: list[UsageEvent] = []
        failures: list[BaseException] = []
        for part, result in zip(parts, results, strict=True):
            if isinstance(result, BaseException):
                failures.append(result)
                unwritten += part
            else:
                unwritten += result
        bugs = [failure for failure in failures if not isinstance(failure, StoreUnavailable)]
        if bugs or (failures and len(failures) == len(parts)):
            raise (bugs or failures)[0]
        return unwritten

    async def find(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent | None]:
        """Return what is kept under the id of each, by one or two `BatchGetItem` of a read unit each."""
        given = [(id_pk(event.user), id_sk(event.id)) for event in events if not event.placed_by_id]
        notes = await self.items(given, consistent=True)
        keys = [[_key(event.user, place) for place in self._places(event, notes)] for event in events]
        items = await self.items([key for some in keys for key in some], consistent=True)
        first = [next((items[key] for key in some if key in items), None) for some in keys]
        return [
            None if item is None else self._event(event.user, item) for event, item in zip(events, first, strict=True)
        ]

    async def items(self, keys: Sequence[tuple[str, str]], *, consistent: bool) -> dict[tuple[str, str], Item]:
        """Return the items of these primary keys that there are: a read unit each, or half where not `consistent`."""
        names = list(dict.fromkeys(keys))
        parts = [names[start : start + _MAX_BATCH_GET] for start in range(0, len(names), _MAX_BATCH_GET)]
        found: dict[tuple[str, str], Item] = {}
        for each in await asyncio.gather(*(self._items(part, consistent) for part in parts)):
            found |= each
        return found

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        """Return a user's events of a day, the latest first, from the one after `after` on."""
        pk = event_pk(user, day)
        request: dict[str, Any] = {
            "KeyConditionExpression": "PK = :pk AND SK BETWEEN :since AND :until",
            "ExpressionAttributeValues": {
                ":pk": {"S": pk},
                ":since": {"S": event_sk_bound(since)},
                ":until": {"S": event_sk_bound(until)},
            },
            "ScanIndexForward": False,
        }
        start: Item | None = None if after is None else {PK: {"S": pk}, SK: {"S": event_sk(after)}}
        found: list[UsageEvent] = []
        while True:
            items, start = await self._query(request, start, limit - len(found))
            found += (event for event in (self._event(user, item) for item in items) if event is not None)
            if start is None or len(found) >= limit:
                return found

    async def timeline(
        self,
        action: str,
        *,
        since: int,
        until: int,
        limit: int,
        after: TimelinePlace | None = None,
        wanted: EventFilter = ANY,
    ) -> TimelinePage:
        """Return a page of an action's events of all users, from the index `GSI2`."""
        below = min(after or TimelinePlace(until, 0), TimelinePlace(until, 0))
        try:
            items, rest = await TimelinePageReader(self._calls, action, since, below, wanted).page(limit)
            events = [event_of(parse_event_pk(item[PK]["S"]) or "", item) for item in items]
        except StoreRefused as error:
            if "index" not in str(error):
                raise
            mend = f"`ratelimit table upgrade {self._calls.table} --gsi2` makes the index"
            raise IndexNotFound(f"{error}; {mend}") from error
        except (KeyError, ValueError, TypeError) as error:
            raise self._unreadable(error) from error
        return TimelinePage([event for event in events if event is not None], rest)

    async def actions(self, user: str, day: date) -> Set[str]:
        """Return the actions of a day, by their keys: what cannot be read otherwise is found all the same."""
        return {action_of_event_sk(key[SK]["S"]) async for keys in self._keys(event_pk(user, day)) for key in keys}

    async def erase(self, user: str, day: date) -> int:
        """Delete a user's events of a day. Return how many there were."""
        return await self._delete_partition(event_pk(user, day))

    async def forget(self, user: str) -> int:
        """Delete what is remembered of a user's event ids."""
        return await self._delete_partition(id_pk(user))

    async def delete(self, keys: Sequence[Item]) -> None:
        """Delete up to `MAX_EVENTS_PER_PUT` items, whatever they are."""
        left: list[dict[str, Any]] = [{"DeleteRequest": {"Key": key}} for key in keys]

        async def send() -> None:
            nonlocal left
            left = await self._write_batch(left)
            if left:
                raise StoreThrottled(f"table {self._calls.table!r} is throttled: {len(left)} items were not deleted")

        await self._calls.retry("BatchWriteItem", send, on=HARMLESS)

    async def _put_part(self, part: Sequence[UsageEvent], timelines: Collection[str]) -> list[UsageEvent]:
        """Return what was not written of it."""
        if part[0].placed_by_id:
            return await self._put_batch(part, timelines)
        return await self._put_first(part[0], timelines)

    async def _put_batch(self, events: Sequence[UsageEvent], timelines: Collection[str]) -> list[UsageEvent]:
        """Write all of them in one request, which must not name a key twice."""
        by_key: dict[str, tuple[UsageEvent, Item]] = {}
        for event in events:
            item = event_item(event, timelines)
            by_key.setdefault(item[PK]["S"] + item[SK]["S"], (event, item))
        requests = [{"PutRequest": {"Item": item}} for _, item in by_key.values()]
        self._calls.stats.calls["BatchWriteItem"] += 1
        left = await self._write_batch(requests)
        keys = (request["PutRequest"]["Item"] for request in left)
        return [by_key[key[PK]["S"] + key[SK]["S"]][0] for key in keys]

    async def _put_first(self, event: UsageEvent, timelines: Collection[str]) -> list[UsageEvent]:
        """Write an event whose id was given where that id was first seen, unless it is there already."""
        try:
            noted, first = await self._put_if(_not_seen_before(event), id_item(event)), event
            if noted is not None:
                first = placed(event, noted_position(event.id, noted or await self._first_seen(event)))
            await self._put_if(_NOT_THERE, event_item(first, timelines))
        except (KeyError, ValueError) as error:
            raise self._unreadable(error) from error
        return []

    async def _put_if(self, condition: Mapping[str, Any], item: Item) -> Item | None:
        """Return None when written; else what is there, or an empty item where the engine does not tell."""
        try:
            await self._calls.once("PutItem", Item=item, ReturnValuesOnConditionCheckFailure="ALL_OLD", **condition)
        except ConditionFailed as failed:
            return failed.response.get("Item") or {}
        return None

    async def _first_seen(self, event: UsageEvent) -> Item:
        answer = await self._calls.once("GetItem", Key=id_key(event), ConsistentRead=True)
        return dict(answer.get("Item", {}))

    def _places(self, event: UsageEvent, notes: Mapping[tuple[str, str], Item]) -> list[Position]:
        """Return where an event may lie. A note that has expired says nothing, as when an event is put."""
        note = notes.get((id_pk(event.user), id_sk(event.id)))
        if note is None or int(note[TTL]["N"]) < event.at_ms // 1000:
            return places_of(event)
        try:
            return [noted_position(event.id, note)]
        except (KeyError, ValueError) as error:
            raise self._unreadable(error) from error

    async def _items(self, keys: Sequence[tuple[str, str]], consistent: bool) -> dict[tuple[str, str], Item]:
        found = await self._calls.items([item_key(*key) for key in keys], consistent=consistent)
        return {(item[PK]["S"], item[SK]["S"]): item for item in found}

    async def _query(
        self, request: Mapping[str, Any], start: Item | None, limit: int
    ) -> tuple[list[Item], Item | None]:
        paging: dict[str, Any] = {"Limit": limit} | ({} if start is None else {"ExclusiveStartKey": start})
        return await self._calls.page("Query", ConsistentRead=True, **request, **paging)

    async def _delete_partition(self, pk: str) -> int:
        count = 0
        async for keys in self._keys(pk, MAX_EVENTS_PER_PUT):
            await self.delete(keys)
            count += len(keys)
        return count

    async def _keys(self, pk: str, at_once: int = _KEYS_AT_ONCE) -> AsyncIterator[list[Item]]:
        """Yield the keys of all that is in a partition, so many at a time."""
        request = {
            "KeyConditionExpression": "PK = :pk",
            "ExpressionAttributeValues": {":pk": {"S": pk}},
            "ProjectionExpression": "PK, SK",
        }
        start: Item | None = None
        while True:
            items, start = await self._query(request, start, at_once)
            if items:
                yield [{PK: item[PK], SK: item[SK]} for item in items]
            if start is None:
                return

    async def _write_batch(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the requests that were not processed."""
        result = await (await self._transport()).write_batch(requests)
        self._calls.stats.write_units += result.write_units
        return list(result.left)

    def _event(self, user: str, item: Item) -> UsageEvent | None:
        try:
            return event_of(user, item)
        except (KeyError, ValueError, TypeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StoreMisconfigured:
        return StoreMisconfigured(f"table {self._calls.table!r} holds an event that cannot be read: {error!r}")


def _not_seen_before(event: UsageEvent) -> dict[str, Any]:
    """Return the condition that there is no note of its id, or one that has expired and was not taken away yet."""
    return {
        "ConditionExpression": f"{_NOT_THERE['ConditionExpression']} OR #ttl < :at",
        "ExpressionAttributeNames": {"#ttl": TTL},
        "ExpressionAttributeValues": {":at": {"N": str(event.at_ms // 1000)}},
    }
