"""The log keeps what it accepted: in batches, whatever the store answers, and within its bounds."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ratelimit import ConfigError, InvalidEvent, InvalidInput, Limiter, MemoryStore, Policy, StoreUnavailable, UsageLog
from ratelimit.store import TableStore
from ratelimit.testing import FakeClock
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


# Another event loop than the one the log began in: `asyncio.run` again, a test client's, a forked child's.


async def record(usage: UsageLog, count: int, user: str = "alice") -> None:
    for _ in range(count):
        await usage.record(user, "hint")


async def flushed(usage: UsageLog, count: int = 0) -> None:
    await record(usage, count)
    await usage.flush()


def test_of_many_loops_one_line_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As a test client has it, which runs a loop for each request."""
    usage = UsageLog(store := MemoryStore())
    for _ in range(5):
        asyncio.run(record(usage, 3))
    asyncio.run(flushed(usage))
    assert len(store.events) == 15
    assert caplog.text.count("goes on in another event loop") == 1


def test_what_waited_when_the_first_loop_ended_is_written_in_the_next(caplog: pytest.LogCaptureFixture) -> None:
    store, events = scripted()
    events.always = never
    usage = UsageLog(store, in_flight=1)
    asyncio.run(record(usage, 60))
    events.always = None
    asyncio.run(flushed(usage, 7))
    assert len(events) == 67
    assert usage.stats.dropped == 0
    assert [one.levelno for one in caplog.records] == [logging.WARNING]
    assert "goes on in another event loop" in caplog.text


@pytest.mark.parametrize("end", ["close", "flush", "open"])
def test_it_is_ended_in_another_loop_than_it_began(end: str) -> None:
    usage = UsageLog(store := MemoryStore())
    asyncio.run(record(usage, 7))

    async def ended() -> None:
        await getattr(usage, end)()
        await usage.close()

    asyncio.run(ended())
    assert len(store.events) == 7
    assert usage.stats.dropped == 0


def test_a_loop_that_pauses_and_goes_on() -> None:
    usage = UsageLog(store := MemoryStore(), flush_interval=0)
    one, other = asyncio.new_event_loop(), asyncio.new_event_loop()
    for loop in (one, other, one, other):
        loop.run_until_complete(record(usage, 30))
    one.run_until_complete(flushed(usage))
    assert len(store.events) == 120
    for loop in (one, other):
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_the_journal_goes_along(tmp_path: Path) -> None:
    store, events = scripted()
    events.always = never
    usage = UsageLog(store, durability="journal", journal_dir=tmp_path)
    asyncio.run(record(usage, 7))
    events.always = None

    async def rest() -> None:
        await flushed(usage, 7)
        await usage.close()

    asyncio.run(rest())
    assert len(events) == 14
    assert list(tmp_path.iterdir()) == []


def test_a_loop_in_another_thread_is_said(caplog: pytest.LogCaptureFixture) -> None:
    usage = UsageLog(store := MemoryStore(), flush_interval=60)
    began, end = threading.Event(), threading.Event()

    async def first() -> None:
        await record(usage, 7)
        began.set()
        await asyncio.to_thread(end.wait)
        await usage.flush()

    thread = threading.Thread(target=run, args=(first(),))
    thread.start()
    began.wait()

    async def second() -> None:
        with pytest.raises(StoreUnavailable, match="another event loop, which runs in another thread; make a log of"):
            await usage.flush()
        with pytest.raises(StoreUnavailable):
            await usage.record("alice", "hint")
        assert await (usage._accept("alice", "hint") or asyncio.sleep(0, True)) is False

    asyncio.run(second())
    end.set()
    thread.join()
    assert len(store.events) == 7
    assert usage.stats.dropped == 2
    assert "another event loop, which runs in another thread" in caplog.text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("running", [True, False])
def test_a_forked_child_writes_its_own(running: bool, tmp_path: Path) -> None:
    """What the parent goes on with is the parent's; what it left behind is written by whoever goes on."""
    usage = UsageLog(store := MemoryStore(), flush_interval=60)

    def child() -> int:
        if (pid := os.fork()) == 0:
            try:
                asyncio.run(flushed(usage, 3))
                (tmp_path / "written").write_text(str(len(store.events)))
            finally:
                os._exit(0)
        return pid

    async def parent() -> None:
        await record(usage, 7)
        if running:
            wait_for_child_of_thread(child)
            await usage.flush()

    asyncio.run(parent())
    if not running:
        os.waitpid(child(), 0)
        asyncio.run(flushed(usage))
    assert (tmp_path / "written").read_text() == ("3" if running else "10")
    assert len(store.events) == 7


AT_THE_END = """
import asyncio, atexit, sys
from ratelimit import MemoryStore, UsageLog

store = MemoryStore()
atexit.register(lambda: print(len(store.events)))

async def main():
    usage = UsageLog(store, flush_interval=60, **eval(sys.argv[2]))
    for _ in range(30):
        await usage.record("alice", "hint")
    sys.exit(int(sys.argv[1]))

asyncio.run(main())
"""


@pytest.mark.process
@pytest.mark.parametrize("status", [0, 3])
@pytest.mark.parametrize("durability", ["memory", "journal"])
def test_the_end_of_the_interpreter_writes_what_waits(durability: str, status: int, tmp_path: Path) -> None:
    options = {"durability": durability, "journal_dir": str(tmp_path)}
    command = [sys.executable, "-c", AT_THE_END, str(status), repr(options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.returncode) == ("30\n", status), done.stderr


def wait_for_child_of_thread(fork: Callable[[], int]) -> None:
    """Forked from another thread, so that the child has no running loop."""
    thread = threading.Thread(target=lambda: os.waitpid(fork(), 0))
    thread.start()
    thread.join()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)
