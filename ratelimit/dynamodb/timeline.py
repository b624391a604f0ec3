"""The timeline of an action: its events of all users, newest first, merged from the shards of `GSI2`.

A day of an action lies in several partitions of the index, so that no single one has to take all of its writes. A page
asks those of the last day side by side, each for a little more than its share, then again those that may hold
something newer than what was found, and earlier days only where these do not fill it. DynamoDB reads an index
eventually consistent, and no other way: an event is there some milliseconds after it was written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from operator import itemgetter
from typing import Any, Final

from ratelimit.dynamodb.calls import TableCalls
from ratelimit.dynamodb.schema import (
    DATA,
    GSI2,
    GSI2PK,
    GSI2SK,
    RESOURCE,
    STATUS,
    TIMELINE_SHARDS,
    Attribute,
    Item,
    parse_timeline_sk,
    timeline_pk,
    timeline_sk,
)
from ratelimit.event import UsageEvent
from ratelimit.store.base import MAX_READ, EventFilter, TimelinePlace, day_of, timeline_place

_MAX_AT_ONCE: Final = 250  # what goes by the fast transport
_AT_ONCE_FILTERED: Final = 100
_MAX_DAYS_AT_ONCE: Final = 4


def timeline_keys(event: UsageEvent) -> dict[str, Attribute]:
    """Return what puts the item of an event on the timeline."""
    place = timeline_place(event)
    pk = timeline_pk(event.action, day_of(event.at_ms), event.allowed, place.tie % TIMELINE_SHARDS)
    return {GSI2PK: {"S": pk}, GSI2SK: {"S": timeline_sk(place)}}


class _Shard:
    """A partition of the index: what there is at `bound` and above is read; all of it where that is None."""

    __slots__ = ("bound", "pk")

    def __init__(self, pk: str, bound: TimelinePlace) -> None:
        self.pk = pk
        self.bound: TimelinePlace | None = bound


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
        """Return up to `limit` items, and the place after which there may be more."""
        is_filtered = "FilterExpression" in self._request
        at_once = _AT_ONCE_FILTERED if is_filtered else limit * 3 // (2 * TIMELINE_SHARDS) + 4
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
            _Shard(timeline_pk(self._action, day, allowed, shard), min(self._below, _end_of(day)))
            for day in days
            for allowed in self._outcomes
            for shard in range(TIMELINE_SHARDS)
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
            self._found += [(parse_timeline_sk(item[GSI2SK]["S"]), item) for item in answer["Items"]]
            last = answer.get("LastEvaluatedKey")
            shard.bound = parse_timeline_sk(last[GSI2SK]["S"]) if last else None
            looked_at += answer.get("ScannedCount", len(answer["Items"]))
        self._found.sort(key=itemgetter(0), reverse=True)
        return looked_at

    async def _query(self, shard: _Shard, limit: int) -> dict[str, Any]:
        assert shard.bound is not None
        at, tie = shard.bound
        values = {
            **self._request["ExpressionAttributeValues"],
            ":pk": {"S": shard.pk},
            ":until": {"S": timeline_sk(TimelinePlace(at, tie - 1))},
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
    values: dict[str, Attribute] = {":since": {"S": timeline_sk(TimelinePlace(since, -1))}}
    tests = []
    if wanted.status is not None:
        tests.append(f"{DATA}.{STATUS} = :status")
        values[":status"] = {"N": str(wanted.status)}
    if wanted.resource is not None:
        tests.append(f"{DATA}.{RESOURCE} = :resource")
        values[":resource"] = {"S": wanted.resource}
    return {
        "IndexName": GSI2,
        "KeyConditionExpression": f"{GSI2PK} = :pk AND {GSI2SK} BETWEEN :since AND :until",
        "ExpressionAttributeValues": values,
        "ScanIndexForward": False,
        **({"FilterExpression": " AND ".join(tests)} if tests else {}),
    }


def _days(since: int, below: TimelinePlace) -> Iterator[date]:
    """Yield the UTC days to look at, the last one first."""
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
