"""The usage log of threads: each event once, whoever records it, and at the latest when the interpreter ends."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ratelimit import ConfigError, InvalidEvent, MemoryStore, Policy, StoreUnavailable
from ratelimit.sync import InsideEventLoop, Limiter, Store, UsageLog, open_store
from tests.faults import error, internal_error, slow
from tests.faults.apart import Apart
from tests.sync.forks import forked
from tests.sync.test_limiter import in_threads
from tests.sync.test_limiter import store as store

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")


@pytest.fixture
def opened(url: str) -> Iterator[Store]:
    with open_store(url) as store:
        yield store


def today() -> datetime:
    return datetime.now(UTC)


def events_in(apart: Apart) -> list[str]:
    """The resources of the events in the server's table."""
    return sorted(item["dat"]["M"]["pid"]["S"] for item in apart.server.table.items.values() if "dat" in item)


def test_record_and_read_back(store: Store) -> None:
    with Limiter(store, [Policy("hint", "9/day")]) as limiter, UsageLog(store, actions=limiter.policies) as usage:
        limiter.check("alice", "hint", cost=2)
        event_id = usage.record("alice", "hint", cost=2, resource="problem-100", metadata={"k": 1})
        usage.flush()
        (event,) = usage.events("alice").events
        assert (event.id, event.user, event.cost, event.metadata) == (event_id, "alice", 2, {"k": 1})
        assert usage.summary("alice")["hint"]["total"] == 2
        assert usage.totals("alice")["hint"] == {today().date(): 2}
        assert usage.reconcile("alice", today().date())["hint"].difference == 0
        assert usage.top(today().date(), "hint") == [("alice", 2)]
        assert (usage.stats.accepted, usage.stats.written, usage.stats.depth) == (1, 1, 0)
        erased = usage.erase("alice")
        assert (erased.found["events"], erased.found["counters"]) == (1, 1)
        assert usage.events("alice").events == ()


def test_the_timeline_of_an_action() -> None:
    with UsageLog(MemoryStore(), timelines=["hint"]) as usage:
        ids = {usage.record(user, "hint", status=201) for user in ("alice", "bob")}
        usage.flush()
        assert {event.id for event in usage.timeline("hint", status=201).events} == ids


def test_threads_record_together(store: Store) -> None:
    with UsageLog(store) as usage:

        def record() -> None:
            for _ in range(60):
                usage.record("alice", "hint")

        in_threads(8, record)
        usage.flush()
        assert (usage.stats.accepted, usage.stats.written, usage.stats.dropped) == (480, 480, 0)
        assert usage.reconcile("alice", today().date())["hint"].events == 480


def test_a_store_in_memory_is_asked_by_one_thread_at_a_time() -> None:
    """The log's is one of them."""
    store = open_store("memory://")
    with UsageLog(store) as usage, ThreadPoolExecutor(2) as pool:
        usage.record("alice", "hint")
        usage.flush()
        for ask in (lambda: usage.top(today().date(), "hint"), lambda: usage.events("alice")):
            with store.runner.lock:
                asked = pool.submit(ask)
                with pytest.raises(TimeoutError):
                    asked.result(0.05)
            asked.result(60)


def test_after_close_nothing_is_taken_and_that_is_counted() -> None:
    usage = UsageLog(MemoryStore())
    usage.record("alice", "hint")
    usage.close()
    usage.close()
    assert usage.stats.written == 1
    with pytest.raises(StoreUnavailable, match="it is closed"):
        usage.record("alice", "hint")
    usage._accept("alice", "hint")
    assert usage.stats.dropped == 2
    assert len(usage.events("alice").events) == 1, "what is there can be read all the same"
    with usage:
        usage.record("alice", "hint")
    assert usage.stats.written == 2
    latest = time.monotonic() + 60
    while [thread for thread in threading.enumerate() if thread.name == "ratelimit: usage log"]:
        assert time.monotonic() < latest
        time.sleep(0.001)


def test_a_thread_that_outlives_close(apart: Apart, opened: Store) -> None:
    """Of its events each is in the table, or was refused."""
    usage, kept, done = UsageLog(opened, max_queue=1000, grace=240), [], threading.Event()

    def record() -> None:
        while not done.is_set():
            try:
                kept.append(usage.record("alice", "hint", resource="r"))
            except StoreUnavailable:
                return

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    latest = time.monotonic() + 60
    while len(kept) < 100:
        assert time.monotonic() < latest
        time.sleep(0.001)
    usage.close()
    for thread in threads:
        thread.join(60)
    done.set()
    assert len(events_in(apart)) == len(kept) == usage.stats.written


async def test_in_an_event_loop_it_names_what_to_use_there() -> None:
    usage = await asyncio.to_thread(UsageLog, MemoryStore())
    for call in (lambda: usage.record("alice", "hint"), usage.flush, lambda: usage.events("alice"), usage.close):
        with pytest.raises(InsideEventLoop, match="use `from ratelimit import UsageLog`"):
            call()


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="when_full"):
        UsageLog(MemoryStore(), when_full="sometimes")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="journal_dir"):
        UsageLog(MemoryStore(), durability="journal", journal_dir=tmp_path / "file").open()
    usage = UsageLog(MemoryStore())
    with pytest.raises(InvalidEvent):
        usage.record("alice", "hint", cost=-1)
    usage._accept("alice", "hint", metadata={1: 2})  # type: ignore[dict-item]
    usage.close()
    assert (usage.stats.accepted, usage.stats.dropped) == (0, 1)


def test_a_full_log_waits_and_then_refuses(apart: Apart, opened: Store) -> None:
    apart.server.always(internal_error())
    usage = UsageLog(opened, max_queue=5, max_wait=0.1, in_flight=1, grace=0, flush_interval=60)
    for _ in range(5):
        usage.record("alice", "hint")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="full for too long"):
        usage.record("alice", "hint")
    assert time.monotonic() - began >= 0.1
    usage.close()
    assert usage.stats.dropped == 6


def test_close_writes_what_waits_for_a_grace(apart: Apart, opened: Store) -> None:
    apart.server.then(error("ProvisionedThroughputExceededException"), slow(0.1))
    usage = UsageLog(opened)
    for number in range(30):
        usage.record("alice", "hint", resource=f"{number:02}")
    usage.close()
    assert events_in(apart) == [f"{number:02}" for number in range(30)]


AT_THE_END = """
import multiprocessing, os, sys, threading
from ratelimit.sync import UsageLog, open_store

usage = UsageLog(open_store(sys.argv[1]), **eval(sys.argv[3]))

def record(name):
    for number in range(30):
        usage.record("alice", "hint", resource=f"{name}-{number:02}")

def late():
    threading.main_thread().join()
    record("late")

record("main")
match sys.argv[2]:
    case "end": pass
    case "exit": sys.exit(3)
    case "error": raise SystemError("as it happens")
    case "kill": os._exit(0)
    case "fork":
        child = multiprocessing.get_context("fork").Process(target=record, args=("child",))
        child.start()
        child.join()
"""


def run(url: str, ending: str, options: str = "{}") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", AT_THE_END, url, ending, options]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.process
@pytest.mark.parametrize("ending", ["end", "exit", "error"])
def test_the_end_of_the_interpreter_writes_what_waits(apart: Apart, url: str, ending: str) -> None:
    apart.server.always(slow(0.05))
    done = run(url, ending)
    assert events_in(apart) == [f"main-{number:02}" for number in range(30)], done.stderr
    assert done.returncode == {"end": 0, "exit": 3, "error": 1}[ending]


@forks
@pytest.mark.process
def test_a_forked_process_writes_its_own_and_leaves_the_rest_to_its_parent(apart: Apart, url: str) -> None:
    apart.server.always(slow(0.05))
    done = run(url, "fork", repr({"flush_interval": 60}))
    wanted = [f"{name}-{number:02}" for name in ("child", "main") for number in range(30)]
    assert (events_in(apart), done.stderr) == (wanted, "")
    assert apart.server.received["BatchWriteItem"] == 4, "each two, and none twice"


@forks
def test_a_fork_counts_for_itself(opened: Store) -> None:
    usage = UsageLog(opened)
    usage.record("alice", "hint")

    def record() -> bool:
        usage.record("alice", "hint")
        usage.close()
        return (usage.stats.accepted, usage.stats.written) == (1, 1)

    assert forked(record)
    usage.close()
    assert (usage.stats.accepted, usage.stats.written) == (1, 1)


@pytest.mark.process
def test_with_a_journal_a_kill_loses_nothing(apart: Apart, url: str, opened: Store, tmp_path: Path) -> None:
    options = {"durability": "journal", "journal_dir": str(tmp_path)}
    apart.server.always(internal_error())
    assert run(url, "kill", repr(options)).returncode == 0
    assert events_in(apart) == []
    apart.server.recover()
    with UsageLog(opened, **options) as usage:  # type: ignore[arg-type]
        usage.flush()
        assert usage.stats.replayed == 30
    assert events_in(apart) == [f"main-{number:02}" for number in range(30)]


def test_many_threads_and_a_journal(apart: Apart, opened: Store, tmp_path: Path) -> None:
    with UsageLog(opened, durability="journal", journal_dir=tmp_path) as usage, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: usage.record("alice", "hint", resource=f"{number:03}"), range(100)))
        assert usage.stats.accepted == 100
    assert events_in(apart) == [f"{number:03}" for number in range(100)]
