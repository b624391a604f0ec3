"""Least privilege, both ways: every call that a role's code makes is granted, and nothing is granted that none makes.

The calls are taken from the wire, so that it makes no difference which client sends them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ratelimit.deploy import ROLES, Role, policies
from ratelimit.dynamodb import DynamoDBStore, Settings, TableSpec, create_table, delete_table
from ratelimit.names import Key
from tests.deploy import recording, roles
from tests.deploy.tap import Call, Tap, calls_of, tapped
from tests.engines import Engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # seconds here, minutes on a busy machine

TABLE = "limits"
ARN = "arn:aws:dynamodb:eu-west-1:123456789012"


@pytest.fixture(scope="module")
def engine(own_engine: Engine) -> Engine:
    """See `own_engine`."""
    return own_engine


def policy(role: Role) -> dict[str, Any]:
    return policies(table=TABLE, region="eu-west-1", account="123456789012")[role]


def granted(role: Role) -> set[tuple[str, str, str]]:
    """Every action with its resource, and what it is narrowed to."""
    return {
        (action, statement["Resource"].removeprefix(f"{ARN}:"), narrowed(statement))
        for statement in policy(role)["Statement"]
        for action in statement["Action"]
    }


def narrowed(statement: dict[str, Any]) -> str:
    """The one condition there is."""
    match statement.get("Condition", {}):
        case {"StringEquals": {"dynamodb:Select": str(select), **nothing}, **more} if not nothing and not more:
            return select
        case {**none} if not none:
            return ""
    raise AssertionError(f"a condition that this test does not know: {statement}")


@pytest.fixture
async def tap(engine: Engine) -> AsyncIterator[Tap]:
    async with tapped(engine.endpoint) as tap:
        yield tap


@pytest.fixture
async def table(engine: Engine, tap: Tap) -> AsyncIterator[Settings]:
    """A table that is there; what made it was not on the tap."""
    direct = Settings(table=f"iam-{uuid4()}", region="eu-west-1", endpoint=engine.endpoint, read_timeout=30)
    await create_table(direct, TableSpec(gsi2=True))
    yield replace(direct, endpoint=tap.endpoint)
    await delete_table(direct)


def taken(tap: Tap, *tables: str) -> set[tuple[str, str, str]]:
    """The calls on these tables, by the names that the policies are written for."""
    calls = [call for call in tap.calls if call.table in tables]
    assert calls == tap.calls
    return {(call.action, call._replace(table=TABLE).resource, call.select) for call in calls}


def agrees(engine: Engine, role: Role, calls: set[tuple[str, str, str]]) -> None:
    """Both ways; but an engine that lacks a feature is not asked to change it (DynamoDB Local: recovery, tags)."""
    assert calls <= granted(role)
    if engine.name == "ministack":
        assert calls == granted(role)


async def test_serve(engine: Engine, table: Settings, tap: Tap, tmp_path: Path) -> None:
    await roles.serve(table, tmp_path)
    agrees(engine, "serve", taken(tap, table.table))


async def test_read(engine: Engine, table: Settings, tap: Tap, tmp_path: Path) -> None:
    await roles.read(table, tmp_path)
    agrees(engine, "read", taken(tap, table.table))


async def test_migrate(engine: Engine, table: Settings, tap: Tap, tmp_path: Path) -> None:
    source = replace(table, table=f"iam-{uuid4()}", endpoint=engine.endpoint)
    await create_table(source)
    async with DynamoDBStore(source) as store:
        await roles.fill(store)
    await roles.migrate(table, tmp_path, source=replace(source, endpoint=table.endpoint))
    agrees(engine, "migrate", taken(tap, table.table, source.table))
    await delete_table(source)


async def test_operate(engine: Engine, tap: Tap) -> None:
    name = f"iam-{uuid4()}"
    await roles.operate(Settings(table=name, region="eu-west-1", endpoint=tap.endpoint))
    agrees(engine, "operate", taken(tap, name))


@pytest.mark.parametrize("role", ROLES)
def test_a_policy_names_its_table_and_nothing_else(role: Role) -> None:
    for statement in policy(role)["Statement"]:
        assert statement["Effect"] == "Allow"
        assert statement["Resource"] in (f"{ARN}:table/{TABLE}{part}" for part in ("", "/index/GSI1", "/index/GSI2"))
        assert not any(fnmatchcase(action, "*[*?]*") for action in statement["Action"])


def test_only_who_operates_may_take_the_table_away() -> None:
    holders = {role: {action for action, *_ in granted(role)} for role in ROLES}
    assert [role for role in ROLES if "dynamodb:DeleteTable" in holders[role]] == ["operate"]
    assert not any(action.split(":")[1].startswith(("Put", "Update", "Delete", "Batch")) for action in holders["read"])


def test_a_transaction_asks_for_its_parts() -> None:
    parts = [{"Put": {"TableName": "t"}}, {"Delete": {"TableName": "t"}}]
    assert calls_of("TransactWriteItems", {"TransactItems": parts}) == [
        Call("dynamodb:PutItem", "t"),
        Call("dynamodb:DeleteItem", "t"),
    ]


def test_a_query_of_an_index_is_asked_of_the_index() -> None:
    (call,) = calls_of("Query", {"TableName": "t", "IndexName": "GSI1"})
    assert call.resource == "table/t/index/GSI1"


async def test_the_net_below_hears_what_the_code_asks_for(table: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = recording.Recorder(frozenset())
    recording.listen(recorder, monkeypatch)
    async with DynamoDBStore(table, fast=False) as store:
        await store.read(Key.of("alice", "hint"))
        connection = await store._client()
        await connection.api.scan(TableName=table.table)  # the test's own, which nobody has to grant
    where = f"on table/{table.table}"
    assert recorder.ungranted == {f"dynamodb:DescribeTable {where}", f"dynamodb:GetItem {where}"}
