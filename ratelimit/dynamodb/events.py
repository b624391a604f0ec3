"""`DynamoDBEventStore`: usage events in the same table as the counters, written in batches, read by user and day."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence, Set
from datetime import date
from typing import Any, Final

from botocore.exceptions import ClientError

from ratelimit.dynamodb.client import Client
from ratelimit.dynamodb.errors import AnswerLost, code_of, explained
from ratelimit.dynamodb.retries import HARMLESS, Retries
from ratelimit.dynamodb.schema import (
    ACTION,
    AT,
    CREATED,
    DATA,
    EVENT_TYPE,
    ID_TYPE,
    PK,
    SK,
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
    parse_event_sk,
)
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.stats import Stats
from ratelimit.dynamodb.transport.base import Transport, units
from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.store.base import MAX_EVENTS_PER_PUT, Position, day_of, placed, position_of

# Usage events as items, and back: in wire form, with short names, most of what is usual left out.

_COST: Final = "cst"
_ALLOWED: Final = "ok"
_STATUS: Final = "sts"
_DURATION: Final = "ms"
_RESOURCE: Final = "pid"
_REQUEST_ID: Final = "rid"
_METADATA: Final = "met"


def event_item(event: UsageEvent) -> dict[str, Attribute]:
    """The item of an event; its key is a function of the event, so that a repeated write changes nothing."""
    data: dict[str, Attribute] = {
        ACTION: {"S": event.action},
        _COST: {"N": str(event.cost)},
        _ALLOWED: {"BOOL": event.allowed},
    }
    if event.status is not None:
        data[_STATUS] = {"N": str(event.status)}
    if event.duration is not None:
        data[_DURATION] = {"N": str(event.duration)}
    if event.resource is not None:
        data[_RESOURCE] = {"S": event.resource}
    if event.request_id is not None:
        data[_REQUEST_ID] = {"S": event.request_id}
    if event.metadata:
        # As text: it comes back exactly as it was, and costs less than a map, in bytes and in time.
        data[_METADATA] = {"S": encode_metadata(event.metadata).decode()}
    return {
        PK: {"S": event_pk(event.user, day_of(event.at_ms))},
        SK: {"S": event_sk(position_of(event))},
        TYPE: {"S": EVENT_TYPE},
        DATA: {"M": data},
        CREATED: {"N": str(event.at_ms // 1000)},
        TTL: {"N": str(event.expires_at)},
    }


def event_of(user: str, item: Item) -> UsageEvent | None:
    """The event that an item holds; None where it is another project's. Raises `ValueError`, `KeyError`, ..."""
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
        status=_number(data, _STATUS, int),
        duration=_number(data, _DURATION, float),
        resource=data.get(_RESOURCE, {}).get("S"),
        request_id=data.get(_REQUEST_ID, {}).get("S"),
        metadata=json.loads(data[_METADATA]["S"]) if _METADATA in data else {},
    )


def _number(data: Item, name: str, kind: type[Any]) -> Any:
    return kind(data[name]["N"]) if name in data else None


def id_item(event: UsageEvent) -> dict[str, Attribute]:
    """The note of where an id was first seen."""
    return {
        **id_key(event),
        TYPE: {"S": ID_TYPE},
        AT: {"N": str(event.at_ms)},
        ACTION: {"S": event.action},
        TTL: {"N": str(event.expires_at)},
    }


def id_key(event: UsageEvent) -> dict[str, Attribute]:
    """The key of that note."""
    return {PK: {"S": id_pk(event.user)}, SK: {"S": id_sk(event.id)}}


def noted_position(event_id: str, item: Item) -> Position:
    """Where the id was first seen."""
    return Position(int(item[AT]["N"]), item[ACTION]["S"], event_id)


_NOT_THERE: Final = {"ConditionExpression": "attribute_not_exists(PK)"}
_REFUSED: Final = "ConditionalCheckFailedException"
_KEYS_AT_ONCE: Final = 1000


class DynamoDBEventStore:
    """The `events` of a `DynamoDBStore`.

    Events whose id was made for them go 25 to a `BatchWriteItem`, one write unit each. An id that was given costs two
    calls and two units: a note of where the id was first seen, and the event, unless it is there.
    """

    def __init__(
        self,
        connection: Callable[[], Awaitable[Client]],
        lane: Callable[[], Awaitable[Transport]],
        settings: Settings,
        stats: Stats,
        retries: Retries,
    ) -> None:
        self._connection = connection
        self._lane = lane
        self._stats = stats
        self._retries = retries
        self._table = settings.table
        self._constant: dict[str, str] = {"ReturnConsumedCapacity": "TOTAL"} if settings.consumed else {}

    async def put(self, events: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        """See `EventStore.put`. Tries once: who calls knows how long it can wait."""
        direct = [event for event in events if event.placed_by_id]
        parts = [direct] if direct else []
        parts += [[event] for event in events if not event.placed_by_id]
        results = await asyncio.gather(*map(self._put_part, parts), return_exceptions=True)
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

    async def page(
        self, user: str, day: date, *, since: int, until: int, limit: int, after: Position | None = None
    ) -> Sequence[UsageEvent]:
        """See `EventStore.page`."""
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

    async def actions(self, user: str, day: date) -> Set[str]:
        """See `EventStore.actions`. By their keys: what cannot be read otherwise is found all the same."""
        return {action_of_event_sk(key[SK]["S"]) async for keys in self._keys(event_pk(user, day)) for key in keys}

    async def erase(self, user: str, day: date) -> int:
        """See `EventStore.erase`."""
        return await self._delete_partition(event_pk(user, day))

    async def forget(self, user: str) -> int:
        """See `EventStore.forget`."""
        return await self._delete_partition(id_pk(user))

    async def delete(self, keys: Sequence[Item]) -> None:
        """Delete up to `MAX_EVENTS_PER_PUT` items, whatever they are."""
        left: list[dict[str, Any]] = [{"DeleteRequest": {"Key": key}} for key in keys]

        async def send() -> None:
            nonlocal left
            left = await self._write_batch(left)
            if left:
                raise StoreThrottled(f"table {self._table!r} is throttled: {len(left)} items were not deleted")

        await self._retries.run("BatchWriteItem", send, on=HARMLESS)

    async def _put_part(self, part: Sequence[UsageEvent]) -> list[UsageEvent]:
        """What was not written of it."""
        return await (self._put_batch(part) if part[0].placed_by_id else self._put_first(part[0]))

    async def _put_batch(self, events: Sequence[UsageEvent]) -> list[UsageEvent]:
        """All of them in one request, which must not name a key twice."""
        by_key: dict[str, tuple[UsageEvent, Item]] = {}
        for event in events:
            item = event_item(event)
            by_key.setdefault(item[PK]["S"] + item[SK]["S"], (event, item))
        requests = [{"PutRequest": {"Item": item}} for _, item in by_key.values()]
        self._stats.count_call("BatchWriteItem")
        left = await self._write_batch(requests)
        keys = (request["PutRequest"]["Item"] for request in left)
        return [by_key[key[PK]["S"] + key[SK]["S"]][0] for key in keys]

    async def _put_first(self, event: UsageEvent) -> list[UsageEvent]:
        """An event whose id was given: where that id was first seen, unless it is there already."""
        try:
            noted, first = await self._put_if(_not_seen_before(event), id_item(event)), event
            if noted is not None:
                first = placed(event, noted_position(event.id, noted or await self._get(id_key(event))))
            await self._put_if(_NOT_THERE, event_item(first))
        except (KeyError, ValueError) as error:
            raise self._unreadable(error) from error
        return []

    async def _put_if(self, condition: Mapping[str, Any], item: Item) -> Item | None:
        """None when written; else what is there, or an empty item where the engine does not tell."""
        self._stats.count_call("PutItem")
        try:
            await self._call(
                "put_item",
                TableName=self._table,
                Item=item,
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
                **condition,
            )
        except _AlreadyThere as there:
            return there.item
        return None

    async def _get(self, key: Item) -> Item:
        self._stats.count_call("GetItem")
        answer = await self._call("get_item", TableName=self._table, Key=key, ConsistentRead=True)
        return dict(answer.get("Item", {}))

    async def _query(
        self, request: Mapping[str, Any], start: Item | None, limit: int
    ) -> tuple[list[Item], Item | None]:
        """A page of a partition, and where the next one begins."""
        paging = {"Limit": limit} | ({} if start is None else {"ExclusiveStartKey": start})

        async def send() -> dict[str, Any]:
            answer = await self._call("query", TableName=self._table, ConsistentRead=True, **request, **paging)
            if "Items" not in answer:
                raise AnswerLost(f"table {self._table!r} answered a query without items")
            return answer

        answer = await self._retries.run("Query", send, on=HARMLESS)
        return answer["Items"], answer.get("LastEvaluatedKey") or None

    async def _delete_partition(self, pk: str) -> int:
        """Delete all that is in a partition; how much it was."""
        count = 0
        async for keys in self._keys(pk, MAX_EVENTS_PER_PUT):
            await self.delete(keys)
            count += len(keys)
        return count

    async def _keys(self, pk: str, at_once: int = _KEYS_AT_ONCE) -> AsyncIterator[list[Item]]:
        """The keys of all that is in a partition, so many at a time."""
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
        """The requests that were not processed."""
        answer = await (await self._lane()).write_batch(requests)
        self._stats.write_units += answer.write_units
        return list(answer.left)

    async def _call(self, operation: str, **request: Any) -> dict[str, Any]:
        connection = await self._connection()
        method: Callable[..., Awaitable[dict[str, Any]]] = getattr(connection.client, operation)
        with explained(connection.place):
            try:
                answer = await method(**request, **self._constant)
            except ClientError as error:
                if code_of(error) == _REFUSED:
                    raise _AlreadyThere(error.response.get("Item") or {}) from None
                raise
        self._count_units(operation, answer)
        return answer

    def _count_units(self, operation: str, answer: Mapping[str, Any]) -> None:
        if operation in ("query", "get_item"):
            self._stats.read_units += units(answer)
        else:
            self._stats.write_units += units(answer)

    def _event(self, user: str, item: Item) -> UsageEvent | None:
        try:
            return event_of(user, item)
        except (KeyError, ValueError, TypeError) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> StoreMisconfigured:
        return StoreMisconfigured(f"table {self._table!r} holds an event that cannot be read: {error!r}")


def _not_seen_before(event: UsageEvent) -> dict[str, Any]:
    """No note of its id, or one that has expired and was not taken away yet."""
    return {
        "ConditionExpression": f"{_NOT_THERE['ConditionExpression']} OR #ttl < :at",
        "ExpressionAttributeNames": {"#ttl": TTL},
        "ExpressionAttributeValues": {":at": {"N": str(event.at_ms // 1000)}},
    }


class _AlreadyThere(Exception):
    """The condition failed; `item` is what is there."""

    def __init__(self, item: Item) -> None:
        self.item = item
        super().__init__("already there")
