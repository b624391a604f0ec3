"""The replay server: an engine's own bytes again, for the same question; everything else is the engine's to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import pytest

from loadtest.bench.contenders_boto import on_dynamodb as on_bare_dynamodb
from loadtest.bench.ours import USERS, on_dynamodb
from loadtest.bench.replay import replay_server, tally
from loadtest.bench.worker import Open
from loadtest.talking import TalkingProgram
from tests.engines import Engine

pytestmark = pytest.mark.slow

MOMENT = 1_795_257_128_768
CREATED = {
    "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}],
    "AttributeDefinitions": [{"AttributeName": "PK", "AttributeType": "S"}],
    "BillingMode": "PAY_PER_REQUEST",
}


@pytest.fixture
def replaying(engine: Engine) -> Iterator[TalkingProgram]:
    with replay_server(engine.endpoint) as server:
        yield server


@pytest.fixture
def table(engine: Engine, request: pytest.FixtureRequest) -> str:
    name: str = request.node.name
    engine.call("CreateTable", {"TableName": name, **CREATED})
    return name


def adding(table: str, *, user: str = "ada", amount: int = 1, moment: int = MOMENT, most: int = 100) -> dict[str, Any]:
    return {
        "TableName": table,
        "UpdateExpression": "SET seen = :now ADD spent :amount",
        "ConditionExpression": "attribute_not_exists(spent) OR spent <= :most",
        "ExpressionAttributeValues": {
            ":amount": {"N": str(amount)}, ":most": {"N": str(most)}, ":now": {"N": str(moment)},
        },
        "ReturnValues": "UPDATED_NEW",
        "Key": {"PK": {"S": user}},
    }  # fmt: skip


def spent(engine: Engine, table: str, user: str = "ada") -> int:
    found = engine.call("GetItem", {"TableName": table, "Key": {"PK": {"S": user}}, "ConsistentRead": True})
    return int(found["Item"]["spent"]["N"])


def asking(server: TalkingProgram) -> Engine:
    return Engine("replay", server.endpoint)


def raw(endpoint: str, operation: str, question: dict[str, Any]) -> tuple[list[tuple[str, str]], bytes]:
    """The answer's head and body; `Engine.call` reads the body alone."""
    connection = HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
    headers = {
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Target": f"DynamoDB_20120810.{operation}",
        "X-Amz-Date": "20260105T120000Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260105/eu-west-1/dynamodb/aws4_request, "
        "SignedHeaders=host;x-amz-date;x-amz-target, Signature=" + "0" * 64,
    }
    try:
        connection.request("POST", "/", json.dumps(question), headers)
        answer = connection.getresponse()
        return answer.getheaders(), answer.read()
    finally:
        connection.close()


def test_the_same_question_gets_the_same_bytes(engine: Engine, replaying: TalkingProgram, table: str) -> None:
    first, *others = [raw(replaying.endpoint, "UpdateItem", adding(table)) for _ in range(3)]
    assert json.loads(first[1])["Attributes"]["spent"] == {"N": "1"}
    assert "x-amz-crc32" in {name.lower() for name, _ in first[0]}
    assert others == [first, first]
    assert spent(engine, table) == 1


def test_the_time_makes_no_other_question(engine: Engine, replaying: TalkingProgram, table: str) -> None:
    for later in range(3):
        asking(replaying).call("UpdateItem", adding(table, moment=MOMENT + later))
    assert spent(engine, table) == 1


def test_whatever_else_differs_does(engine: Engine, replaying: TalkingProgram, table: str) -> None:
    for question in (adding(table), adding(table, amount=2), adding(table, most=99)):
        asking(replaying).call("UpdateItem", question)
    assert spent(engine, table) == 4


def test_users_are_not_mixed_up(engine: Engine, replaying: TalkingProgram, table: str) -> None:
    """Not even those whose name looks like a moment."""
    users = ("ada", "bob", str(MOMENT), str(MOMENT + 1))
    for user in users:
        asking(replaying).call("UpdateItem", adding(table, user=user))
    assert [spent(engine, table, user) for user in users] == [1, 1, 1, 1]


def test_a_refusal_is_not_remembered(engine: Engine, replaying: TalkingProgram, table: str) -> None:
    engine.call("UpdateItem", adding(table, amount=50))
    refused = adding(table, most=10)
    for _ in range(2):
        with pytest.raises(OSError, match="ConditionalCheckFailed"):
            asking(replaying).call("UpdateItem", refused)
    engine.call("UpdateItem", adding(table, amount=-45))
    asking(replaying).call("UpdateItem", refused)
    assert spent(engine, table) == 6


def test_a_read_is_the_engines_to_answer(engine: Engine, replaying: TalkingProgram, table: str) -> None:
    for amount in (1, 2, 3):
        engine.call("UpdateItem", adding(table, amount=amount))
        assert spent(asking(replaying), table) == spent(engine, table)


def test_without_its_engine_it_hangs_up() -> None:
    with replay_server("http://127.0.0.1:1") as server, pytest.raises((OSError, HTTPException)):
        asking(server).call("ListTables", {})


@pytest.mark.parametrize(
    "opened",
    [
        pytest.param(partial(on_dynamodb, create=True), id="fast lane"),
        pytest.param(partial(on_dynamodb, create=True, fast=False), id="aiobotocore lane"),
        pytest.param(on_bare_dynamodb, id="bare aiobotocore"),
    ],
)
async def test_a_check_is_one_write_as_on_an_engine(engine: Engine, opened: Open) -> None:
    async with on_dynamodb(engine.endpoint, users=1, create=True):
        pass  # bare aiobotocore makes no table
    with replay_server(engine.endpoint) as server:
        async with opened(server.endpoint) as contender:
            for _ in range(5 * USERS):
                await contender.call()
    counts = tally(server)
    assert counts.replayed["UpdateItem"] + counts.handed_on["UpdateItem"] == 6 * USERS
    assert set(counts.replayed) == {"UpdateItem"}
    # New questions are each user's first two, and as many more where the hour turns meanwhile.
    assert counts.replayed["UpdateItem"] >= 2 * USERS
