"""A table with replicas is noticed: opening it without a mode is an error, and `verify` says what the mode promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from ratelimit import Limiter, Policy, ReplicaMismatch, TableNotFound, open_store
from ratelimit.dynamodb import DynamoDBStore, Settings, TableSpec, regions_of_table, verify_table
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.control import replicas_of, replicas_problem
from ratelimit.dynamodb.errors import Place
from ratelimit.dynamodb.table_diff import TableSnapshot, compare, to_status
from ratelimit.names import Key
from ratelimit.opening import store_from_url
from ratelimit.regions import RegionsMode
from ratelimit.regions.regions import home_of
from tests.dynamodb.tables import replicated
from tests.engines import Engine
from tests.faults import FaultServer, TinyTable, error, ok

HERE, THERE = "eu-west-1", "us-east-1"
AMAZON = Place("limits", HERE, "https://dynamodb.eu-west-1.amazonaws.com")
LOCAL = Place("limits", HERE, "http://127.0.0.1:4566")


def table(*others: str, **more: Any) -> dict[str, Any]:
    """A description, as DynamoDB gives it in `HERE`."""
    return {"GlobalTableVersion": "2019.11.21", "Replicas": [{"RegionName": region} for region in others], **more}


STRONG = {"MultiRegionConsistency": "STRONG"}


@pytest.mark.parametrize(
    ("found", "mode", "regions", "problem"),
    [
        ({}, None, (), None),
        (table(THERE), "home", (HERE, THERE), None),
        (table(HERE, THERE), "home", (HERE, THERE), None),
        (table(THERE, "ap-south-1"), "home", (HERE,), None),
        (table(THERE, **STRONG), "strong", (HERE, THERE), None),
        ({}, "strong", (HERE,), None),
        (table(THERE), None, (), "mode = 'home', all = ['eu-west-1', 'us-east-1'] }"),
        (table(THERE, **STRONG), None, (), "mode = 'strong', all = ['eu-west-1', 'us-east-1'] }"),
        (table(THERE), "home", (HERE, "ap-south-1"), "has no replica in ap-south-1: add it to the table"),
        ({}, "home", (HERE, THERE), "has no replica in us-east-1"),
        (table(THERE), "home", (THERE, "ap-south-1"), "'eu-west-1' is not in the list (us-east-1, ap-south-1); add it"),
        (table(THERE), "strong", (HERE, THERE), "eventually consistent over its regions, and mode = 'strong' needs"),
        ({"GlobalTableVersion": "2017.11.29"}, "home", (HERE,), "update it to 2019.11.21"),
    ],
)
def test_what_is_wrong_with_replicas(
    found: dict[str, Any], mode: RegionsMode | None, regions: tuple[str, ...], problem: str | None
) -> None:
    said = replicas_problem(found, AMAZON, mode, regions)
    assert said is None if problem is None else problem in str(said)


def test_an_engine_that_tells_of_no_replicas_is_taken_to_have_them() -> None:
    assert replicas_problem({}, LOCAL, "home", (HERE, THERE)) is None


def test_a_replica_that_goes_is_none() -> None:
    gone = {"Replicas": [{"RegionName": THERE, "ReplicaStatus": "DELETING"}]}
    assert replicas_of(gone, HERE) == ()
    assert replicas_of(table(THERE), HERE) == (HERE, THERE)


class Replicated(TinyTable):
    """A table as DynamoDB describes it, with a replica; it counts the questions."""

    asked = 0

    def answer(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = super().answer(operation, body)
        if operation == "DescribeTable":
            self.asked += 1
            answer["Table"] |= table(THERE)
        return answer


async def test_opening_asks_once_and_explains() -> None:
    async with FaultServer() as server:
        server.table = replicated = Replicated()
        settings = Settings(table="limits", endpoint=server.endpoint, region=HERE)
        store = DynamoDBStore(settings)
        with pytest.raises(
            ReplicaMismatch, match=r"table 'limits' in eu-west-1 at .* has replicas in eu-west-1, us-ea"
        ):
            await store.open()
        assert replicated.asked == 1
        async with DynamoDBStore(replace(settings, regions=(HERE, THERE), mode="home")):
            assert replicated.asked == 2


def test_strongly_consistent_replicas_need_no_expiry() -> None:
    described = TinyTable().answer("DescribeTable", {"TableName": "limits"})["Table"] | table(THERE, **STRONG)
    snapshot = TableSnapshot(place=AMAZON, table=described, ttl=None, recovery=True, tags={})
    spec = TableSpec(regions=(HERE, THERE), mode="strong")
    lines = {line.name: line for line in compare(snapshot, spec)}
    assert lines["expiry"].verdict == "not asked for"
    assert "`ratelimit table sweep`" in lines["expiry"].found
    assert lines["replicas"].found.endswith(
        "strongly consistent; strong: exact: conditions hold in all regions at once"
    )
    assert "expiry (ttl)" not in to_status(described, snapshot, TableSpec()).missing


@pytest.fixture
async def settings(engine: Engine) -> AsyncIterator[Settings]:
    """A table with a replica, where the engine makes one."""
    if engine.name != "ministack":
        pytest.skip("this engine has no replicas")
    async with replicated(engine, HERE, THERE) as settings:
        yield replace(settings, regions=(), mode=None)


@pytest.mark.engine
async def test_a_real_engines_replicas_are_noticed(settings: Settings) -> None:
    with pytest.raises(ReplicaMismatch, match="where the last writer of an item wins"):
        await DynamoDBStore(settings).open()
    (line,) = [line for line in await verify_table(settings) if line.part == "replicas"]
    assert (line.verdict, line.wanted) == ("differs", "a mode to count in")
    assert line.remedy.startswith("has replicas in eu-west-1, us-east-1, where the last writer of an item wins")

    home = replace(settings, regions=(HERE, THERE), mode="home")
    async with DynamoDBStore(home):
        (line,) = [line for line in await verify_table(home) if line.part == "replicas"]
    assert line.verdict == "ok"
    assert line.found == (
        "eu-west-1, us-east-1; the last writer of an item wins; "
        "home: exact: a user is counted in one region, which the others ask"
    )


def over(settings: Settings, *regions: str, mode: RegionsMode = "home") -> Settings:
    return replace(settings, regions=regions, mode=mode)


@pytest.mark.engine
@pytest.mark.parametrize("change", [{"shares": (2, 1)}, {"mode": "sum"}, {"regions": (THERE, HERE)}])
async def test_shares_and_their_order_are_agreed_on_too(settings: Settings, change: dict[str, Any]) -> None:
    async with DynamoDBStore(over(settings, HERE, THERE, mode="split")):
        pass
    store = DynamoDBStore(replace(over(settings, HERE, THERE, mode="split"), **change))
    with pytest.raises(ReplicaMismatch, match=r"counted by mode = 'split' over eu-west-1,us-east-1, and this"):
        await store.open()
    await store.close()


@pytest.mark.engine
async def test_a_replica_that_is_removed_while_it_counts_is_told_apart_from_a_table_that_is_not_made(
    settings: Settings,
) -> None:
    home = over(settings, HERE, THERE)
    url = f"dynamodb://{home.table}?endpoint={home.endpoint}&region={HERE}&regions={HERE},{THERE}&mode=home"
    user = next(name for name in map("user-{}".format, range(99)) if home_of(name, home.regions) == THERE)
    policy = Policy("hint", "5/day", on_unavailable="deny")
    async with Limiter(store_from_url(url), [policy]) as limiter:
        assert (await limiter.check(user, "hint")).allowed
        async with await connect(settings) as client:
            for change in ("Delete", "Create"):
                updates = [{change: {"RegionName": THERE}}]
                await client.api.update_table(TableName=settings.table, ReplicaUpdates=updates)
                if change == "Delete":
                    assert (await limiter.check(user, "hint")).reason == "unavailable", "and not counted anywhere else"
                    with pytest.raises(TableNotFound, match=r"no replica of table .* in us-east-1.*take the region"):
                        await limiter.store.read(Key(user, "hint"))
                    with pytest.raises(TableNotFound, match="no replica of table"):
                        await open_store(url)


@pytest.mark.engine
async def test_processes_that_do_not_agree_do_not_start(settings: Settings) -> None:
    first = over(settings, HERE, THERE)
    for _ in range(2):
        async with DynamoDBStore(first):
            pass
    async with DynamoDBStore(replace(first, region=THERE)):
        pass
    for other in (over(settings, HERE), over(settings, THERE, HERE)):
        with pytest.raises(ReplicaMismatch, match=r"counted by mode = 'home' over eu-west-1,us-east-1, and this"):
            await DynamoDBStore(other).open()
    assert await regions_of_table(over(settings, HERE)) == (
        "mode = 'home' over eu-west-1,us-east-1",
        "mode = 'home' over eu-west-1",
    )
    await regions_of_table(over(settings, HERE), change=True)
    async with DynamoDBStore(over(settings, HERE)):
        pass
    with pytest.raises(ReplicaMismatch, match="over eu-west-1, and this process would by"):
        await DynamoDBStore(first).open()


async def test_who_may_only_read_opens_where_nothing_is_recorded() -> None:
    async with FaultServer() as server:
        server.then(ok(), error("AccessDeniedException", "not authorized to perform: dynamodb:PutItem"))
        async with DynamoDBStore(over(Settings(table="limits", endpoint=server.endpoint, region=HERE), HERE, THERE)):
            assert server.received == {"DescribeTable": 1, "GetItem": 2, "PutItem": 1}
