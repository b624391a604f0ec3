"""Another event loop than the one the log began in: `asyncio.run` again, a test client's, a forked child's."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from ratelimit.errors import StoreUnavailable
from ratelimit.store import MemoryStore
from ratelimit.usage import UsageLog
from tests.usage.stores import never, scripted


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


def wait_for_child_of_thread(fork: Callable[[], int]) -> None:
    """Forked from another thread, so that the child has no running loop."""
    thread = threading.Thread(target=lambda: os.waitpid(fork(), 0))
    thread.start()
    thread.join()


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)
