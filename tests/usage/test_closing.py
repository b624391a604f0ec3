"""However a log is put down, what it had accepted is in the table, in the journal, or counted; and nothing stays."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ratelimit.errors import StoreUnavailable
from ratelimit.event import UsageEvent
from ratelimit.usage import UsageLog, journal
from ratelimit.usage.journal import Backlog
from ratelimit.usage.segments import Disk, Lane, Segment, dead_lanes, frame
from tests.usage.stores import ScriptedEvents, never, scripted
from tests.usage.test_event import event
from tests.usage.test_journal import files, journaled, left_behind


class SlowDisk(Disk):
    """Takes three milliseconds."""

    def sync(self, fd: int) -> None:
        time.sleep(0.003)
        super().sync(fd)


class HungDisk(Disk):
    """Does not come back until it is told to."""

    def __init__(self) -> None:
        self.hangs = threading.Event()
        self.goes_on = threading.Event()

    def sync(self, fd: int) -> None:
        self.hangs.set()
        self.goes_on.wait(60)
        super().sync(fd)


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
async def test_who_cancels_all_tasks_and_closes_loses_nothing(tmp_path: Path, journals: bool) -> None:
    usage, events = made(tmp_path if journals else None, grace=30.0, **({"disk": SlowDisk()} if journals else {}))
    events.line.extend([] if journals else [never, never])
    before = tasks()
    await usage.open()
    waiting = [usage.accept("alice", "hint") for _ in range(60)]
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
    monkeypatch.setattr(journal, "_PATIENCE", 0.02)
    disk = HungDisk()
    usage, _ = journaled(tmp_path, disk=disk)
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
        while not dead_lanes(tmp_path, Disk())[0]:
            await asyncio.sleep(0.01)


async def test_flush_does_not_wait_for_what_came_after_it(tmp_path: Path) -> None:
    usage, events = journaled(tmp_path, disk=SlowDisk(), grace=30.0)
    async with usage:
        stop = False

        async def more() -> None:
            while not stop:
                usage.accept("alice", "hint")
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
    async def read(self: Backlog, most: int) -> list[UsageEvent]:
        raise ZeroDivisionError("a bug")

    await left_behind(tmp_path, 10)
    monkeypatch.setattr(Backlog, "read", read)
    usage, events = journaled(tmp_path)
    async with usage:
        await usage.record("alice", "hint")
        async with asyncio.timeout(30):
            with pytest.raises(StoreUnavailable, match="failed"):
                await usage.flush()
        assert len(events) == 1
    assert "a bug stopped a part of the usage log: ZeroDivisionError('a bug')" in caplog.text


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
    lane = Lane.create(tmp_path, Disk())
    lane.append(frame(event()), segment_bytes=1000)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        assert dead_lanes(tmp_path, Disk())[0] == [], "the parent has it still"
        lane.release()
        until = time.monotonic() + 30
        while not (lanes := dead_lanes(tmp_path, Disk())[0]) and time.monotonic() < until:
            time.sleep(0.001)
        assert len(lanes) == 1
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
            usage.accept("alice", "hint")
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
            while not stop:
                for _ in range(20):
                    usage.accept("bob", "hint")
                await asyncio.sleep(0)

        coming = asyncio.create_task(more_than_it_takes())
        async with asyncio.timeout(30):
            await events.hold(200)
            while {one.id for one in events if one.user == "alice"} != ids:
                await asyncio.sleep(0.01)
        stop = True
        await coming
        assert usage.stats.dropped == 0
