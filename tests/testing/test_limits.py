"""A test has every limiter of its process to itself, and the time of day, however deep inside of an app they are."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ratelimit import Directory, Limiter, MemoryStore, Policy, UsageLog, sync
from ratelimit.store.hashed import HashedUserStore
from ratelimit.testing import FakeClock
from ratelimit.testing.limits import Limits
from tests.docs.pages import ROOT, run, titled
from tests.limiter.stores import CountingStore

HINT = Policy("hint", "2/day")
PAGE = "docs/testing.md"


@pytest.fixture
def limits() -> Iterator[Limits]:
    with Limits() as limits:
        yield limits


@pytest.mark.parametrize("policy", [HINT, Policy("hint", "2/day", lease=2), Policy("hint", "2/day", algorithm="gcra")])
async def test_a_limiter_that_was_there_before(policy: Policy) -> None:
    limiter = Limiter(MemoryStore(), [policy])
    assert [(await limiter.check("alice", "hint")).allowed for _ in range(3)] == [True, True, False]
    for _ in range(2):
        with Limits() as limits:
            assert limits.spent == {}
            assert [(await limiter.check("alice", "hint")).allowed for _ in range(3)] == [True, True, False]
            limits.clock.advance(86_400)
            assert (await limiter.check("alice", "hint")).allowed
            assert limits.spent == {("alice", "hint"): 3}
            limits.reset_all()
            assert (await limiter.check("alice", "hint")).used == 1
    assert (await limiter.check("alice", "hint")).used == 1
    assert abs((await limiter.peek("alice", "hint")).at_us / 1_000_000 - time.time()) < 60


def test_that_of_threads_too(limits: Limits) -> None:
    limiter = sync.Limiter(MemoryStore(), [HINT])
    assert [limiter.check("alice", "hint").allowed for _ in range(3)] == [True, True, False]
    assert limiter.wait("alice", "hint", timeout=86_400).allowed, "which turns the clock"
    assert limits.clock.now() == FakeClock().now() + 12 * 3600 * 1_000_000
    assert limits.spent == {("alice", "hint"): 3}
    limits.reset_all()
    assert limiter.check("alice", "hint").used == 1


async def test_who_waits_waits_by_the_clock_of_the_test(limits: Limits) -> None:
    limiter = Limiter(MemoryStore(), [HINT])
    await limiter.check("alice", "hint", cost=2)
    waiting = asyncio.create_task(limiter.wait("alice", "hint", timeout=86_400))
    await asyncio.sleep(0)
    limits.clock.advance(12 * 3600)
    assert (await asyncio.wait_for(waiting, 60)).used == 1


async def test_the_usage_log_and_what_stands_before_the_store(limits: Limits) -> None:
    memory = MemoryStore()
    limiter = Limiter(HashedUserStore(memory, "a secret of some length"), [HINT], directory=Directory(memory.directory))
    async with UsageLog(memory) as usage:
        await usage.record("alice", "hint")
        await usage.flush()
        assert [(event.user, event.at) for event in limits.events] == [("alice", limits.events[0].at)]
        assert limits.events[0].at_ms == limits.clock.now() // 1000
        await limiter.check("alice", "hint")
        assert sum(limits.spent.values()) == 1
    limits.reset_all()
    assert (limits.events, limits.spent) == ([], {})


@pytest.mark.parametrize("threads", [False, True])
def test_events_that_another_test_has_left_waiting_are_no_more(threads: bool) -> None:
    store = MemoryStore()
    limiter, usage, blocking = Limiter(store, [HINT]), UsageLog(store), sync.UsageLog(store)

    async def log(user: str) -> None:
        await usage.record(user, "hint")
        if user == "bob":
            await usage.flush()

    for user in ("alice", "bob"):
        with Limits() as limits:
            if threads:
                blocking.record(user, "hint")
                if user == "bob":
                    blocking.flush()
            else:
                asyncio.run(log(user))
            assert {event.user for event in limits.events} <= {user}
    blocking.close()
    del limiter


async def test_one_of_its_own(limits: Limits) -> None:
    limiter = limits.limiter(HINT, denial_cache=0)
    await limiter.check("alice", "hint", cost=2)
    limits.clock.advance(86_400)
    assert (await limiter.check("alice", "hint")).used == 1


async def test_what_counts_in_a_table_is_not_emptied(limits: Limits) -> None:
    limiter = Limiter(CountingStore(), [HINT])
    with pytest.raises(RuntimeError, match=r"counts in a CountingStore.*RATELIMIT_STORE=memory://"):
        limits.reset_all()
    del limiter


@pytest.mark.process
def test_what_the_page_shows_is_what_pytest_runs(tmp_path: Path) -> None:
    for name in ("conftest.py", "app.py", "test_app.py"):
        (tmp_path / name).write_text(titled(PAGE, name).text, encoding="utf-8")
    # As the entry point does where this package is installed. Starlette's `TestClient` would rather have another client
    # than this environment has: hence no warnings.
    plugins = ("no:ratelimit", "ratelimit.testing.plugin", "no:cacheprovider", "no:schemathesis", "no:asyncio")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-Wignore", *[f"-p{plugin}" for plugin in plugins]],
        cwd=tmp_path,
        env={**os.environ, "RATELIMIT_STORE": "memory://", "PYTHONPATH": f"{ROOT}", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "2 passed" in ran.stdout, ran.stdout + ran.stderr


async def test_the_other_block_too() -> None:
    await run(titled(PAGE, "clock.py"))


def test_pytest_finds_the_plugin() -> None:
    project: dict[str, Any] = tomllib.loads(Path(ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert importlib.import_module(project["entry-points"]["pytest11"]["ratelimit"]).limits
