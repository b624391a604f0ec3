"""Whoever waits is let go in time, and not before; and who is cancelled stays cancelled."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.limiter.deadline import Deadline, SharedTimer
from ratelimit.testing import virtual_time

LONG = 60.0


def limit(timer: SharedTimer[Deadline]) -> Deadline:
    loop = asyncio.get_running_loop()
    limited = Deadline(loop)
    timer.watch(limited, loop)
    return limited


async def hang(timer: SharedTimer[Deadline]) -> str:
    try:
        with limit(timer):
            await asyncio.sleep(LONG)
    except TimeoutError:
        return "late"
    return "in time"


def test_each_waits_as_long_as_it_may_and_no_longer() -> None:
    async def run() -> None:
        timer = SharedTimer(20, Deadline.expire)
        for ends in (20, 40):  # the timer ends with the last of them, and starts again
            assert await asyncio.gather(hang(timer), hang(timer)) == ["late", "late"]
            assert asyncio.get_running_loop().time() == ends

    virtual_time.run(run())


async def test_who_is_done_is_left_alone() -> None:
    timer = SharedTimer(0.01, Deadline.expire)
    with limit(timer):
        await asyncio.sleep(0)
    assert await hang(timer) == "late"
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


def test_a_later_one_is_due_later() -> None:
    async def run() -> None:
        timer = SharedTimer(20, Deadline.expire)
        first = asyncio.create_task(hang(timer))
        await asyncio.sleep(15)
        second = asyncio.create_task(hang(timer))
        assert await first == "late"
        assert not second.done()
        assert await second == "late"
        assert asyncio.get_running_loop().time() == 35

    virtual_time.run(run())


async def test_a_cancellation_from_outside_is_no_timeout() -> None:
    task = asyncio.create_task(hang(SharedTimer(LONG, Deadline.expire)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_that_comes_with_the_timeout_wins() -> None:
    timer = SharedTimer(LONG, Deadline.expire)
    limits: list[Deadline] = []

    async def wait() -> None:
        with limit(timer) as limited:
            limits.append(limited)
            await asyncio.sleep(LONG)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    limits[0].expire()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_passes() -> None:
    with pytest.raises(ValueError, match="mine"), limit(SharedTimer(LONG, Deadline.expire)):
        raise ValueError("mine")


def test_another_loop_has_another_timer() -> None:
    """As in a program that calls `asyncio.run` more than once."""
    timer = SharedTimer(0.01, Deadline.expire)

    async def leave() -> None:
        with limit(timer):
            await asyncio.sleep(0)

    asyncio.run(leave())
    assert asyncio.run(hang(timer)) == "late"


async def test_keeps_no_more_than_those_who_wait() -> None:
    timer = SharedTimer(LONG, Deadline.expire)
    for _ in range(100):
        with limit(timer):
            pass
    assert len(timer._watched) == 1
