"""One store in several event loops, one after the other or side by side, and in a forked process."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import httpx
import pytest
import uvloop
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import RateLimitMiddleware
from ratelimit.clock import DAY, SystemClock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.transport import connection
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import Policy
from ratelimit.store import Add, Write
from tests.faults.apart import Apart

pytestmark = pytest.mark.heavy

ALICE = Key.of("alice", "hint")
ADD = Write((Add("d1", 1),), 1_999_999_999)
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]

fast_or_slow = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])


@pytest.fixture
def apart() -> Iterator[Apart]:
    with Apart() as apart:
        yield apart


def new_store(apart: Apart, *, fast: bool = True) -> DynamoDBStore:
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


@fast_or_slow
@pytest.mark.parametrize("new_loop", LOOPS)
def test_one_loop_after_the_other(apart: Apart, new_loop: Callable[[], asyncio.AbstractEventLoop], fast: bool) -> None:
    """Nobody closes anything: the end of a loop lets go of what was bound to it, and nothing is left to be collected
    with a warning (which would be an error here)."""
    store = new_store(apart, fast=fast)
    for number in range(1, 4):
        with asyncio.Runner(loop_factory=new_loop) as runner:
            assert runner.run(count(store)) == number
        assert gone(apart)
        gc.collect()


def test_a_coroutine_made_before_its_loop_runs(apart: Apart) -> None:
    store = new_store(apart)
    for number in (1, 2):
        assert asyncio.run(store.apply(ALICE, ADD, now=0)).record == {"d1": number}


@fast_or_slow
def test_loops_side_by_side(apart: Apart, fast: bool) -> None:
    """None takes what another's connections are at, and closing in one leaves the others alone."""
    store, counted, lock = new_store(apart, fast=fast), [], threading.Lock()
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


def test_a_loop_that_ends_while_the_store_opens(apart: Apart) -> None:
    store = new_store(apart)

    async def leave() -> None:
        opening = asyncio.create_task(store.open())
        await asyncio.sleep(0)
        del opening

    for _ in range(3):
        asyncio.run(leave())
    assert asyncio.run(count(store)) == 1


def test_an_app_whose_every_request_has_a_loop_of_its_own(apart: Apart) -> None:
    """As Starlette's test client does it where nobody enters it."""

    async def hints(request: Request) -> PlainTextResponse:
        return PlainTextResponse("a hint")

    limiter = Limiter(new_store(apart), [Policy("hint", "9/day", match="POST /hints")], deadline=10)
    middleware = [Middleware(RateLimitMiddleware, limiter=limiter)]
    app = Starlette(routes=[Route("/hints", hints, methods=["POST"])], middleware=middleware)

    async def post() -> str:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return (await client.post("/hints")).headers["RateLimit"]

    assert [asyncio.run(post()).split(";")[1] for _ in range(3)] == ["r=8", "r=7", "r=6"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@fast_or_slow
def test_a_forked_process_has_connections_of_its_own(apart: Apart, fast: bool) -> None:
    """Whatever it does, the parent goes on with the connections it had."""
    store, loop = new_store(apart, fast=fast), asyncio.new_event_loop()
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
