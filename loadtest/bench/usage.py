"""`python -m loadtest.bench.usage`: what the usage log costs a request, and what its writing costs the others.

Requests are checks against a stub that answers after 4 ms, as DynamoDB does; they come at a steady rate, and each is
timed from the moment it was due. Turns with and without a log alternate within one run.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Annotated, Final

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from loadtest.bench.stub import stub_server
from ratelimit import Limiter, Policy
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.event import UsageEvent
from ratelimit.store.base import MAX_EVENTS_PER_PUT
from ratelimit.usage import UsageLog

_USERS: Final = 200
_DELAY: Final = 0.004


def main(
    rounds: Annotated[int, typer.Option(help="Turns with, and turns without the log.")] = 7,
    seconds: Annotated[float, typer.Option(help="Length of one turn.")] = 2.0,
    rate: Annotated[int, typer.Option(help="Requests a second.")] = 500,
) -> None:
    """Measure, and print the table."""
    with stub_server(delay=_DELAY) as endpoint:
        rows = uvloop.run(_measure(endpoint, rounds, seconds, rate))
    command = " ".join(("python -m loadtest.bench.usage", *sys.argv[1:]))
    title = f"{command}\n{datetime.now(UTC).isoformat(timespec='seconds')}, {os.cpu_count()} cores"
    table = Table("what", "median of the rounds", title=title)
    for what, figure in rows:
        table.add_row(what, figure)
    Console().print(table)


async def _measure(endpoint: str, rounds: int, seconds: float, rate: int) -> list[tuple[str, str]]:
    store = DynamoDBStore(table="bench", region="eu-west-1", endpoint=endpoint)
    limiter = Limiter(store, [Policy("hint", "1000000/day")], deadline=5.0)
    without: list[list[float]] = []
    logged: list[list[float]] = []
    async with store, UsageLog(store, max_queue=100_000) as usage:
        accept = await _accept_us(usage, 2000)
        put = await _put_us(store, 40)
        for turn in (None, usage) * (rounds + 1):
            latencies = await _turn(limiter, turn, seconds, rate)
            (without if turn is None else logged).append(latencies)
        await usage.flush()
        assert usage.stats.dropped == 0
    pairs = list(zip(without[1:], logged[1:], strict=True))  # the first turns warmed up
    p99s = [(_p99(plain), _p99(log)) for plain, log in pairs]
    return [
        ("CPU of accepting an event (µs, median)", f"{accept:.1f}"),
        (f"CPU of writing, per event of a batch of {MAX_EVENTS_PER_PUT} (µs)", f"{put:.1f}"),
        ("p99 of a request without a log (ms)", f"{statistics.median(plain for plain, _ in p99s):.2f}"),
        ("p99 of a request, each logged (ms)", f"{statistics.median(log for _, log in p99s):.2f}"),
        ("p99 with the log against that without", f"{statistics.median(log / plain for plain, log in p99s):.3f}"),
    ]


async def _accept_us(usage: UsageLog, count: int) -> float:
    costs = []
    for number in range(count):
        start = time.thread_time_ns()
        usage._accept("alice", "hint", status=200, duration=1.5, resource="/hints", request_id="r-1")
        costs.append(time.thread_time_ns() - start)
        if number % 20 == 0:
            await asyncio.sleep(0)
    await usage.flush()
    return statistics.median(costs) / 1000


async def _put_us(store: DynamoDBStore, count: int) -> float:
    now = time.time_ns() // 1000
    events = [
        UsageEvent.of("alice", "hint", now=now, status=200, duration=1.5, resource="/hints", request_id="r-1")
        for _ in range(MAX_EVENTS_PER_PUT)
    ]
    costs = []
    for _ in range(count):
        start = time.thread_time()
        await store.events.put(events)
        costs.append(time.thread_time() - start)
    return statistics.median(costs) / MAX_EVENTS_PER_PUT * 1e6


async def _turn(limiter: Limiter, usage: UsageLog | None, seconds: float, rate: int) -> list[float]:
    """Latencies in milliseconds, from the moment that each request was due."""
    latencies: list[float] = []

    async def request(number: int, due: float) -> None:
        user = f"user-{number % _USERS}"
        decision = await limiter.check(user, "hint")
        if usage is not None:
            usage._accept(user, "hint", allowed=decision.allowed, at_us=decision.at_us, status=200, resource="/hints")
        latencies.append((time.perf_counter() - due) * 1000)

    start = time.perf_counter() + 0.05
    tasks = []
    for number in range(int(seconds * rate)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(request(number, due)))
    await asyncio.gather(*tasks)
    return latencies


def _p99(latencies: list[float]) -> float:
    return sorted(latencies)[int(len(latencies) * 0.99)]


if __name__ == "__main__":
    typer.run(main)
