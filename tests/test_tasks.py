from __future__ import annotations

import asyncio
import logging

import pytest

from ratelimit.tasks import Tasks


async def test_work_is_kept_hold_of_until_it_is_done():
    tasks, done = Tasks("a test"), asyncio.Event()
    task = tasks.start(done.wait())
    assert len(tasks) == 1
    done.set()
    assert await task
    await asyncio.sleep(0)
    assert len(tasks) == 0


async def test_a_set_with_a_limit_says_when_it_is_full():
    tasks = Tasks("a test", limit=2)
    for is_full in (False, False, True):
        assert tasks.is_full is is_full
        tasks.start(asyncio.Event().wait())
    await tasks.cancel()
    assert not tasks.is_full


async def test_without_a_limit_it_is_never_full():
    tasks = Tasks("a test")
    for _ in range(100):
        tasks.start(asyncio.sleep(0))
    assert not tasks.is_full
    await tasks.drain()


async def test_a_drain_waits_for_what_runs_and_not_for_what_comes_meanwhile():
    tasks, first = Tasks("a test"), asyncio.Event()
    tasks.start(first.wait())
    drain = asyncio.create_task(tasks.drain())
    await asyncio.sleep(0)
    tasks.start(asyncio.Event().wait())
    first.set()
    async with asyncio.timeout(30):
        assert await drain == 0
    assert len(tasks) == 1
    await tasks.cancel()


async def test_a_drain_that_times_out_says_how_many_are_late_and_leaves_them_running():
    tasks = Tasks("a test")
    late = [tasks.start(asyncio.Event().wait()) for _ in range(2)]
    assert await tasks.drain(0.001) == 2
    assert not any(task.done() for task in late)
    await tasks.cancel()


async def test_a_drain_that_cancels_returns_when_those_that_were_late_have_ended():
    tasks, ended = Tasks("a test"), []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    tasks.start(hang())
    assert await tasks.drain(0.001, cancel=True) == 1
    assert ended == [True]
    assert await tasks.drain() == 0


async def test_what_is_raised_is_logged_once(caplog: pytest.LogCaptureFixture):
    async def fail() -> None:
        raise RuntimeError("a bug")

    tasks = Tasks("a refund")
    tasks.start(fail())
    await tasks.drain()
    await asyncio.sleep(0)
    (record,) = caplog.records
    assert (record.name, record.levelno, record.getMessage()) == ("ratelimit", logging.ERROR, "a refund failed")
    assert record.exc_info
    assert str(record.exc_info[1]) == "a bug"


async def test_a_cancelled_task_is_no_failure(caplog: pytest.LogCaptureFixture):
    tasks = Tasks("a refund")
    tasks.start(asyncio.Event().wait())
    await tasks.cancel()
    await asyncio.sleep(0)
    assert not caplog.records


async def test_a_task_made_elsewhere_is_waited_for_too():
    tasks = Tasks("a test")
    tasks.add(asyncio.create_task(asyncio.sleep(0)))
    assert len(tasks) == 1
    assert await tasks.drain() == 0


def test_tasks_of_a_loop_that_is_gone_are_not_waited_for():
    tasks = Tasks("a test")
    gone = asyncio.new_event_loop()
    task = gone.create_task(asyncio.Event().wait())
    tasks.add(task)
    assert asyncio.run(tasks.drain()) == 0
    assert len(tasks) == 0
    task.cancel()
    gone.run_until_complete(asyncio.gather(task, return_exceptions=True))
    gone.close()
