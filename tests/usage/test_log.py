"""The log keeps what it accepted: in batches, whatever the store answers, and within its bounds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from ratelimit import Limiter, Policy
from ratelimit.errors import ConfigError, InvalidEvent, InvalidInput, StoreUnavailable
from ratelimit.store import MemoryStore, TableStore
from ratelimit.testing import FakeClock
from ratelimit.usage import UsageLog
from tests.usage.stores import ScriptedEvents, answer_lost, down, half, healthy, never, scripted


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[tuple[UsageLog, ScriptedEvents]]:
    store, events = scripted()
    options = {"flush_interval": 0.01, "grace": 0.0, **options}
    async with UsageLog(store, **options) as usage:
        yield usage, events


async def test_record_and_read_back(store: TableStore, user: str) -> None:
    async with UsageLog(store) as usage:
        event_id = await usage.record(user, "hint", resource="problem-100", metadata={"k": 1})
        await usage.flush()
        (event,) = (await usage.events(user)).events
    assert (event.id, event.user, event.action, event.cost, event.allowed) == (event_id, user, "hint", 1, True)
    assert (event.resource, event.metadata) == ("problem-100", {"k": 1})
    assert abs(event.at_ms - time.time() * 1000) < 60_000


async def test_the_same_id_twice_is_one_event(store: TableStore, user: str) -> None:
    async with UsageLog(store) as usage:
        for _ in range(2):
            assert await usage.record(user, "hint", id="order-17") == "order-17"
        own = await usage.record(user, "hint")
        await usage.record(user, "hint", id=own)
        await usage.flush()
        assert sorted(event.id for event in (await usage.events(user)).events) == sorted(["order-17", own])


async def test_batches_are_full_and_several_at_once() -> None:
    async with opened(in_flight=3) as (usage, events):
        for _ in range(110):
            await usage.record("alice", "hint")
        await usage.flush()
        assert events.batches == [25, 25, 25, 25, 10]
        assert events.most_at_once == 3
        assert len(events) == 110
        assert (usage.stats.accepted, usage.stats.written, usage.stats.depth) == (110, 110, 0)


async def test_few_events_go_out_after_the_flush_interval() -> None:
    async with opened() as (usage, events):
        for _ in range(3):
            await usage.record("alice", "hint")
        assert not events.batches
        async with asyncio.timeout(30):
            await events.hold(3)
        assert events.batches == [3]


async def test_flush_waits_for_what_came_before_and_not_for_what_came_after() -> None:
    async with opened(in_flight=3) as (usage, events):
        events.line.extend([healthy, healthy])
        events.always = never
        for _ in range(30):
            await usage.record("alice", "hint")
        flushing = asyncio.create_task(usage.flush())
        await asyncio.sleep(0)
        for _ in range(100):
            await usage.record("alice", "hint")
        async with asyncio.timeout(30):
            await flushing
        assert len(events) >= 30


async def test_flush_of_nothing_returns() -> None:
    async with opened() as (usage, _):
        await usage.flush()
    await usage.flush()


async def test_unprocessed_events_are_sent_again(pauses: list[float]) -> None:
    async with opened(in_flight=1) as (usage, events):
        events.line.extend([half, half, half])
        ids = {await usage.record("alice", "hint") for _ in range(25)}
        await usage.flush()
        assert events.batches == [25, 12, 6, 3]
        assert {event.id for event in (await usage.events("alice")).events} == ids
        assert (usage.stats.written, usage.stats.retried) == (25, 12 + 6 + 3)
        assert len(pauses) == 3


async def test_a_lost_answer_doubles_nothing(pauses: list[float]) -> None:
    async with opened() as (usage, events):
        events.line.extend([answer_lost, answer_lost])
        ids = {await usage.record("alice", "hint", id=f"order-{n}" if n % 2 else None) for n in range(20)}
        await usage.flush()
        assert sorted(event.id for event in (await usage.events("alice")).events) == sorted(ids)


async def test_a_store_that_is_down_is_waited_out(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="ratelimit"):
        async with opened(in_flight=1) as (usage, events):
            events.line.extend([down] * 20)
            await usage.record("alice", "hint")
            await usage.flush()
            assert len(events) == 1
    assert pauses[:8] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert max(pauses) == 5.0
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "usage events wait, the store does not take them",
        "the store takes usage events again",
    ]


async def test_when_full_it_drops_and_counts() -> None:
    async with opened(when_full="drop", max_queue=30, in_flight=1) as (usage, events):
        events.always = never
        for _ in range(100):
            await usage.record("alice", "hint")
        assert (usage.stats.accepted, usage.stats.dropped) == (55, 45)
        assert (usage.stats.depth, usage.stats.in_flight) == (30, 25)


async def test_when_full_it_waits_for_room() -> None:
    async with opened(when_full="wait", max_queue=30, in_flight=1, max_wait=30.0) as (usage, events):
        await asyncio.gather(*(usage.record("alice", "hint") for _ in range(500)))
        await usage.flush()
        assert len(events) == 500
        assert usage.stats.dropped == 0


async def test_it_does_not_wait_for_ever() -> None:
    async with opened(when_full="wait", max_queue=1, flush_interval=60, max_wait=0.02) as (usage, events):
        events.always = never
        await usage.record("alice", "hint")
        with pytest.raises(StoreUnavailable, match="full for too long"):
            await usage.record("alice", "hint")
        waiting = usage._accept("alice", "hint")
        assert waiting is not None
        assert not await waiting
        assert (usage.stats.accepted, usage.stats.dropped) == (1, 2)


async def test_a_clock_before_1970_costs_no_event() -> None:
    async with opened() as (usage, events):
        for metadata in (None, {"page": 1}):
            usage._accept("alice", "hint", metadata=metadata, at_us=-5_000_000)
            usage._accept("bob", "hint")
        await usage.flush()
        assert sorted(event.user for event in events) == ["alice", "alice", "bob", "bob"]
        assert usage.stats.dropped == 0


async def test_close_writes_what_waits() -> None:
    async with opened(flush_interval=60, grace=10) as (usage, events):
        for _ in range(60):
            usage._accept("alice", "hint")
    assert len(events) == 60
    assert usage.stats.written == 60


async def test_close_ends_within_its_grace_and_counts_what_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(grace=0.02) as (usage, events):
        events.always = never
        for _ in range(60):
            usage._accept("alice", "hint")
        flushing = asyncio.create_task(usage.flush())
        await asyncio.sleep(0)
    assert usage.stats.dropped == 60
    assert "60 usage events; the journal keeps 0" in caplog.text
    with pytest.raises(StoreUnavailable, match="closed"):
        await flushing


async def test_a_closed_log_keeps_nothing_and_says_so() -> None:
    async with opened() as (usage, _):
        pass
    with pytest.raises(StoreUnavailable, match="closed"):
        await usage.record("alice", "hint")
    assert usage.stats.dropped == 1
    async with usage:
        await usage.record("alice", "hint")


async def test_it_begins_with_the_first_event_where_nobody_opens_it() -> None:
    store, events = scripted()
    usage = UsageLog(store)
    assert usage._accept("alice", "hint") is None
    await usage.flush()
    assert len(events) == 1
    await usage.close()


async def test_bad_events_are_refused_and_lose_nothing() -> None:
    async with opened() as (usage, events):
        await usage.record("alice", "hint")
        for bad in ({"metadata": {"a": object()}}, {"at": 1767614400000}, {"cost": -1}):
            with pytest.raises(InvalidEvent):
                await usage.record("alice", "hint", **bad)
        await usage.flush()
        assert len(events) == 1


async def test_milliseconds_are_no_time_of_an_event() -> None:
    async with opened() as (usage, _):
        with pytest.raises(InvalidEvent, match="at must be an aware datetime, not 1767614400000; make one with"):
            await usage.record("alice", "hint", at=1767614400000)  # type: ignore[arg-type]


async def test_a_refund_goes_back_to_the_time_of_an_event() -> None:
    clock, store = FakeClock(), MemoryStore()
    limiter = Limiter(store, [Policy("hint", "5/day")], clock=clock)
    async with UsageLog(store, clock=clock) as usage:
        await limiter.check("alice", "hint", cost=3)
        await usage.record("alice", "hint", cost=3)
        await usage.flush()
        clock.advance(86_400)
        await limiter.check("alice", "hint")
        (event,) = (await usage.events("alice")).events
        await limiter.refund("alice", "hint", 3, at=event.at)
        assert list((await usage.totals("alice"))["hint"].values()) == [0, 1]
        with pytest.raises(InvalidInput, match="at must be an aware datetime, not"):
            await limiter.refund("alice", "hint", 3, at=event.at_ms)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ({"durability": "disk"}, "durability"),
        ({"when_full": "explode"}, "when_full"),
        ({"durability": "journal"}, "journal_dir"),
        ({"when_full": "spill"}, "journal_dir"),
        ({"max_queue": 0}, "max_queue"),
        ({"in_flight": 1.5}, "in_flight"),
        ({"flush_interval": -1}, "flush_interval"),
        ({"grace": float("nan")}, "grace"),
    ],
)
def test_bad_settings_name_their_path(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        UsageLog(MemoryStore(), **options)
