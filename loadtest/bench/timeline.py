"""What a page of an action's timeline takes: so many events of 200 users in one day on a real engine, in milliseconds,
queries and read units; and what each event has cost to write."""

from __future__ import annotations

import asyncio
import statistics
import time
from random import Random
from typing import Annotated, Final

import typer

from loadtest.bench.report import Figure, Findings, Row
from loadtest.bench.servers import Absent, engine
from ratelimit.clock import DAY
from ratelimit.dynamodb import DynamoDBStore, Settings, TableSpec, create_table
from ratelimit.event import UsageEvent
from ratelimit.store.base import MAX_EVENTS_PER_PUT, EventFilter, TimelinePlace

_SIDE_BY_SIDE: Final = 4
_USERS: Final = 200
_DENIED: Final = 0.02
_QUERIES: Final = {
    "everything": EventFilter(),
    "denied, one in 50: by key": EventFilter(allowed=False),
    "status 429, one in 50: by filter": EventFilter(status=429),
    "a resource, one in 100": EventFilter(resource="/hints/7"),
    "denied of a resource, one in 5,000": EventFilter(allowed=False, resource="/hints/7"),
}


def run(
    events: Annotated[int, typer.Option(help="How many.")] = 50_000,
    page: Annotated[int, typer.Option(help="Events of a page.")] = 50,
    pages: Annotated[int, typer.Option(help="Pages of each query, at most.")] = 40,
    on: Annotated[str, typer.Option(help="ministack or dynamodb-local.")] = "ministack",
) -> Findings:
    """Pages of an action's timeline: time, queries and read units."""
    try:
        with engine(on) as endpoint:
            settings = Settings(table="bench", region="eu-west-1", endpoint=endpoint, consumed=True)
            return asyncio.run(_run(settings, events, page, pages))
    except Absent as reason:
        return Findings([], notes=[f"not measured: {reason}"])


async def _run(settings: Settings, count: int, limit: int, pages: int) -> Findings:
    now = time.time_ns() // 1000 // DAY * DAY - 1
    await create_table(settings, TableSpec(gsi2=True))
    notes = []
    async with DynamoDBStore(settings) as store:
        for timelines in ((), ("hint",)):
            made = _events(now, count if timelines else 1000)
            began, units = time.monotonic(), store.stats.write_units
            await _write(store, made, timelines)
            took, units = time.monotonic() - began, store.stats.write_units - units
            said = "with a timeline" if timelines else "without"
            notes.append(f"{said}: {units / len(made):.2f} write units an event, {len(made) / took:,.0f} events/s")
        rows = [
            Row(name, await _read(store, wanted, now // 1000 + 1, limit, pages)) for name, wanted in _QUERIES.items()
        ]
    return Findings(rows, notes=notes)


def _events(now: int, count: int) -> list[UsageEvent]:
    random = Random(7)
    return [
        UsageEvent.of(
            f"user-{random.randrange(_USERS)}", "hint", now=now, at_ms=(now - random.randrange(DAY)) // 1000,
            allowed=(ok := random.random() >= _DENIED), status=200 if ok else 429, duration=1.5,
            resource=f"/hints/{random.randrange(100)}", request_id=random.randbytes(8).hex(),
        )
        for _ in range(count)
    ]  # fmt: skip


async def _write(store: DynamoDBStore, made: list[UsageEvent], timelines: tuple[str, ...]) -> None:
    batches = [made[start : start + MAX_EVENTS_PER_PUT] for start in range(0, len(made), MAX_EVENTS_PER_PUT)]
    for start in range(0, len(batches), _SIDE_BY_SIDE):
        puts = (store.events.put(batch, timelines=timelines) for batch in batches[start : start + _SIDE_BY_SIDE])
        assert not any(await asyncio.gather(*puts))


async def _read(store: DynamoDBStore, wanted: EventFilter, until: int, limit: int, most: int) -> dict[str, Figure]:
    """Read page after page, and return the figures of each."""
    queries, units = store.stats.calls["Query"], store.stats.read_units
    took: list[float] = []
    cpu = time.process_time()
    found = 0
    below = TimelinePlace(until, 0)
    while len(took) < most:
        began = time.perf_counter()
        page = await store.events.timeline("hint", since=until - DAY // 1000, below=below, limit=limit, wanted=wanted)
        took.append((time.perf_counter() - began) * 1000)
        found += len(page.events)
        if page.rest is None:
            break
        below = page.rest
    cpu = time.process_time() - cpu
    took.sort()
    asked, read = store.stats.calls["Query"] - queries, store.stats.read_units - units
    each = len(took)
    return {
        "pages": each, "p50 ms": statistics.median(took), "p99 ms": took[int(0.99 * (each - 1))],
        "CPU ms": cpu * 1000 / each, "events": found / each, "queries": asked / each, "read units": read / each,
    }  # fmt: skip
