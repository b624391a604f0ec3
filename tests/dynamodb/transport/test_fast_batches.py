"""The usage log's batches take the fast transport as well, and on bad days it says what both transports would."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from ratelimit import AccessDenied, StoreThrottled, StoreUnavailable, UsageEvent
from ratelimit.clock import SystemClock
from ratelimit.dynamodb import AnswerLost, DynamoDBStore
from ratelimit.event_id import EventIds
from tests.faults import Behaviour, FaultServer, error, garbage, half, hang_up, internal_error, throttled
from tests.faults.behaviours import Exchange
from tests.faults.oddities import checksum, chunked


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
async def store(request: pytest.FixtureRequest, server: FaultServer) -> AsyncIterator[DynamoDBStore]:
    async with DynamoDBStore(
        table="limits", endpoint=server.endpoint, fast=request.param, attempts=1, read_timeout=10
    ) as store:
        yield store


def events(number: int) -> list[UsageEvent]:
    at, ids = SystemClock().now() // 1000, EventIds()
    return [UsageEvent(id=ids.new(at), user="alice", action="hint", at_ms=at) for _ in range(number)]


def without(number: int) -> Behaviour:
    """Processes all but so many of the requests, the last ones."""

    async def behave(exchange: Exchange) -> bool:
        ((table, requests),) = exchange.body["RequestItems"].items()
        left, requests[-number:] = requests[-number:], []
        exchange.good_answer()
        await exchange.send(200, json.dumps({"UnprocessedItems": {table: left}}).encode())
        return True

    return behave


@pytest.mark.parametrize("behaviour", [chunked(), checksum()])
async def test_all_are_written(server: FaultServer, store: DynamoDBStore, behaviour: Behaviour) -> None:
    server.then(behaviour)
    assert await store.events.put(events(25)) == []
    assert len(server.table.items) == 25
    assert not store.stats.fallbacks


async def test_what_was_not_processed_is_said(server: FaultServer, store: DynamoDBStore) -> None:
    server.then(without(3))
    sent = events(10)
    assert await store.events.put(sent) == sent[-3:]
    assert len(server.table.items) == 7


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("behaviour", "expected"),
    [
        (throttled(), StoreThrottled),
        (internal_error(), StoreUnavailable),
        (garbage(b"{}"), AnswerLost),
        (garbage(), AnswerLost),
        (half(), AnswerLost),
        (hang_up(), AnswerLost),
    ],
)
async def test_bad_answers(
    server: FaultServer, store: DynamoDBStore, behaviour: Behaviour, expected: type[StoreUnavailable]
) -> None:
    server.then(behaviour)
    with pytest.raises(expected):
        await store.events.put(events(2))
    assert server.received["BatchWriteItem"] == 1
    assert not store.stats.fallbacks
    assert await store.events.put(events(2)) == []


async def test_what_is_unusual_goes_to_aiobotocore(server: FaultServer) -> None:
    async with DynamoDBStore(table="limits", endpoint=server.endpoint, attempts=1) as store:
        server.then(error("NeverHeardOfException"))
        assert await store.events.put(events(2)) == []
        assert store.stats.fallbacks == {"unknown_error": 1}
        server.always(error("InvalidSignatureException"))
        with pytest.raises(AccessDenied):
            await store.events.put(events(2))
        assert store.stats.fallbacks == {"unknown_error": 1, "denied": 1}
