"""Creating, verifying and deleting a table, on an engine."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from ratelimit.dynamodb import (
    DynamoDBStore,
    Settings,
    TableSpec,
    create_table,
    delete_table,
    table_status,
    upgrade_table,
    verify_table,
)
from ratelimit.errors import TableMismatch, TableNotFound
from ratelimit.names import Key
from ratelimit.store import Add, Outcome, Write
from ratelimit.sync.store import store_from
from tests.dynamodb.tables import expire_by, index, keys, make, strings
from tests.faults import FaultServer, TinyTable


async def test_create_status_delete(settings: Settings) -> None:
    created = await create_table(settings)
    assert created.created
    assert (created.name, created.status, created.billing) == (settings.table, "ACTIVE", "PAY_PER_REQUEST")
    assert created.keys == ("PK (S)", "SK (S)")
    assert created.indexes == ("GSI1",)
    assert created.ttl == "ttl"
    assert "expiry (ttl)" not in created.missing
    assert (created.point_in_time_recovery is True) == ("point-in-time recovery" not in created.missing)
    assert (created.encrypted_with, created.protected) == ("DynamoDB's own key", False)
    assert ("recovery" in created.unknown) == (created.point_in_time_recovery is None)
    assert (await table_status(settings)).status == "ACTIVE"
    assert await delete_table(settings) is True
    with pytest.raises(TableNotFound):
        await table_status(settings)


async def test_everything_may_be_done_twice(settings: Settings) -> None:
    first, second = await create_table(settings), await create_table(settings)
    assert (first.created, second.created) == (True, False)
    assert first.keys == second.keys
    assert await delete_table(settings) is True
    assert await delete_table(settings) is False


async def test_several_create_it_at_once(settings: Settings) -> None:
    made = await asyncio.gather(*(create_table(settings) for _ in range(4)))
    assert sum(status.created for status in made) == 1
    assert {status.status for status in made} == {"ACTIVE"}


async def test_a_table_with_our_keys_is_completed(settings: Settings) -> None:
    await make(settings)
    status = await create_table(settings)
    assert (status.created, status.ttl) == (False, "ttl")
    assert "index GSI1" in status.missing


@pytest.mark.parametrize(
    "changes",
    [
        {
            "AttributeDefinitions": [{"AttributeName": "id", "AttributeType": "S"}],
            "KeySchema": [{"AttributeName": "id", "KeyType": "HASH"}],
        },
        {
            "AttributeDefinitions": [
                {"AttributeName": "PK", "AttributeType": "S"},
                {"AttributeName": "SK", "AttributeType": "N"},
            ]
        },
    ],
)
async def test_somebody_elses_table_is_left_alone(settings: Settings, changes: dict[str, Any]) -> None:
    await make(settings, **changes)
    for create in (False, True):
        with pytest.raises(TableMismatch, match="PK and SK, both strings; it has"):
            await DynamoDBStore(settings, create=create).open()
    with pytest.raises(TableMismatch):
        await create_table(settings)
    status = await table_status(settings)
    assert status.ttl is None


async def test_a_table_that_expires_by_something_else_is_refused(settings: Settings) -> None:
    await make(settings)
    await expire_by(settings, "expires")
    with pytest.raises(TableMismatch, match="expires its items by 'expires'"):
        await create_table(settings)


async def test_a_store_without_a_table_says_what_to_do(settings: Settings) -> None:
    store = DynamoDBStore(settings)
    for _ in range(2):
        with pytest.raises(TableNotFound, match="ratelimit table create"):
            await store.apply(Key.of("alice", "hint"), Write((Add("d1", 1),), 1_999_999_999), now=0)
    await create_table(settings)
    outcome = await store.apply(Key.of("alice", "hint"), Write((Add("d1", 1),), 1_999_999_999), now=0)
    assert outcome == Outcome(True, {"d1": 1})
    await store.close()


async def test_a_store_may_create_its_table(settings: Settings) -> None:
    async with DynamoDBStore(settings, create=True) as store:
        assert await store.read(Key.of("alice", "hint")) == {}
    status = await table_status(settings)
    assert (status.ttl, status.indexes) == ("ttl", ("GSI1",))


@pytest.mark.parametrize("blocking", [False, True])
async def test_where_timelines_are_wanted_their_index_is_made_with_the_table(
    settings: Settings, blocking: bool
) -> None:
    wanted = replace(settings, timelines=True, create=True)
    if blocking:
        url = f"dynamodb://{settings.table}?endpoint={settings.endpoint}&create=true"
        store = store_from(url, timelines=True)
        await asyncio.to_thread(store.open)
        await asyncio.to_thread(store.close)
    else:
        async with DynamoDBStore(wanted):
            pass
    assert (await table_status(settings)).indexes == ("GSI1", "GSI2")


async def test_an_index_of_timelines_that_is_missing_is_named(settings: Settings) -> None:
    wanted = replace(settings, timelines=True)
    await create_table(settings)
    assert "index GSI2" in (await table_status(wanted)).missing
    assert "index GSI2" in (await create_table(wanted)).missing, "one that is there is not changed"
    assert [line.name for line in await verify_table(wanted) if line.verdict == "differs" and line.part == "index"] == [
        "index GSI2"
    ]
    assert "index GSI2" not in (await table_status(settings)).missing


async def test_a_server_that_is_down() -> None:
    async with FaultServer() as server:
        settings = Settings(table="limits", endpoint=server.endpoint)
        assert (await table_status(settings)).keys == ("PK (S)", "SK (S)")


# What is asked of DynamoDB where the engines are more lenient than it is.


UNITS = {"ReadCapacityUnits": 8, "WriteCapacityUnits": 9}


class Told(TinyTable):
    """A table as described, which remembers what it is asked to change and never changes."""

    def __init__(self, **description: Any) -> None:
        super().__init__()
        self.description = {
            "TableStatus": "ACTIVE",
            "TableArn": "arn:aws:dynamodb:eu-west-1:000000000000:table/limits",
            "AttributeDefinitions": strings("PK", "SK", "GSI1PK", "GSI1SK"),
            "KeySchema": keys("PK", "SK"),
            **description,
        }
        self.changes: list[dict[str, Any]] = []
        self.tags = [{"Key": f"tag-{n}", "Value": str(n)} for n in range(25)]

    def answer(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        match operation:
            case "DescribeTable":
                return {"Table": self.description}
            case "DescribeTimeToLive":
                return {"TimeToLiveDescription": {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}}
            case "ListTagsOfResource":
                start = int(body.get("NextToken", "0"))
                more = {"NextToken": str(start + 10)} if start + 10 < len(self.tags) else {}
                return {"Tags": self.tags[start : start + 10], **more}
            case "UpdateTable":
                self.changes.append(body)
        return {}


async def upgraded(table: Told, spec: TableSpec) -> list[dict[str, Any]]:
    async with FaultServer() as server:
        server.table = table
        await upgrade_table(Settings(table="limits", endpoint=server.endpoint), spec)
    return [{name: value for name, value in change.items() if name != "TableName"} for change in table.changes]


async def test_a_table_that_turns_to_units_needs_them_for_its_indexes_too() -> None:
    table = Told(
        BillingModeSummary={"BillingMode": "PAY_PER_REQUEST"},
        GlobalSecondaryIndexes=[index("GSI1", "GSI1PK", "GSI1SK")],
    )
    spec = TableSpec(recovery=False, billing="provisioned", read=8, write=9)
    assert await upgraded(table, spec) == [
        {
            "BillingMode": "PROVISIONED",
            "ProvisionedThroughput": UNITS,
            "GlobalSecondaryIndexUpdates": [
                {
                    "Update": {
                        "IndexName": "GSI1",
                        "ProvisionedThroughput": {"ReadCapacityUnits": 5, "WriteCapacityUnits": 5},
                    }
                }
            ],
        }
    ]


async def test_other_units_leave_the_indexes_alone() -> None:
    table = Told(
        BillingModeSummary={"BillingMode": "PROVISIONED"},
        ProvisionedThroughput={"ReadCapacityUnits": 1, "WriteCapacityUnits": 1},
        GlobalSecondaryIndexes=[index("GSI1", "GSI1PK", "GSI1SK")],
    )
    spec = TableSpec(recovery=False, billing="provisioned", read=8, write=9)
    assert await upgraded(table, spec) == [{"BillingMode": "PROVISIONED", "ProvisionedThroughput": UNITS}]


async def test_a_new_index_has_units_on_a_provisioned_table_only() -> None:
    created = {
        "IndexName": "GSI1",
        "KeySchema": keys("GSI1PK", "GSI1SK"),
        "Projection": {"ProjectionType": "ALL"},
    }
    definitions = strings("PK", "SK", "GSI1PK", "GSI1SK")
    on_demand = Told(BillingModeSummary={"BillingMode": "PAY_PER_REQUEST"})
    assert await upgraded(on_demand, TableSpec(recovery=False)) == [
        {"AttributeDefinitions": definitions, "GlobalSecondaryIndexUpdates": [{"Create": created}]}
    ]
    # One that never was on demand does not say how it is billed.
    provisioned = Told(ProvisionedThroughput={**UNITS, "NumberOfDecreasesToday": 0})
    assert await upgraded(provisioned, TableSpec(recovery=False, billing="provisioned")) == [
        {
            "AttributeDefinitions": definitions,
            "GlobalSecondaryIndexUpdates": [{"Create": created | {"ProvisionedThroughput": UNITS}}],
        }
    ]


async def test_tags_come_in_pages() -> None:
    async with FaultServer() as server:
        server.table = Told()
        spec = TableSpec(tags={f"tag-{n}": str(n) for n in range(25)})
        lines = await verify_table(Settings(table="limits", endpoint=server.endpoint), spec)
    assert {line.verdict for line in lines if line.part == "tag"} == {"ok"}
    assert server.received["ListTagsOfResource"] == 3
