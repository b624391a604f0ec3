"""Users and plans on a bad day: what is sent again, what is not, and what a caller is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ratelimit.directory import Directory
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.directory import DynamoDBDirectoryStore
from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.store.directory import Identity, IdentityTaken, Plan, User
from tests.directory.conftest import on_engine
from tests.engines import Engine
from tests.faults import Behaviour, FaultServer, garbage, hang_up, internal_error, slow, throttled
from tests.faults.behaviours import Exchange

pytestmark = pytest.mark.heavy

OLD = User("alice", identities=[Identity.email("old@example.com")], version=5)
NEW = User("alice", identities=[Identity.email("new@example.com")])


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as server:
        yield server


@pytest.fixture
async def table(server: FaultServer, pauses: list[float]) -> AsyncIterator[DynamoDBStore]:
    async with DynamoDBStore(table="people", endpoint=server.endpoint) as table:
        yield table


@pytest.fixture
def people(table: DynamoDBStore) -> DynamoDBDirectoryStore:
    return table.directory


def answering(body: dict[str, Any], status: int = 200) -> Behaviour:
    async def behave(exchange: Exchange) -> bool:
        await exchange.send(status, json.dumps(body).encode())
        return True

    return behave


def cancelled(*codes: str) -> Behaviour:
    """A transaction that was not executed, with a reason for each of its parts."""
    kind = "com.amazonaws.dynamodb.v20120810#TransactionCanceledException"
    reasons = [{"Code": code} for code in codes]
    return answering({"__type": kind, "Message": "cancelled", "CancellationReasons": reasons}, 400)


done = answering({})


async def test_a_changed_entry_is_no_error(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.then(cancelled("ConditionalCheckFailed", "ConditionalCheckFailed", "None"))
    assert not await people.replace(OLD, NEW, now=1)


async def test_a_taken_identity_is_named(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.then(cancelled("None", "ConditionalCheckFailed", "None"))
    with pytest.raises(IdentityTaken, match=r"another user has this email already \(new@example.com\)"):
        await people.replace(OLD, NEW, now=1)


async def test_an_identity_that_is_no_longer_ours_means_an_old_version(
    server: FaultServer, people: DynamoDBDirectoryStore
) -> None:
    server.then(cancelled("None", "None", "ConditionalCheckFailed"))
    assert not await people.replace(OLD, NEW, now=1)


@pytest.mark.parametrize("fault", [cancelled("None", "TransactionConflict"), throttled(), internal_error(), hang_up()])
async def test_a_change_is_sent_again_as_the_same(
    server: FaultServer, people: DynamoDBDirectoryStore, fault: Behaviour
) -> None:
    tokens: list[str] = []

    def noting(behaviour: Behaviour) -> Behaviour:
        async def behave(exchange: Exchange) -> bool:
            tokens.append(exchange.body["ClientRequestToken"])
            return await behaviour(exchange)

        return behave

    server.then(noting(fault), noting(done))
    assert await people.replace(OLD, NEW, now=1)
    assert len(tokens) == 2
    assert len(set(tokens)) == 1


async def test_conflicts_without_end_are_a_throttled_store(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.always(cancelled("TransactionConflict", "None", "None"))
    with pytest.raises(StoreThrottled, match="nothing was written"):
        await people.replace(OLD, NEW, now=1)
    assert server.received["TransactWriteItems"] == 3


async def test_what_will_never_work_is_not_sent_again(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.always(cancelled("ValidationError", "None", "None"))
    with pytest.raises(StoreMisconfigured, match="ValidationError"):
        await people.replace(OLD, NEW, now=1)
    assert server.received["TransactWriteItems"] == 1


@pytest.mark.parametrize("fault", [throttled(), internal_error(), hang_up(), garbage()])
async def test_reads_are_sent_again(server: FaultServer, people: DynamoDBDirectoryStore, fault: Behaviour) -> None:
    item = {"PK": {"S": "PLAN#pro"}, "SK": {"S": "META"}, "dat": {"M": {"hint": {"S": "5/day"}}}}
    server.then(fault, answering({"Item": item}))
    assert await people.read(Plan, "pro") == Plan("pro", {"hint": "5/day"})
    server.then(fault, answering({"Items": [item]}))
    assert (await people.page(Plan)).entries == (Plan("pro", {"hint": "5/day"}),)


async def test_a_list_that_lists_nothing_is_no_answer(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.always(answering({}))
    with pytest.raises(StoreUnavailable, match="without items"):
        await people.page(User)


async def test_one_unreadable_row_does_not_hide_the_others(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    one = Directory(people, deadline=5)

    def row(user: str, role: str) -> Behaviour:
        data = {"rol": {"S": role}, "quo": {"M": {"hint": {"S": "7/day"}}}}
        return answering({"Item": {"PK": {"S": f"USR#{user}"}, "SK": {"S": "META"}, "dat": {"M": data}}})

    for _ in range(5):
        server.then(row("alice", "emperor"))
        assert await one.quotas_for("alice", "hint") is None
    server.then(row("bob", "user"))
    assert str((await one.quotas_for("bob", "hint") or [None])[0]) == "7/day"


async def test_a_slow_table_makes_no_question_slow(server: FaultServer, people: DynamoDBDirectoryStore) -> None:
    server.always(slow(1, done))
    one = Directory(people, deadline=0.02)
    for number in range(20):
        assert await one.quotas_for(f"user-{number}", "hint") is None
    assert one.stats.without == 20
    assert server.received["GetItem"] <= 4  # the failure of the third may be noted when the fourth has begun


async def test_calls_are_counted(engine: Engine) -> None:
    """One read for a user or a plan; one transaction for a change, whatever it touches."""
    async with on_engine(engine) as table:
        people = table.directory
        table.stats.calls.clear()  # those of opening
        user = User("counted", plan="pro", identities=[Identity.email("counted@example.com")])
        old = await people.read(User, "counted")
        assert await people.replace(old, user, now=1_790_000_000_000_000 if old is None else old.version + 1)
        assert await people.find(user.identities[0]) == "counted"
        await people.page(User, plan="pro")
        assert table.stats.calls == {"GetItem": 2, "TransactWriteItems": 1, "Query": 1}
        assert table.stats.write_units > 0
        assert table.stats.read_units > 0
