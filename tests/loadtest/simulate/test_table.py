"""The simulated table: as slow, and as much at once, as it says."""

from __future__ import annotations

import asyncio
from random import Random
from statistics import quantiles

import pytest

from loadtest.simulate.table import SimulatedStore, Table
from ratelimit.errors import StoreThrottled
from ratelimit.names import Key
from ratelimit.store import Add, MemoryStore, Store, Write
from ratelimit.testing.virtual_time import run

KEY = Key("alice", "load")
ONE = Write((Add("n", 1),), expires_at=2**31)


def test_an_item_takes_its_capacity_and_throttles_the_rest() -> None:
    async def main() -> tuple[int, int, int]:
        table = Table(asyncio.get_running_loop(), Random(1))
        calls = [asyncio.create_task(table.update(KEY, ONE, 0)) for _ in range(1000)]
        done = await asyncio.gather(*calls, return_exceptions=True)
        refused = sum(isinstance(outcome, StoreThrottled) for outcome in done)
        assert (await table.memory.read(KEY))["n"] == 1000 - refused
        return refused, table.throttles, table.write_units

    refused, throttles, units = run(main())
    assert refused == throttles == 1000 - units
    # The burst of 100, and what flowed in while the last of the 1,000 were on their way.
    assert 100 <= units <= 150


def test_latency_has_the_median_it_says_and_a_long_tail() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        table = Table(loop, Random(1))

        async def one(number: int) -> float:
            began = loop.time()
            await table.get(Key(f"user{number}", "load"))
            return loop.time() - began

        return await asyncio.gather(*(one(number) for number in range(2000)))

    cuts = quantiles(run(main()), n=100)
    assert cuts[49] == pytest.approx(0.0035, rel=0.05)
    assert cuts[98] == pytest.approx(0.0141, rel=0.15)


def test_what_was_sent_arrives_though_the_sender_gave_up() -> None:
    async def main() -> int:
        table = Table(asyncio.get_running_loop(), Random(1))
        call = asyncio.create_task(table.update(KEY, ONE, 0))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.sleep(1)
        return (await table.memory.read(KEY))["n"]

    assert run(main()) == 1


def test_the_limiter_takes_it_for_a_remote_store() -> None:
    async def main() -> SimulatedStore:
        return SimulatedStore(Table(asyncio.get_running_loop(), Random(1)), Random(2))

    store = run(main())
    assert isinstance(store, Store)
    assert not isinstance(store, MemoryStore)
