"""However a log is put down, what it had accepted is in the table, in the journal, or counted; and nothing stays.

An event that the store calls invalid holds up no other one, and is only given up where the store takes others.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.errors import AccessDenied, StoreRefused, StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.usage import UsageLog, journal
from ratelimit.usage.journal import ReplayQueue
from ratelimit.usage.segments import JournalLock, Segment, adopt_dead, frame
from tests.engines import Engine
from tests.usage.conftest import on_engine
from tests.usage.disks import HungDisk, SlowDisk
from tests.usage.files import event
from tests.usage.stores import Fault, ScriptedEvents, never, scripted
from tests.usage.test_journal import files, journaled, left_behind


def made(directory: Path | None, **options: Any) -> tuple[UsageLog, ScriptedEvents]:
    if directory is not None:
        return journaled(directory, **options)
    store, events = scripted()
    return UsageLog(store, **options), events


def tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {task for task in (asyncio.current_task(),) if task is not None}


@pytest.mark.parametrize("journals", [False, True])
async def test_a_close_that_is_cancelled_ends_its_grace_and_nothing_else(tmp_path: Path, journals: bool) -> None:
    usage, events = made(tmp_path if journals else None, grace=60.0)
    events.always = never
    before = tasks()
    await usage.open()
    for _ in range(60):
        await usage.record("alice", "hint")
    closing = asyncio.create_task(usage.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await usage.close()
    assert usage.stats.dropped == (0 if journals else 60)
    assert tasks() == before
    if journals:
        other, _ = journaled(tmp_path)
        async with other:
            await other.flush()
            assert other.stats.replayed == 60


async def test_a_second_close_returns_when_the_first_has_ended(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path, grace=60.0)
    gate = asyncio.Event()

    async def behind_the_gate(store: ScriptedEvents, batch: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        await gate.wait()
        return await store.take(batch)

    events.always = behind_the_gate
    await usage.open()
    await usage.record("alice", "hint")
    closing = [asyncio.create_task(usage.close()) for _ in range(2)]
    done, _ = await asyncio.wait(closing, timeout=0.05)
    assert not done
    gate.set()
    await closing[1]
    assert files(tmp_path) == []
    await closing[0]


@pytest.mark.parametrize("journals", [False, True])
async def test_who_cancels_all_tasks_and_closes_loses_nothing(
    tmp_path: Path, journals: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    SlowDisk().install(monkeypatch)
    usage, events = made(tmp_path if journals else None, grace=30.0)
    events.line.extend([] if journals else [never, never])
    before = tasks()
    await usage.open()
    waiting = [usage._accept("alice", "hint") for _ in range(60)]
    await asyncio.sleep(0)
    while events.line:
        await asyncio.sleep(0)
    for task in tasks() - before:
        task.cancel()
    async with asyncio.timeout(30):
        assert all([one is None or await one for one in waiting])
        await usage.close()
    assert (usage.stats.written, usage.stats.dropped, len(events)) == (60, 0, 60)
    assert tasks() == before


async def test_a_disk_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "_DISK_TIMEOUT_S", 0.02)
    disk = HungDisk()
    disk.install(monkeypatch)
    usage, _ = journaled(tmp_path)
    await usage.open()
    recording = asyncio.create_task(usage.record("alice", "hint"))
    await asyncio.to_thread(disk.hangs.wait, 30)
    async with asyncio.timeout(30):
        await usage.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await recording
    assert (usage.stats.accepted, usage.stats.dropped) == (0, 1)
    assert "hangs: 1 events are lost" in caplog.text
    disk.goes_on.set()
    async with asyncio.timeout(30):
        while not adopt_dead(tmp_path)[0]:
            await asyncio.sleep(0.01)


async def test_flush_does_not_wait_for_what_came_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SlowDisk().install(monkeypatch)
    usage, events = journaled(tmp_path, grace=30.0)
    async with usage:
        stop = False

        async def more() -> None:
            while not stop:
                usage._accept("alice", "hint")
                await asyncio.sleep(0.0005)

        coming = asyncio.create_task(more())
        await events.hold(20)
        accepted = usage.stats.accepted
        async with asyncio.timeout(30):
            await usage.flush()
        assert usage.stats.written >= accepted
        stop = True
        await coming


async def test_a_task_that_dies_is_heard_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def read(self: ReplayQueue, most: int) -> list[UsageEvent]:
        raise ZeroDivisionError("a bug")

    await left_behind(tmp_path, 10)
    monkeypatch.setattr(ReplayQueue, "read", read)
    usage, events = journaled(tmp_path)
    async with usage:
        await usage.record("alice", "hint")
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable, match="failed"):
                await usage.flush()
        assert len(events) == 1
    assert "a part of the usage log failed" in caplog.text
    assert "ZeroDivisionError: a bug" in caplog.text


async def test_the_bytes_of_a_journal_are_counted_once(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path)
    events.always = never
    async with usage:
        for _ in range(10):
            await usage.record("alice", "hint")
        size = usage.stats.journal_bytes
    for _ in range(3):
        async with usage:
            assert usage.stats.journal_bytes == size
    assert usage.stats.journal_bytes == 0
    events.always = None
    async with usage:
        await usage.flush()
        assert usage.stats.journal_bytes == 0


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = JournalLock.create(tmp_path)
    lock.append(frame(event()), segment_bytes=1000)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        assert adopt_dead(tmp_path)[0] == [], "the parent has it still"
        lock.release()
        until = time.monotonic() + 30
        while not (locks := adopt_dead(tmp_path)[0]) and time.monotonic() < until:
            time.sleep(0.001)
        assert len(locks) == 1
    finally:
        os.close(writing)
        os.waitpid(child, 0)


async def test_events_on_their_way_back_have_their_room_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await left_behind(tmp_path, 100)
    reads, goes_on, whole = threading.Event(), threading.Event(), Segment.read

    def read(*arguments: Any, **options: Any) -> Any:
        reads.set()
        goes_on.wait(60)
        return whole(*arguments, **options)

    monkeypatch.setattr(Segment, "read", read)
    usage, events = journaled(tmp_path, durability="memory", max_queue=40, flush_interval=60.0)
    events.always = never
    async with usage:
        await asyncio.to_thread(reads.wait, 30)
        for _ in range(500):
            usage._accept("alice", "hint")
        goes_on.set()
        async with asyncio.timeout(30):
            while not usage.stats.spilled:
                await asyncio.sleep(0.001)
        for _ in range(20):
            assert usage.stats.depth <= 40
            await asyncio.sleep(0.001)
        assert usage.stats.dropped == 0


async def test_what_waits_on_the_disk_gets_its_turn_however_much_comes(tmp_path: Path) -> None:
    ids = await left_behind(tmp_path, 100)
    usage, events = journaled(tmp_path, durability="memory", max_queue=40, in_flight=1)

    async def slowly(store: ScriptedEvents, batch: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        await asyncio.sleep(0.001)
        return await store.take(batch)

    events.always = slowly
    async with usage:
        stop = False

        async def more_than_it_takes() -> None:
            """At every turn of the loop, and no more than the disk takes."""
            assert usage._pipeline is not None
            journal = usage._pipeline.journal
            assert journal is not None
            while not stop:
                for _ in range(20):
                    if not journal.is_full:
                        usage._accept("bob", "hint")
                await asyncio.sleep(0)

        coming = asyncio.create_task(more_than_it_takes())
        async with asyncio.timeout(30):
            await events.hold(200)
            while {one.id for one in events if one.user == "alice"} != ids:
                await asyncio.sleep(0.01)
        stop = True
        await coming
        assert usage.stats.dropped == 0


# What the store refuses.


def refusing(*ids: str) -> Fault:
    """As DynamoDB does: one bad item, and the whole batch is refused."""

    async def fault(store: ScriptedEvents, batch: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        if any(one.id in ids for one in batch):
            raise StoreRefused("refused the request: number overflow")
        return await store.take(batch)

    return fault


def opened() -> tuple[UsageLog, ScriptedEvents]:
    store, events = scripted()
    return UsageLog(store, flush_interval=0.01, grace=0.0), events


async def test_bad_events_hold_up_no_others(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    usage, events = opened()
    async with usage:
        bad = {f"bad-{n}" for n in range(8)}
        events.always = refusing(*bad)
        good = set()
        for n in range(200):
            good.add(await usage.record("alice", "hint"))
            if n % 25 == 0:
                await usage.record("alice", "hint", id=f"bad-{n // 25}")
        async with asyncio.timeout(30):
            await usage.flush()
        assert {one.id for one in events} == good
        assert (usage.stats.written, usage.stats.dropped) == (200, 8)
        assert (usage.stats.depth, usage.stats.in_flight) == (0, 0)
    for one in bad:
        assert caplog.text.count(f"refuses the usage event '{one}', and it is lost: refused the request: number") == 1


async def test_a_refused_event_is_not_kept_in_the_journal(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path, grace=30.0)
    events.always = refusing("bad")
    async with usage:
        await asyncio.gather(*(usage.record("alice", "hint", id="bad" if n == 7 else None) for n in range(30)))
    assert (usage.stats.written, usage.stats.dropped) == (29, 1)
    assert files(tmp_path) == []


async def test_while_all_are_refused_none_is_lost(pauses: list[float]) -> None:
    """That is the table's fault, and may be mended."""
    usage, events = opened()
    async with usage:
        ids = {await usage.record("alice", "hint") for _ in range(60)}
        events.always = refusing(*ids)
        flushing = asyncio.create_task(usage.flush())
        while usage.stats.retried < 200:
            await asyncio.sleep(0)
        assert usage.stats.dropped == 0
        events.always = None
        async with asyncio.timeout(30):
            await flushing
        assert {one.id for one in events} == ids


async def test_one_that_is_refused_alone_goes_when_others_are_taken(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    usage, events = opened()
    async with usage:
        await usage.record("alice", "hint", id="bad")
        events.always = refusing("bad")
        flushing = asyncio.create_task(usage.flush())
        while usage.stats.retried < 5:
            await asyncio.sleep(0)
        await usage.record("alice", "hint")
        async with asyncio.timeout(30):
            await flushing
            await usage.flush()
        assert (usage.stats.written, usage.stats.dropped) == (1, 1)
    assert [line.split(":")[0] for line in caplog.messages if "store take" in line or "does not" in line] == [
        "usage events wait, the store does not take them",
        "the store takes usage events again",
    ]


async def test_events_that_are_held_up_are_heard_of_while_others_get_through(
    pauses: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """As where `PutItem` is denied, and `BatchWriteItem` is not."""

    async def no_put_item(store: ScriptedEvents, batch: Sequence[UsageEvent]) -> Sequence[UsageEvent]:
        left = [one for one in batch if not one.placed_by_id]
        if len(left) == len(batch):
            raise AccessDenied("it lacks the permission dynamodb:PutItem")
        await store.take([one for one in batch if one.placed_by_id])
        return left

    usage, events = opened()
    events.always = no_put_item
    async with usage:
        await usage.record("alice", "hint", id="order-17")
        for n in range(20):
            await usage.record("alice", "hint")
            async with asyncio.timeout(30):
                await events.hold(n + 1)
        async with asyncio.timeout(30):
            while "usage events wait" not in caplog.text:
                await asyncio.sleep(0.001)
        assert "the store does not take them: it lacks the permission dynamodb:PutItem" in caplog.text
        assert "takes usage events again" not in caplog.text
        events.always = None
        async with asyncio.timeout(30):
            await usage.flush()
    assert caplog.text.count("the store takes usage events again") == 1
    assert usage.stats.dropped == 0


async def test_dynamodb_says_which_request_is_invalid(engine: Engine) -> None:
    async with on_engine(engine) as store:
        assert isinstance(store, DynamoDBStore)
        with pytest.raises(StoreRefused):
            await store.events.put([msgspec.structs.replace(event(), duration=float("nan"))])
