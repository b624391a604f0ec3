"""Comparing a table with what it should be: every difference is a line that names it."""

from __future__ import annotations

from typing import Any

import pytest

from ratelimit.dynamodb import Settings, TableDiff, TableSpec, create_table, delete_table, upgrade_table, verify_table
from ratelimit.dynamodb.errors import Place
from ratelimit.dynamodb.table_diff import UPGRADE, TableSnapshot, Unknown, compare
from ratelimit.errors import AccessDenied, TableNotFound
from tests.dynamodb.tables import expire_by, index, keys, make, strings
from tests.engines import Engine
from tests.faults import FaultServer, error

EVERYTHING = TableSpec(gsi2=True, protected=True, tags={"team": "payments", "env": "prod"})


@pytest.fixture(scope="module")
def engine(own_engine: Engine) -> Engine:
    """See `own_engine`."""
    return own_engine


def by_name(lines: tuple[TableDiff, ...]) -> dict[str, TableDiff]:
    return {line.name: line for line in lines}


def differing(lines: tuple[TableDiff, ...]) -> dict[str, tuple[str, str]]:
    return {line.name: (line.found, line.wanted) for line in lines if line.verdict == "differs"}


def unknown(lines: tuple[TableDiff, ...]) -> set[str]:
    return {line.name for line in lines if line.verdict == "unknown"}


def beyond(engine: Engine, *names: str) -> set[str]:
    """What DynamoDB Local does not know, and no other engine of the suite."""
    return set(names) if engine.name == "dynamodb-local" else set()


async def test_a_table_of_ours_is_as_it_should_be(settings: Settings, engine: Engine) -> None:
    for spec in (TableSpec(), EVERYTHING):
        if spec is EVERYTHING:
            await delete_table(settings)
        assert (await create_table(settings, spec)).created
        lines = await verify_table(settings, spec)
        assert differing(lines) == {}
        tags = ["tag team", "tag env"] if spec.tags else []
        assert unknown(lines) == beyond(engine, "point-in-time recovery", *tags)


async def test_wrong_keys_are_named_each_with_its_type(settings: Settings) -> None:
    await make(
        settings,
        AttributeDefinitions=[*strings("id"), {"AttributeName": "SK", "AttributeType": "N"}],
        KeySchema=keys("id", "SK"),
    )
    lines = await verify_table(settings)
    found = differing(lines)
    assert found["partition key"] == ("id (S)", "PK (S)")
    assert found["sort key"] == ("SK (N)", "SK (S)")
    assert not by_name(lines)["sort key"].mendable
    assert "never change" in by_name(lines)["partition key"].remedy


async def test_a_key_that_is_not_there_is_named(settings: Settings) -> None:
    await make(settings, AttributeDefinitions=strings("PK"), KeySchema=keys("PK"))
    assert differing(await verify_table(settings))["sort key"] == ("none", "SK (S)")


async def test_a_table_made_by_hand_lacks_the_rest(settings: Settings, engine: Engine) -> None:
    await make(settings)
    lines = await verify_table(settings, EVERYTHING)
    expected = {
        "index GSI1": ("missing", "GSI1PK (S), GSI1SK (S); projects ALL"),
        "index GSI2": ("missing", "GSI2PK (S), GSI2SK (S); projects ALL"),
        "deletion protection": ("off", "on"),
        "expiry": ("off", "by ttl"),
        "point-in-time recovery": ("off", "on"),
        "tag team": ("missing", "'payments'"),
        "tag env": ("missing", "'prod'"),
    }
    not_here = beyond(engine, "point-in-time recovery", "tag team", "tag env")
    assert differing(lines) == {name: texts for name, texts in expected.items() if name not in not_here}
    assert unknown(lines) == not_here
    assert all("cannot be checked here" in line.remedy for line in lines if line.verdict == "unknown")
    assert all(line.remedy == UPGRADE for line in lines if line.verdict == "differs")


async def test_what_is_there_in_another_way(settings: Settings) -> None:
    await make(
        settings,
        BillingMode="PROVISIONED",
        ProvisionedThroughput={"ReadCapacityUnits": 2, "WriteCapacityUnits": 3},
        AttributeDefinitions=strings("PK", "SK", "GSI1PK", "GSI1SK"),
        GlobalSecondaryIndexes=[
            index("GSI1", "GSI1PK", "GSI1SK", projection="KEYS_ONLY")
            | {"ProvisionedThroughput": {"ReadCapacityUnits": 1, "WriteCapacityUnits": 1}}
        ],
    )
    await expire_by(settings, "expires")
    lines = await verify_table(settings)
    found = differing(lines)
    assert found["index GSI1"] == ("GSI1PK (S), GSI1SK (S); projects KEYS_ONLY", "GSI1PK (S), GSI1SK (S); projects ALL")
    assert found["billing"] == ("provisioned", "on-demand")
    assert found["expiry"] == ("by expires", "by ttl")
    assert not any(by_name(lines)[name].mendable for name in ("index GSI1", "billing", "expiry"))
    with_units = await verify_table(settings, TableSpec(billing="provisioned", read=2, write=9))
    assert differing(with_units)["billing"] == ("provisioned, 2 read, 3 write", "provisioned, 2 read, 9 write")
    assert "billing" not in differing(await verify_table(settings, TableSpec(billing="provisioned", read=2, write=3)))
    assert "billing" not in differing(await verify_table(settings, TableSpec(billing="provisioned")))


async def test_an_index_of_somebody_elses_is_told_of_and_no_difference(settings: Settings) -> None:
    await make(
        settings,
        AttributeDefinitions=strings("PK", "SK", "mail"),
        GlobalSecondaryIndexes=[index("by-mail", "mail")],
    )
    line = by_name(await verify_table(settings))["index by-mail"]
    assert (line.found, line.verdict) == ("mail (S); projects ALL", "not asked for")


async def test_a_table_that_is_not_there(settings: Settings) -> None:
    with pytest.raises(TableNotFound):
        await verify_table(settings)


async def test_encryption(settings: Settings, engine: Engine) -> None:
    key = "arn:aws:kms:eu-west-1:000000000000:key/1234"
    await make(settings)
    line = by_name(await verify_table(settings, TableSpec(kms_key=key)))["encryption"]
    if engine.name == "dynamodb-local":
        assert (line.verdict, line.remedy) == ("unknown", "cannot be checked here: this engine does not know it")
        return
    assert (line.verdict, line.found, line.wanted) == ("differs", "DynamoDB's own key", f"KMS, {key}")
    await upgrade_table(settings, TableSpec(kms_key=key))
    for same in (key, "1234"):
        assert by_name(await verify_table(settings, TableSpec(kms_key=same)))["encryption"].verdict == "ok"
    other = by_name(await verify_table(settings, TableSpec(kms_key="5678")))["encryption"]
    assert (other.verdict, other.found) == ("differs", f"KMS, {key}")
    alias = by_name(await verify_table(settings, TableSpec(kms_key="alias/limits")))["encryption"]
    assert (alias.verdict, "give the key's ARN" in alias.remedy) == ("unknown", True)


async def test_a_missing_permission_is_named_and_the_rest_goes_on() -> None:
    async with FaultServer() as server:
        server.always(error("AccessDeniedException", "User: x is not authorized"))
        lines = by_name(await verify_table(Settings(table="limits", endpoint=server.endpoint)))
    assert lines["expiry"].remedy == "needs the permission dynamodb:DescribeTimeToLive"
    assert lines["point-in-time recovery"].permission == "dynamodb:DescribeContinuousBackups"
    assert lines["partition key"].verdict == "ok"
    assert lines["index GSI1"].verdict == "differs"


async def test_expired_credentials_are_no_missing_permission() -> None:
    async with FaultServer() as server:
        server.always(error("ExpiredTokenException"))
        with pytest.raises(AccessDenied, match="expired"):
            await verify_table(Settings(table="limits", endpoint=server.endpoint))


def snapshot(table: Any) -> TableSnapshot:
    return TableSnapshot(place=Place("limits", "eu-west-1", ""), table=table, ttl="ttl", recovery=True, tags={})


def test_without_the_permission_to_describe_the_others_are_compared_all_the_same() -> None:
    action = "dynamodb:DescribeTable"
    lines = by_name(compare(snapshot(Unknown(f"needs the permission {action}", action)), TableSpec()))
    assert [line.verdict for line in lines.values()] == ["unknown", "ok", "ok"]
    assert next(iter(lines.values())).permission == action


def test_an_index_that_is_being_made_is_not_there_yet() -> None:
    table = {
        "TableStatus": "UPDATING",
        "AttributeDefinitions": strings("PK", "SK", "GSI1PK", "GSI1SK"),
        "KeySchema": keys("PK", "SK"),
        "GlobalSecondaryIndexes": [index("GSI1", "GSI1PK", "GSI1SK") | {"IndexStatus": "CREATING"}],
        "BillingModeSummary": {"BillingMode": "PAY_PER_REQUEST"},
    }
    lines = by_name(compare(snapshot(table), TableSpec()))
    assert lines["index GSI1"].found.endswith("; CREATING")
    assert {name for name, line in lines.items() if line.verdict == "differs"} == {"state", "index GSI1"}
    assert not any(line.mendable for line in lines.values())


async def test_a_tag_with_another_value(settings: Settings, engine: Engine) -> None:
    await create_table(settings, TableSpec(tags={"team": "payments"}))
    line = by_name(await verify_table(settings, TableSpec(tags={"team": "search"})))["tag team"]
    if engine.name == "dynamodb-local":
        assert line.verdict == "unknown"
    else:
        assert (line.found, line.wanted, line.verdict) == ("'payments'", "'search'", "differs")
