"""`DynamoDBStore` beyond the suite of all stores: what it costs, how it opens, what it leaves in the table."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from ratelimit.dynamodb import DynamoDBStore, Settings
from ratelimit.dynamodb.client import connect
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.names import Key
from ratelimit.store import Add, Outcome, Write
from tests.engines import Engine
from tests.faults import FaultServer

TABLE = "state-store"
LATER = 1_999_999_999


def new_store(engine: Engine, **options: Any) -> DynamoDBStore:
    return DynamoDBStore(table=TABLE, endpoint=engine.endpoint, create=True, **options)


async def test_a_check_is_one_call_and_one_write_unit(engine: Engine) -> None:
    windows = [("s", 9), ("h", 99), ("d", 999)]
    async with new_store(engine, consumed=True) as store:
        for count in (1, 2, 3):
            key = Key.of(str(uuid4()), "hint")
            ops = [Add(f"{name}1", 1, limit) for name, limit in windows[:count]]
            write = Write((*ops, Add("u260101", 1), Add("u2601", 1)), LATER)
            await store.apply(key, write, now=0)
            calls, units = dict(store.stats.calls), store.stats.write_units
            assert (await store.apply(key, write, now=0)).applied
            assert store.stats.calls == calls | {"UpdateItem": calls["UpdateItem"] + 1}
            assert store.stats.write_units == units + 1.0
        await store.read(key)
        assert store.stats.read_units == 1.0
        assert (store.stats.retries, store.stats.throttles) == (0, 0)


async def test_capacity_is_only_asked_for_by_those_who_count(engine: Engine) -> None:
    async with new_store(engine) as store:
        await store.apply(Key.of("bob", "hint"), Write((Add("d1", 1),), LATER), now=0)
        assert store.stats.write_units == 0.0


async def test_what_an_item_looks_like(engine: Engine) -> None:
    user = f"a#b{uuid4()}"
    async with new_store(engine) as store:
        await store.apply(Key.of(user, "hint"), Write((Add("d20758", 2, 5),), 1_795_000_000), now=0)
    async with await connect(Settings(table=TABLE, endpoint=engine.endpoint)) as connection:
        key = {"PK": {"S": f"USR#{user.replace('#', '%23')}#LIM#hint"}, "SK": {"S": "STATE"}}
        answer = await connection.api.get_item(TableName=TABLE, Key=key)
    assert answer["Item"] == {**key, "tp": {"S": "lim"}, "ttl": {"N": "1795000000"}, "d20758": {"N": "2"}}


async def test_opening_at_once_is_opening_once() -> None:
    async with FaultServer() as server:
        store = DynamoDBStore(table="limits", endpoint=server.endpoint)
        write = Write((Add("d1", 1),), LATER)
        await asyncio.gather(store.open(), store.open(), *(store.apply(Key("a", "b"), write, now=0) for _ in range(20)))
        await store.open()
        assert server.received == {"DescribeTable": 1, "UpdateItem": 20}
        await store.close()


async def test_opening_outlives_the_impatient() -> None:
    """A check gives up at its deadline; the store it wanted is open for the next one."""
    async with FaultServer() as server:
        store = DynamoDBStore(table="limits", endpoint=server.endpoint)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await store.read(Key("a", "b"))
        await store.open()
        assert server.received["DescribeTable"] == 1
        await store.close()


async def test_closing_while_it_opens() -> None:
    async with FaultServer() as server:
        store = DynamoDBStore(table="limits", endpoint=server.endpoint)
        opening = asyncio.create_task(store.open())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreUnavailable, match="was closed while it opened"):
            await opening
        await store.open()
        await store.close()


async def test_settings_and_options_may_be_mixed() -> None:
    settings = Settings(table="limits", region="eu-west-1")
    assert DynamoDBStore(settings, pool=3).settings == Settings(table="limits", region="eu-west-1", pool=3)
    with pytest.raises(ConfigError, match="pool"):
        DynamoDBStore(settings, pool=0)


def test_on_uvloop(engine: Engine) -> None:
    import uvloop

    async def use() -> Outcome:
        async with new_store(engine) as store:
            return await store.apply(Key.of(str(uuid4()), "hint"), Write((Add("d1", 1, 1),), LATER), now=0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(use()) == Outcome(True, {"d1": 1})
