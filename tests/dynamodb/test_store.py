"""`DynamoDBStore` beyond the suite of all stores: what it costs, how it opens, what it leaves in the table."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

import httpx
import pytest
import uvloop
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import ConfigError, Limiter, Policy, RateLimitMiddleware, StoreUnavailable
from ratelimit.clock import DAY, SystemClock
from ratelimit.dynamodb import DynamoDBStore, Settings
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.transport import connection
from ratelimit.names import Key
from ratelimit.store import Add, Outcome, Write
from tests.engines import Engine
from tests.faults import FaultServer
from tests.faults.apart import Apart

TABLE = "state-store"
LATER = 1_999_999_999


def new_store(engine: Engine, **options: Any) -> DynamoDBStore:
    return DynamoDBStore(table=TABLE, endpoint=engine.endpoint, create=True, **options)


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


# One store in several event loops, one after the other or side by side, and in a forked process.


ALICE = Key.of("alice", "hint")
ADD = Write((Add("d1", 1),), 1_999_999_999)
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]

fast_or_slow = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])


def unopened_store(apart: Apart, *, fast: bool = True) -> DynamoDBStore:
    return DynamoDBStore(table="limits", region="eu-west-1", endpoint=apart.server.endpoint, fast=fast, attempts=1)


async def count(store: DynamoDBStore) -> int:
    """One more; reads it back the other way."""
    written = (await store.apply(ALICE, ADD, now=0)).record["d1"]
    assert (await store.read(ALICE))["d1"] == written
    return written


def gone(apart: Apart) -> bool:
    """Whether the server has no connection left, after a moment."""

    async def wait() -> None:
        async with asyncio.timeout(30):
            while apart.server.connections:
                await asyncio.sleep(0.005)

    apart.do(wait())
    return True


@pytest.mark.heavy
@fast_or_slow
@pytest.mark.parametrize("new_loop", LOOPS)
def test_one_loop_after_the_other(apart: Apart, new_loop: Callable[[], asyncio.AbstractEventLoop], fast: bool) -> None:
    """Nobody closes anything: the end of a loop lets go of what was bound to it, and nothing is left to be collected
    with a warning (which would be an error here)."""
    store = unopened_store(apart, fast=fast)
    for number in range(1, 4):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            assert runner.run(count(store)) == number
        assert gone(apart)
        gc.collect()


@pytest.mark.heavy
def test_a_coroutine_made_before_its_loop_runs(apart: Apart) -> None:
    store = unopened_store(apart)
    for number in (1, 2):
        assert asyncio.run(store.apply(ALICE, ADD, now=0)).record == {"d1": number}


@pytest.mark.heavy
@fast_or_slow
def test_loops_side_by_side(apart: Apart, fast: bool) -> None:
    """None takes what another's connections are at, and closing in one leaves the others alone."""
    store, counted, lock = unopened_store(apart, fast=fast), [], threading.Lock()
    barrier = threading.Barrier(4)

    async def several() -> None:
        await store.open()
        barrier.wait(60)
        for _ in range(10):
            written = (await store.apply(ALICE, ADD, now=0)).record["d1"]
            with lock:
                counted.append(written)
        await store.close()

    threads = [threading.Thread(target=lambda: asyncio.run(several())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(counted) == list(range(1, 41))
    assert gone(apart)


@pytest.mark.heavy
def test_a_loop_that_ends_while_the_store_opens(apart: Apart) -> None:
    store = unopened_store(apart)

    async def leave() -> None:
        opening = asyncio.create_task(store.open())
        await asyncio.sleep(0)
        del opening

    for _ in range(3):
        asyncio.run(leave())
    assert asyncio.run(count(store)) == 1


@pytest.mark.heavy
def test_an_app_whose_every_request_has_a_loop_of_its_own(apart: Apart) -> None:
    """As Starlette's test client does it where nobody enters it."""

    async def hints(request: Request) -> PlainTextResponse:
        return PlainTextResponse("a hint")

    limiter = Limiter(unopened_store(apart), [Policy("hint", "9/day", match="POST /hints")])
    middleware = [Middleware(RateLimitMiddleware, limiter=limiter)]
    app = Starlette(routes=[Route("/hints", hints, methods=["POST"])], middleware=middleware)

    async def post() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.post("/hints")).headers["RateLimit"]

    assert [asyncio.run(post()).split(";")[1] for _ in range(3)] == ["r=8", "r=7", "r=6"]


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@fast_or_slow
def test_a_forked_process_has_connections_of_its_own(apart: Apart, fast: bool) -> None:
    """Whatever it does, the parent goes on with the connections it had."""
    store, loop = unopened_store(apart, fast=fast), asyncio.new_event_loop()
    try:
        assert loop.run_until_complete(count(store)) == 1
        before = store.stats.connections
        child = os.fork()
        if child == 0:
            os._exit(0 if in_the_child(store) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert loop.run_until_complete(count(store)) == 4
        assert store.stats.connections == before
        loop.run_until_complete(store.close())
    finally:
        loop.close()


def in_the_child(store: DynamoDBStore) -> bool:
    try:
        for inherited in list(connection._sockets):  # as a TLS connection does that is collected: it says goodbye
            with suppress(OSError):
                inherited.shutdown(socket.SHUT_RDWR)
        return [asyncio.run(count(store)) for _ in range(2)] == [2, 3]
    except BaseException:  # noqa: BLE001 (the child must not go on with the tests)
        return False


FORKED = """
import asyncio, multiprocessing, sys
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy

def work(limiter):
    print("child", asyncio.run(limiter.check("alice", "hint")).reason, flush=True)

async def main():
    store = DynamoDBStore(table="limits", region="eu-west-1", endpoint=sys.argv[1], fast=sys.argv[2] == "fast")
    async with Limiter(store, [Policy("hint", "9/day")], deadline=10) as limiter:
        for _ in range(3):
            print("parent", (await limiter.check("alice", "hint")).reason, flush=True)
            process = multiprocessing.get_context("fork").Process(target=work, args=(limiter,))
            process.start()
            process.join()

asyncio.run(main())
"""


@pytest.mark.heavy
@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.parametrize("transport", ["fast", "slow"])
def test_processes_forked_from_a_running_loop(apart: Apart, transport: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, apart.server.endpoint, transport]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.stdout.splitlines() == ["parent None", "child None"] * 3
    assert [line for line in done.stderr.splitlines() if "was forked from one that uses this limiter" not in line] == []
    assert int(apart.server.table.items["USR#alice#LIM#hint", "STATE"][day_field()]["N"]) == 6


def day_field() -> str:
    return f"d{SystemClock().now() // DAY}"
