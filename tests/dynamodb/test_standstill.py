"""A process that stood still (blocking code, a frozen container, a suspended machine) counts on as if it had not."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from ratelimit import Limiter, Policy
from ratelimit.dynamodb import AnswerLost, DynamoDBStore
from ratelimit.names import Key
from ratelimit.store import Add, Write
from tests.faults import Behaviour, half, hang_up, ok, slow
from tests.faults.apart import Apart
from tests.faults.oddities import raw

pytestmark = pytest.mark.heavy

ALICE = Key.of("alice", "hint")
ADD = Write((Add("d1", 1),), 1_999_999_999)
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


fast_or_slow = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])


def new_store(apart: Apart, **options: Any) -> DynamoDBStore:
    return DynamoDBStore(table="limits", endpoint=apart.server.endpoint, **{"attempts": 1} | options)


def stand_still(seconds: float) -> None:
    """As code that blocks the loop does."""
    time.sleep(seconds)


@fast_or_slow
def test_connections_that_died_meanwhile_take_no_request(apart: Apart, run: Run, fast: bool) -> None:
    """Every request arrives, once: checks, reads and the log's batches."""

    async def play() -> None:
        async with new_store(apart, fast=fast) as store:
            for number in range(1, 6):
                assert (await store.apply(ALICE, ADD, now=0)).record == {"d1": number}
                stand_still(0.005)
                apart.drop_connections()
                if number % 2:
                    assert await store.read(ALICE) == {"d1": number}
                    stand_still(0.005)  # for longer than a connection is trusted unseen
                    apart.drop_connections()
            assert store.stats.retries == 0
        assert apart.server.received["UpdateItem"] == 5

    run(play())


@fast_or_slow
def test_after_pauses_the_quota_holds(apart: Apart, run: Run, fast: bool) -> None:
    async def play() -> None:
        store = new_store(apart, fast=fast)
        async with Limiter(store, [Policy("hint", "3/day", on_unavailable="deny")]) as limiter:
            for _ in range(3):
                decision = await limiter.check("alice", "hint")
                assert (decision.allowed, decision.reason) == (True, None)
                stand_still(0.005)
                apart.drop_connections()

    run(play())


@fast_or_slow
def test_a_connection_that_is_closed_as_the_request_comes(apart: Apart, run: Run, fast: bool) -> None:
    """The server's patience with an idle connection ends at that very moment: the request is sent once more."""

    async def play() -> None:
        async with new_store(apart, fast=fast) as store:
            assert (await store.apply(ALICE, ADD, now=0)).applied
            stand_still(1.1)
            apart.server.then(hang_up(executed=False))
            assert (await store.apply(ALICE, ADD, now=0)).record == {"d1": 2}
            stand_still(1.1)
            apart.server.then(hang_up(executed=False), hang_up(executed=False), ok())
            with pytest.raises(AnswerLost):  # a new one, which was not idle: nobody knows, and it is not sent again
                await store.apply(ALICE, ADD, now=0)
            assert apart.server.received["UpdateItem"] == 5

    run(play())


@fast_or_slow
@pytest.mark.parametrize("answer", [half(), raw(b"HTTP/1.1 200 OK\r\nContent-Le", close=True)])
def test_a_request_whose_answer_has_begun_is_not_sent_again(
    apart: Apart, run: Run, fast: bool, answer: Behaviour
) -> None:
    """However long the connection was idle: the server had it."""

    async def play() -> None:
        async with new_store(apart, fast=fast) as store:
            assert (await store.apply(ALICE, ADD, now=0)).applied
            stand_still(1.1)
            apart.server.then(answer)
            with pytest.raises(AnswerLost):
                await store.apply(ALICE, ADD, now=0)
            assert apart.server.received["UpdateItem"] == 2

    run(play())


@fast_or_slow
def test_an_answer_that_came_meanwhile_is_in_time(apart: Apart, run: Run, fast: bool) -> None:
    async def play() -> None:
        store = new_store(apart, fast=fast)
        async with Limiter(store, [Policy("hint", "3/day", on_unavailable="deny")], deadline=1) as limiter:
            await limiter.check("bob", "hint")
            before = apart.server.received["UpdateItem"]
            apart.server.then(slow(0.1))
            check = asyncio.create_task(limiter.check("alice", "hint"))
            while apart.server.received["UpdateItem"] == before and not check.done():
                await asyncio.sleep(0.001)
            stand_still(1.3)
            decision = await check
            assert (decision.allowed, decision.reason) == (True, None)

    run(play())


def test_an_answer_that_does_not_come_is_still_given_up(apart: Apart, run: Run) -> None:
    async def play() -> None:
        store = new_store(apart)
        async with Limiter(store, [Policy("hint", "3/day", on_unavailable="deny")], deadline=0.25) as limiter:
            apart.server.then(slow(5))
            check = asyncio.create_task(limiter.check("alice", "hint"))
            await asyncio.sleep(0.05)
            stand_still(0.6)
            assert (await check).reason == "unavailable"

    run(play())


FROZEN = """
import asyncio, sys
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy

async def main(endpoint, fast):
    store = DynamoDBStore(table="limits", region="eu-west-1", endpoint=endpoint, fast=fast == "fast", attempts=1)
    async with Limiter(store, [Policy("hint", "9/day")], deadline=10) as limiter:
        for _ in range(3):
            print((await limiter.check("alice", "hint")).reason, flush=True)
            sys.stdin.readline()  # stands still, and hears of nothing

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows stops no process")
@pytest.mark.parametrize("transport", ["fast", "slow"])
def test_a_process_that_was_stopped(apart: Apart, transport: str) -> None:
    command = [sys.executable, "-c", FROZEN, apart.server.endpoint, transport]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for _ in range(3):
                assert process.stdout.readline().strip() == "None"
                process.send_signal(signal.SIGSTOP)
                apart.drop_connections()
                time.sleep(0.05)  # it stands still for longer than a connection is trusted unseen
                process.stdin.write("\n")
                process.stdin.flush()
                process.send_signal(signal.SIGCONT)
        finally:
            process.kill()
