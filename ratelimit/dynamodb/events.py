"""`DynamoDBEventStore`: usage events in the same table as the counters, written in batches, read by user and day.

The timeline of an action, its events of all users, is merged from the shards of `GSI2`. A day of an action lies in
several partitions of the index, so that no single one has to take all of its writes. A page asks those of the last day
side by side, each for a little more than its share, then again those that may hold something newer than what was
found, and earlier days only where these do not fill it. DynamoDB reads an index eventually consistent, and no other
way: an event is there some milliseconds after it was written.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from operator import itemgetter
from typing import Any, Final

from ratelimit.dynamodb import schema
from ratelimit.dynamodb.calls import HARMLESS, ConditionFailed, TableCalls
from ratelimit.dynamodb.errors import AnswerLost
from ratelimit.dynamodb.schema import Attribute, Item
from ratelimit.errors import IndexNotFound, StoreMisconfigured, StoreRefused, StoreThrottled, StoreUnavailable
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.store.base import (
    ANY,
    MAX_EVENTS_PER_PUT,
    MAX_READ,
    EventFilter,
    Position,
    TimelinePage,
    TimelinePlace,
    batches,
    day_of,
    placed,
    places_of,
    position_of,
    timeline_place,
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
        schema.ACTION: {"S": event.action},
        _COST: {"N": str(event.cost)},
        _ALLOWED: {"BOOL": event.allowed},
    }
    if event.status is not None:
        data[schema.STATUS] = {"N": str(event.status)}
    if event.duration is not None:
        data[_DURATION] = {"N": str(event.duration)}
    if event.resource is not None:
        data[schema.RESOURCE] = {"S": event.resource}
    if event.request_id is not None:
        data[_REQUEST_ID] = {"S": event.request_id}
    if event.metadata:
        # As text: it comes back exactly as it was, and costs less than a map, in bytes and in time.
        data[_METADATA] = {"S": encode_metadata(event.metadata).decode()}
    item: dict[str, Attribute] = {
        schema.PK: {"S": schema.event_pk(event.user, day_of(event.at_ms))},
        schema.SK: {"S": schema.event_sk(position_of(event))},
        schema.TYPE: {"S": schema.EVENT_TYPE},
        schema.DATA: {"M": data},
        schema.CREATED: {"N": str(event.at_ms // 1000)},
        schema.TTL: {"N": str(event.expires_at)},
    }
    return item | timeline_keys(event) if event.action in timelines else item


def timeline_keys(event: UsageEvent) -> dict[str, Attribute]:
    """Return what puts the item of an event on the timeline."""
    place = timeline_place(event)
    pk = schema.timeline_pk(event.action, day_of(event.at_ms), event.allowed, place.tie % schema.TIMELINE_SHARDS)
    return {schema.GSI2PK: {"S": pk}, schema.GSI2SK: {"S": schema.timeline_sk(place)}}


def event_of(user: str, item: Item) -> UsageEvent | None:
    """Return the event that an item holds; None where it is another project's. Raise `ValueError`, `KeyError`, ..."""
    position = schema.parse_event_sk(item[schema.SK]["S"])
    if position is None:
        return None
    data = item[schema.DATA]["M"]
    return UsageEvent(
        id=position.id,
        user=user,
        action=position.action,
        at_ms=position.at,
        cost=int(data[_COST]["N"]),
        allowed=data[_ALLOWED]["BOOL"],
        status=_number(data, schema.STATUS, int),
        duration=_number(data, _DURATION, float),
        resource=data.get(schema.RESOURCE, {}).get("S"),
        request_id=data.get(_REQUEST_ID, {}).get("S"),
        metadata=json.loads(data[_METADATA]["S"]) if _METADATA in data else {},
    )


def _number(data: Item, name: str, kind: type[Any]) -> Any:
    return kind(data[name]["N"]) if name in data else None


def id_item(event: UsageEvent) -> dict[str, Attribute]:
    return {
        **id_key(event),
        schema.TYPE: {"S": schema.ID_TYPE},
        schema.AT: {"N": str(event.at_ms)},
        schema.ACTION: {"S": event.action},
        schema.TTL: {"N": str(event.expires_at)},
    }


def id_key(event: UsageEvent) -> dict[str, Attribute]:
    return schema.item_key(schema.id_pk(event.user), schema.id_sk(event.id))


def _key(user: str, position: Position) -> tuple[str, str]:
    return schema.event_pk(user, day_of(position.at)), schema.event_sk(position)


def noted_position(event_id: str, item: Item) -> Position:
    return Position(int(item[schema.AT]["N"]), item[schema.ACTION]["S"], event_id)


_NOT_THERE: Final = {"ConditionExpression": "attribute_not_exists(PK)"}
_KEYS_AT_ONCE: Final = 1000
_MAX_BATCH_GET: Final = 100
"""DynamoDB's bound for one `BatchGetItem`."""


class DynamoDBEventStore:
    """The `events` of a `DynamoDBStore`.

    Events whose id was made for them go 25 to a `BatchWriteItem`, one write unit each. An id that was given costs two
    calls and two units: a note of where the id was first seen, and the event, unless it is there.
    """

    def __init__(self, calls: TableCalls) -> None:
        self._calls = calls

    async def put(self, events: Sequence[UsageEvent], *, timelines: Collection[str] = ()) -> Sequence[UsageEvent]:
        """Write events, and return those that were not. Try once: who calls knows how long it can wait."""
        direct = [event for event in events if event.placed_by_id]
        parts = [direct] if direct else []
        parts += [[event] for event in events if not event.placed_by_id]
        puts = [
            self._put_batch(part, timelines) if part is direct else self._put_first(part[0], timelines)
            for part in parts
        ]
        results = await asyncio.gather(*puts, return_exceptions=True)
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
        given = [(schema.id_pk(event.user), schema.id_sk(event.id)) for event in events if not event.placed_by_id]
        notes = await self.items(given, consistent=True)
        keys = [[_key(event.user, place) for place in self._places(event, notes)] for event in events]
        items = await self.items([key for some in keys for key in some], consistent=True)
        first = [next((items[key] for key in some if key in items), None) for some in keys]
        return [
            None if item is None else self._event(event.user, item) for event, item in zip(events, first, strict=True)
        ]

    async def items(self, keys: Sequence[tuple[str, str]], *, consistent: bool) -> dict[tuple[str, str], Item]:
        parts = batches([schema.item_key(*key) for key in dict.fromkeys(keys)], _MAX_BATCH_GET)
        found = await asyncio.gather(*(self._calls.items(part, consistent=consistent) for part in parts))
        return {(item[schema.PK]["S"], item[schema.SK]["S"]): item for items in found for item in items}

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        pk = schema.event_pk(user, day)
        request: dict[str, Any] = {
            "KeyConditionExpression": "PK = :pk AND SK BETWEEN :since AND :until",
            "ExpressionAttributeValues": {
                ":pk": {"S": pk},
                ":since": {"S": schema.event_sk_bound(since)},
                ":until": {"S": schema.event_sk_bound(until)},
            },
            "ScanIndexForward": False,
            "ConsistentRead": True,
        }
        start: Item | None = None if after is None else schema.item_key(pk, schema.event_sk(after))
        found: list[UsageEvent] = []
        while True:
            items, start = await self._calls.page("Query", start=start, Limit=limit - len(found), **request)
            found += (event for event in (self._event(user, item) for item in items) if event is not None)
            if start is None or len(found) >= limit:
                return found

    async def timeline(
        self, action: str, *, since: int, below: TimelinePlace, limit: int, wanted: EventFilter = ANY
    ) -> TimelinePage:
        try:
            items, rest = await TimelinePageReader(self._calls, action, since, below, wanted).page(limit)
            events = [event_of(schema.parse_event_pk(item[schema.PK]["S"]) or "", item) for item in items]
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
        return {
            schema.action_of_event_sk(key[schema.SK]["S"])
            async for keys in self._keys(schema.event_pk(user, day))
            for key in keys
        }

    async def erase(self, user: str, day: date) -> int:
        return await self._delete_partition(schema.event_pk(user, day))

    async def forget(self, user: str) -> int:
        return await self._delete_partition(schema.id_pk(user))

    async def delete(self, keys: Sequence[Item]) -> None:
        """Delete up to `MAX_EVENTS_PER_PUT` items, whatever they are."""
        left: list[dict[str, Any]] = [{"DeleteRequest": {"Key": key}} for key in keys]

        async def send() -> None:
            nonlocal left
            left = await self._write_batch(left)
            if left:
                raise StoreThrottled(f"table {self._calls.table!r} is throttled: {len(left)} items were not deleted")

        await self._calls.retry("BatchWriteItem", send, on=HARMLESS)

    async def _put_batch(self, events: Sequence[UsageEvent], timelines: Collection[str]) -> list[UsageEvent]:
        """Write all of them in one request, which must not name a key twice."""
        by_key: dict[str, tuple[UsageEvent, Item]] = {}
        for event in events:
            item = event_item(event, timelines)
            by_key.setdefault(item[schema.PK]["S"] + item[schema.SK]["S"], (event, item))
        requests = [{"PutRequest": {"Item": item}} for _, item in by_key.values()]
        self._calls.stats.calls["BatchWriteItem"] += 1
        left = await self._write_batch(requests)
        keys = (request["PutRequest"]["Item"] for request in left)
        return [by_key[key[schema.PK]["S"] + key[schema.SK]["S"]][0] for key in keys]

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
        note = notes.get((schema.id_pk(event.user), schema.id_sk(event.id)))
        if note is None or int(note[schema.TTL]["N"]) < event.at_ms // 1000:
            return places_of(event)
        try:
            return [noted_position(event.id, note)]
        except (KeyError, ValueError) as error:
            raise self._unreadable(error) from error

    async def _delete_partition(self, pk: str) -> int:
        count = 0
        async for keys in self._keys(pk, MAX_EVENTS_PER_PUT):
            if keys:
                await self.delete(keys)
            count += len(keys)
        return count

    def _keys(self, pk: str, at_once: int = _KEYS_AT_ONCE) -> AsyncIterator[list[Item]]:
        """Yield the keys of all that is in a partition, so many at a time."""
        return self._calls.pages(
            "Query",
            ConsistentRead=True,
            Limit=at_once,
            KeyConditionExpression="PK = :pk",
            ExpressionAttributeValues={":pk": {"S": pk}},
            ProjectionExpression="PK, SK",
        )

    async def _write_batch(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = await self._calls.send("BatchWriteItem", RequestItems={self._calls.table: requests})
        if "UnprocessedItems" not in answer:
            raise AnswerLost(f"table {self._calls.table!r} answered a batch without saying what was not processed")
        return list(answer["UnprocessedItems"].get(self._calls.table, ()))

    def _event(self, user: str, item: Item) -> UsageEvent | None:
        try:
            return event_of(user, item)
        except (KeyError, ValueError, TypeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StoreMisconfigured:
        return StoreMisconfigured(f"table {self._calls.table!r} holds an event that cannot be read: {error!r}")


def _not_seen_before(event: UsageEvent) -> dict[str, Any]:
    return {
        "ConditionExpression": f"{_NOT_THERE['ConditionExpression']} OR #ttl < :at",
        "ExpressionAttributeNames": {"#ttl": schema.TTL},
        "ExpressionAttributeValues": {":at": {"N": str(event.at_ms // 1000)}},
    }


_MAX_AT_ONCE: Final = 250  # what goes by the fast transport
_AT_ONCE_FILTERED: Final = 100
_MAX_DAYS_AT_ONCE: Final = 4


@dataclass(slots=True)
class _Shard:
    """A partition of the index: what there is at `bound` and above is read; all of it where that is None."""

    pk: str
    bound: TimelinePlace | None


class TimelinePageReader:
    """Reads one page: of an action's events since a time (ms), below a place. Raises `StoreUnavailable`."""

    def __init__(self, calls: TableCalls, action: str, since: int, below: TimelinePlace, wanted: EventFilter) -> None:
        self._calls = calls
        self._action = action
        self._below = below
        self._outcomes = (True, False) if wanted.allowed is None else (wanted.allowed,)
        self._request = _request(since, wanted)
        self._days = deque(_days(since, below))
        self._shards: list[_Shard] = []
        self._found: list[tuple[TimelinePlace, Item]] = []
        """Newest first."""

    async def page(self, limit: int) -> tuple[list[Item], TimelinePlace | None]:
        is_filtered = "FilterExpression" in self._request
        at_once = _AT_ONCE_FILTERED if is_filtered else limit * 3 // (2 * schema.TIMELINE_SHARDS) + 4
        days_at_once, read = 1, 0
        while read < MAX_READ:
            shards = self._needed(limit)
            if not shards:
                if len(self._found) >= limit or not self._days:
                    break
                shards = self._next_days(days_at_once)
                days_at_once = min(2 * days_at_once, _MAX_DAYS_AT_ONCE)
            at_once = min(at_once, _MAX_AT_ONCE)
            read += await self._read(shards, at_once)
            at_once *= 2
        return self._result(limit)

    def _needed(self, limit: int) -> list[_Shard]:
        """Return the shards that may hold something newer than the last of the page."""
        last = self._found[limit - 1][0] if len(self._found) >= limit else None
        return [one for one in self._shards if one.bound is not None and (last is None or one.bound > last)]

    def _next_days(self, count: int) -> list[_Shard]:
        days = [self._days.popleft() for _ in range(min(count, len(self._days)))]
        shards = [
            _Shard(schema.timeline_pk(self._action, day, allowed, shard), min(self._below, _end_of(day)))
            for day in days
            for allowed in self._outcomes
            for shard in range(schema.TIMELINE_SHARDS)
        ]
        self._shards += shards
        return shards

    async def _read(self, shards: Sequence[_Shard], limit: int) -> int:
        """Read on in these shards; return how many items were looked at."""
        looked_at = 0
        answers = await asyncio.gather(*(self._query(one, limit) for one in shards), return_exceptions=True)
        for shard, answer in zip(shards, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            self._found += [(schema.parse_timeline_sk(item[schema.GSI2SK]["S"]), item) for item in answer["Items"]]
            last = answer.get("LastEvaluatedKey")
            shard.bound = schema.parse_timeline_sk(last[schema.GSI2SK]["S"]) if last else None
            looked_at += answer.get("ScannedCount", len(answer["Items"]))
        self._found.sort(key=itemgetter(0), reverse=True)
        return looked_at

    async def _query(self, shard: _Shard, limit: int) -> dict[str, Any]:
        assert shard.bound is not None
        at, tie = shard.bound
        values = {
            **self._request["ExpressionAttributeValues"],
            ":pk": {"S": shard.pk},
            ":until": {"S": schema.timeline_sk(TimelinePlace(at, tie - 1))},
        }
        return await self._calls.listing(
            "Query", **self._request | {"ExpressionAttributeValues": values, "Limit": limit}
        )

    def _result(self, limit: int) -> tuple[list[Item], TimelinePlace | None]:
        """Cut off what may have something unread between it and the rest."""
        bounds = [one.bound for one in self._shards if one.bound is not None]
        if self._days:
            bounds.append(_end_of(self._days[0]))
        level = max(bounds, default=None)
        known = [one for one in self._found if level is None or one[0] >= level]
        rest = known[limit - 1][0] if len(known) >= limit + (level is None) else level
        return [item for _, item in known[:limit]], rest


def _request(since: int, wanted: EventFilter) -> dict[str, Any]:
    """Return the query, but for what is each shard's. The outcome is a part of the key, and so needs no filter."""
    values: dict[str, Attribute] = {":since": {"S": schema.timeline_sk(TimelinePlace(since, -1))}}
    tests = []
    if wanted.status is not None:
        tests.append(f"{schema.DATA}.{schema.STATUS} = :status")
        values[":status"] = {"N": str(wanted.status)}
    if wanted.resource is not None:
        tests.append(f"{schema.DATA}.{schema.RESOURCE} = :resource")
        values[":resource"] = {"S": wanted.resource}
    return {
        "IndexName": schema.GSI2,
        "KeyConditionExpression": f"{schema.GSI2PK} = :pk AND {schema.GSI2SK} BETWEEN :since AND :until",
        "ExpressionAttributeValues": values,
        "ScanIndexForward": False,
        **({"FilterExpression": " AND ".join(tests)} if tests else {}),
    }


def _days(since: int, below: TimelinePlace) -> Iterator[date]:
    newest = below.at - (below.tie == 0)
    if newest < since:
        return
    day, first = day_of(newest), day_of(since)
    while day >= first:
        yield day
        day -= timedelta(days=1)


def _end_of(day: date) -> TimelinePlace:
    midnight = datetime.combine(day + timedelta(days=1), time(), UTC)
    return TimelinePlace(int(midnight.timestamp()) * 1000, 0)
