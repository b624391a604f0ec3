"""Mending a table in place: afterwards it compares clean, and what cannot be mended is said."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimit.dynamodb import (
    Settings,
    TableProtected,
    TableSpec,
    control,
    count_items,
    create_table,
    delete_table,
    table_status,
    upgrade_table,
    verify_table,
)
from ratelimit.dynamodb.calls import Retries, Stats
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.control import Control
from ratelimit.dynamodb.table import Upgrade
from tests.dynamodb.tables import expire_by, index, keys, make, strings
from tests.engines import Engine
from tests.faults import FaultServer, TinyTable, error

USUAL = TableSpec(recovery=False)
EVERYTHING = TableSpec(gsi2=True, protected=True, tags={"team": "payments"}, billing="provisioned", read=3, write=4)


@pytest.fixture(scope="module")
def engine(own_engine: Engine) -> Engine:
    """See `own_engine`."""
    return own_engine


async def left(settings: Settings, spec: TableSpec) -> dict[str, str]:
    return {line.name: line.found for line in await verify_table(settings, spec) if line.verdict == "differs"}


async def test_a_table_made_by_hand_becomes_ours_with_its_items(settings: Settings, engine: Engine) -> None:
    await make(settings)
    async with await connect(settings) as connection:
        item = {"PK": {"S": "USR#a"}, "SK": {"S": "META"}, "GSI1PK": {"S": "PLAN#"}, "GSI1SK": {"S": "USR#a"}}
        await connection.api.put_item(TableName=settings.table, Item=item)
    told: list[str] = []
    upgraded = await upgrade_table(settings, EVERYTHING, tell=told.append)
    assert upgraded.failed == {}
    assert await left(settings, EVERYTHING) == {}
    expected = {"deletion protection", "expiry", "billing", "index GSI1", "index GSI2"}
    if engine.name != "dynamodb-local":
        expected |= {"point-in-time recovery", "tag team"}
    assert set(upgraded.mended) == expected
    assert {f"{name}: done" for name in expected} <= set(told)
    status = await table_status(settings)
    assert (status.billing, status.read_units, status.write_units) == ("PROVISIONED", 3, 4)
    async with await connect(settings) as connection:
        found = await connection.api.query(
            TableName=settings.table,
            IndexName="GSI1",
            KeyConditionExpression="GSI1PK = :plan",
            ExpressionAttributeValues={":plan": {"S": "PLAN#"}},
        )
    assert found["Count"] == 1


async def test_nothing_to_do_is_nothing_done(settings: Settings) -> None:
    await create_table(settings)
    upgraded = await upgrade_table(settings)
    assert (upgraded.mended, upgraded.failed) == ((), {})


async def test_billing_and_units_there_and_back(settings: Settings) -> None:
    await create_table(settings)
    for spec in (
        TableSpec(billing="provisioned", read=3, write=4),
        TableSpec(billing="provisioned", read=6, write=2),
        TableSpec(billing="on-demand"),
    ):
        assert list(await left(settings, spec)) == ["billing"]
        assert (await upgrade_table(settings, spec)).mended == ("billing",)
        assert await left(settings, spec) == {}


async def test_billing_that_nobody_named_stays(settings: Settings) -> None:
    await create_table(settings, TableSpec(billing="provisioned", read=3, write=4))
    upgraded = await upgrade_table(settings)
    assert upgraded.mended == ()
    assert (await table_status(settings)).billing == "PROVISIONED"


async def test_an_index_on_a_provisioned_table_gets_units(settings: Settings) -> None:
    await make(
        settings,
        BillingMode="PROVISIONED",
        ProvisionedThroughput={"ReadCapacityUnits": 8, "WriteCapacityUnits": 9},
    )
    assert "index GSI1" in (await upgrade_table(settings, TableSpec(billing="provisioned"))).mended
    assert await left(settings, TableSpec(billing="provisioned")) == {}


async def test_what_cannot_be_mended_is_left_alone(settings: Settings) -> None:
    await make(
        settings,
        AttributeDefinitions=strings("id", "GSI1PK", "GSI1SK"),
        KeySchema=keys("id"),
        GlobalSecondaryIndexes=[index("GSI1", "GSI1PK", "GSI1SK", projection="KEYS_ONLY")],
    )
    await expire_by(settings, "expires")
    upgraded = await upgrade_table(settings, TableSpec(recovery=False))
    assert (upgraded.mended, upgraded.failed) == ((), {})
    assert set(await left(settings, TableSpec(recovery=False))) == {
        "partition key",
        "sort key",
        "index GSI1",
        "expiry",
    }
    assert all(line.remedy for line in upgraded.lines if line.verdict == "differs")


async def test_a_protected_table_is_not_deleted(settings: Settings) -> None:
    await create_table(settings, TableSpec(protected=True))
    with pytest.raises(TableProtected, match="--no-protect"):
        await delete_table(settings)
    assert (await table_status(settings)).protected
    await upgrade_table(settings, TableSpec(protected=False))
    assert await delete_table(settings) is True


async def test_items_are_counted_now(settings: Settings) -> None:
    await create_table(settings)
    assert await count_items(settings) == (0, True)
    async with await connect(settings) as connection:
        for n in range(24):
            item = {"PK": {"S": f"USR#{n}"}, "SK": {"S": "META"}, "x": {"S": "x" * 50_000}}
            await connection.api.put_item(TableName=settings.table, Item=item)
    count, is_all = await count_items(settings)
    assert not is_all
    assert 20 <= count <= 24


class Filling(TinyTable):
    """Makes an index on request, and is busy with it for some more descriptions."""

    def __init__(self, busy: int) -> None:
        super().__init__()
        self.busy = busy
        self.indexes: list[dict[str, Any]] = []

    def answer(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpdateTable":
            self.indexes = [change["Create"] for change in body["GlobalSecondaryIndexUpdates"]]
            return {}
        if operation == "DescribeTimeToLive":
            return {"TimeToLiveDescription": {"TimeToLiveStatus": "ENABLED", "AttributeName": "ttl"}}
        answer = super().answer(operation, body)
        if operation == "DescribeTable":
            answer["Table"]["BillingModeSummary"] = {"BillingMode": "PAY_PER_REQUEST"}
            answer["Table"]["AttributeDefinitions"] = strings("PK", "SK", "GSI1PK", "GSI1SK")
            self.busy -= bool(self.indexes)
            state = {"IndexStatus": "CREATING", "Backfilling": True} if self.busy > 0 else {"IndexStatus": "ACTIVE"}
            answer["Table"]["GlobalSecondaryIndexes"] = [one | state for one in self.indexes]
        return answer


async def test_one_part_that_is_refused_does_not_stop_the_others() -> None:
    async with FaultServer() as server:
        server.always(error("AccessDeniedException", "not authorized to perform: dynamodb:UpdateTable"))
        server.table = Filling(busy=0)
        settings = Settings(table="limits", endpoint=server.endpoint)
        upgraded = await upgrade_table(settings, TableSpec(protected=True))
    assert set(upgraded.failed) == {"deletion protection", "index GSI1"}
    assert all("lacks the permission dynamodb:UpdateTable" in why for why in upgraded.failed.values())


async def run_on(table: TinyTable, *, within: float, spec: TableSpec = USUAL) -> tuple[Any, list[str], list[float]]:
    """An upgrade whose pauses take no time."""
    told: list[str] = []
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async with FaultServer() as server:
        server.table = table
        async with await connect(Settings(table="limits", endpoint=server.endpoint)) as client:
            upgrade = Upgrade(Control(client, Retries(1, Stats())), spec, tell=told.append, within=within)
            with pytest.MonkeyPatch.context() as patches:
                patches.setattr(control, "sleep", sleep)
                return await upgrade.run(), told, slept


async def test_an_index_that_fills_is_waited_for_and_told_of() -> None:
    upgraded, told, slept = await run_on(Filling(busy=30), within=600)
    assert upgraded.mended == ("index GSI1",)
    progress = [line for line in told if "CREATING (filling)" in line]
    assert 2 <= len(progress) < len(slept)  # now and then, not at every look
    assert told[-1] == "index GSI1: done"


async def test_the_wait_ends() -> None:
    upgraded, _, slept = await run_on(Filling(busy=10_000), within=60)
    assert "waited in vain" in upgraded.failed["index GSI1"]
    assert 55 < sum(slept) < 65
    assert [line.name for line in upgraded.lines if line.verdict == "differs"] == ["index GSI1"]


class BusyWith(Filling):
    """Still at an index that somebody asked for earlier."""

    def __init__(self) -> None:
        super().__init__(busy=10_000)
        self.indexes = [index("GSI1", "GSI1PK", "GSI1SK")]
        self.expires = False

    def answer(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        if operation == "DescribeTimeToLive" and not self.expires:
            return {}
        if operation == "UpdateTimeToLive":
            self.expires = True
            return {}
        return super().answer(operation, body)


async def test_what_can_be_mended_meanwhile_does_not_wait_for_an_index() -> None:
    upgraded, _, slept = await run_on(BusyWith(), within=60)
    assert (upgraded.mended, upgraded.failed, slept) == (("expiry",), {}, [])


async def test_another_change_of_the_table_waits_for_it_and_gives_up() -> None:
    upgraded, _, _ = await run_on(BusyWith(), within=60, spec=TableSpec(recovery=False, protected=True))
    assert upgraded.mended == ("expiry",)
    assert "done with an earlier change" in upgraded.failed["deletion protection"]
