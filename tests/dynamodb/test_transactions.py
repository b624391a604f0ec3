"""A transaction of counters on a bad day: sent again under the same token, so that none is executed twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.calls import TRANSACTION_ATTEMPTS
from ratelimit.dynamodb.errors import AnswerLost
from ratelimit.errors import AccessDenied, StoreMisconfigured, StoreThrottled
from ratelimit.names import Key
from ratelimit.store import Add, Outcome, Write
from tests.faults import Behaviour, FaultServer, error, garbage, hang_up, internal_error, throttled
from tests.faults.behaviours import Exchange

WRITE = Write((Add("d1", 1, 5),), 1_999_999_999)
WRITES = [(Key("alice", "user"), WRITE), (Key("acme", "org"), WRITE)]


class Answers:
    """Behaviours that remember what was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def canceled(self, *reasons: dict[str, Any]) -> Behaviour:
        kind = "com.amazonaws.dynamodb.v20120810#TransactionCanceledException"
        return self.of({"__type": kind, "Message": "canceled", "CancellationReasons": reasons}, 400)

    def of(self, body: dict[str, Any], status: int = 200) -> Behaviour:
        async def behave(exchange: Exchange) -> bool:
            self.asked.append(exchange.body)
            await exchange.send(status, json.dumps(body).encode())
            return True

        return behave


@pytest.fixture(params=[True, False], ids=["fast", "slow"])
async def store(
    request: pytest.FixtureRequest, server: FaultServer, pauses: list[float]
) -> AsyncIterator[DynamoDBStore]:
    async with DynamoDBStore(
        table="limits", endpoint=server.endpoint, read_timeout=20, fast=request.param, consumed=True
    ) as store:
        yield store


@pytest.mark.parametrize(
    "first",
    [
        throttled(),
        error("TransactionInProgressException"),
        internal_error(),
        garbage(b"[]"),
        hang_up(executed=False),
        Answers().canceled({"Code": "None"}, {"Code": "TransactionConflict"}),
        Answers().canceled({"Code": "ThrottlingError"}, {"Code": "None"}),
    ],
    ids=["throttled", "under way", "500", "garbage", "hung up", "conflict", "hot item"],
)
async def test_it_is_sent_again_under_the_same_token(
    server: FaultServer, store: DynamoDBStore, first: Behaviour
) -> None:
    answers, tokens = Answers(), []

    async def told(exchange: Exchange) -> bool:
        tokens.append(exchange.body["ClientRequestToken"])
        return await first(exchange)

    consumed = [{"TableName": "limits", "CapacityUnits": 4.0}]
    server.then(told, told, answers.of({"ConsumedCapacity": consumed}))
    assert await store.apply_all(WRITES, now=0) == [Outcome(True, {})] * 2
    (asked,) = answers.asked
    assert tokens == [asked["ClientRequestToken"]] * 2
    assert store.stats.calls["TransactWriteItems"] == 3
    assert store.stats.write_units == 4.0
    parts = [part["Update"] for part in asked["TransactItems"]]
    assert [part["Key"]["PK"]["S"] for part in parts] == ["USR#alice#LIM#user", "USR#acme#LIM#org"]
    assert {part["TableName"] for part in parts} == {"limits"}
    assert not any("ReturnValues" in part for part in parts)


async def test_two_transactions_have_two_tokens(server: FaultServer, store: DynamoDBStore) -> None:
    answers = Answers()
    server.then(answers.of({}), answers.of({}))
    for _ in range(2):
        await store.apply_all(WRITES, now=0)
    assert len({asked["ClientRequestToken"] for asked in answers.asked}) == 2


async def test_a_refusal_is_told_once_and_not_sent_again(server: FaultServer, store: DynamoDBStore) -> None:
    item = {"PK": {"S": "USR#acme#LIM#org"}, "SK": {"S": "STATE"}, "tp": {"S": "lim"}, "d1": {"N": "5"}}
    server.then(Answers().canceled({"Code": "None"}, {"Code": "ConditionalCheckFailed", "Item": item}))
    assert await store.apply_all(WRITES, now=0) == [Outcome(True, {}), Outcome(False, {"d1": 5})]
    assert store.stats.calls["TransactWriteItems"] == 1


@pytest.mark.parametrize(
    ("answer", "raised", "times"),
    [
        (Answers().canceled({"Code": "TransactionConflict"}, {"Code": "None"}), StoreThrottled, TRANSACTION_ATTEMPTS),
        (Answers().canceled({"Code": "ValidationError"}, {"Code": "None"}), StoreMisconfigured, 1),
        (error("IdempotentParameterMismatchException"), StoreMisconfigured, 1),
        (error("AccessDeniedException"), AccessDenied, 1),
        (internal_error(), AnswerLost, TRANSACTION_ATTEMPTS),
    ],
    ids=["conflict", "invalid", "mismatch", "denied", "500"],
)
async def test_what_is_raised_in_the_end(
    server: FaultServer, store: DynamoDBStore, answer: Behaviour, raised: type[Exception], times: int
) -> None:
    server.always(answer)
    with pytest.raises(raised):
        await store.apply_all(WRITES, now=0)
    assert store.stats.calls["TransactWriteItems"] == times
