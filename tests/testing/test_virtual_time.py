"""Virtual time: nothing waits, everything happens in order, and a deadlock is an error rather than a hang."""

from __future__ import annotations

import asyncio
from time import perf_counter

import pytest

from ratelimit.testing.virtual_time import START, VirtualClock, run


def test_a_day_passes_at_once() -> None:
    async def main() -> tuple[float, int]:
        await asyncio.sleep(86_400)
        loop = asyncio.get_running_loop()
        return loop.time(), VirtualClock(loop).now() - START

    began = perf_counter()
    assert run(main()) == pytest.approx((86_400, 86_400_000_000))
    assert perf_counter() - began < 5


def test_timers_run_in_order_and_at_their_time() -> None:
    seen: list[tuple[str, float]] = []

    async def one(name: str, delay: float) -> None:
        await asyncio.sleep(delay)
        seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> None:
        await asyncio.gather(one("late", 0.3), one("early", 0.1), one("middle", 0.2))

    run(main())
    assert seen == [("early", pytest.approx(0.1)), ("middle", pytest.approx(0.2)), ("late", pytest.approx(0.3))]


def test_a_deadline_is_virtual_too() -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await asyncio.sleep(20)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(10)


def test_waiting_for_what_nobody_will_do_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="nothing is left that could ever happen"):
        run(main())
