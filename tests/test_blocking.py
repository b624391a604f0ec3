"""Coroutines without an event loop: one at a time between two waits, all at once while they wait, and in time."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from ratelimit.blocking import Deferred, InsideEventLoop, Runner, sleep, timeout
from ratelimit.blocking_wait import BlockingDeadline, wait_for


def test_between_two_waits_nobody_else_runs() -> None:
    runner, inside = Runner(), 0

    async def work() -> None:
        nonlocal inside
        for _ in range(3):
            inside += 1
            time.sleep(0.002)  # noqa: ASYNC251 (the thread stands still, and the others may go on)
            assert inside == 1
            inside -= 1
            wait_for(lambda left: None)

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(runner.run, work(), "it") for _ in range(6)]:
            done.result()


def test_all_may_wait_at_once() -> None:
    runner, together = Runner(), threading.Barrier(5)

    async def work() -> int:
        return wait_for(lambda left: together.wait(60))

    with ThreadPoolExecutor(5) as pool:
        waits = [pool.submit(runner.run, work(), "it") for _ in range(5)]
        assert sorted(one.result() for one in waits) == [0, 1, 2, 3, 4]


def test_what_a_wait_raises_is_raised_there() -> None:
    async def work() -> str:
        try:
            wait_for(lambda left: 1 / 0)
        except ZeroDivisionError:
            return "caught"
        return "missed"

    assert Runner().run(work(), "it") == "caught"


def test_a_deadline_ends_the_wait_as_a_loop_would() -> None:
    ended: list[type[BaseException]] = []

    async def work() -> None:
        try:
            async with timeout(0.05):
                await sleep(30)
        except BaseException as error:
            ended.append(type(error))
            raise

    began = time.monotonic()
    with pytest.raises(TimeoutError):
        Runner().run(work(), "it")
    assert time.monotonic() - began < 5
    assert ended == [TimeoutError]


def test_an_inner_deadline_does_not_outlast_the_outer_one() -> None:
    async def work() -> str:
        try:
            with BlockingDeadline(0.05):
                try:
                    with BlockingDeadline(30):
                        await sleep(60)
                except TimeoutError:
                    return "inner"
        except TimeoutError:
            return "outer"
        return "none"

    assert Runner().run(work(), "it") == "outer"
    with BlockingDeadline(0.05), pytest.raises(asyncio.CancelledError):
        Runner().run(sleep(30), "it")


def test_work_for_later_is_done_when_this_returns_and_its_failure_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    runner, done = Runner(), []
    deferred = Deferred(runner)

    async def later(name: str) -> None:
        done.append(name)
        if name == "second":
            raise ValueError("as it happens")
        if name == "first":
            deferred.start(later("third"))

    async def work() -> str:
        deferred.start(later("first"))
        deferred.start(later("second"))
        assert not done
        return "answer"

    assert runner.run(work(), "it") == "answer"
    assert done == ["first", "second", "third"]
    assert "as it happens" in caplog.text


async def test_in_an_event_loop_nothing_is_run() -> None:
    async def work() -> None:
        pytest.fail("it ran")

    with pytest.raises(InsideEventLoop, match="from ratelimit import it"):
        Runner().run(work(), "it")
