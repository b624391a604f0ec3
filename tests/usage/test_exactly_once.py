"""Every accepted event is in the table exactly once: with several processes, an engine that fails, or `kill -9`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from ratelimit import UsageLog, open_store
from tests.engines import Engine
from tests.usage.proxy import FlakyProxy

pytestmark = pytest.mark.slow

FULL = os.environ.get("RATELIMIT_TEST_SCALE") == "full"
"""At full scale it takes a quarter of an hour."""
PROCESSES = 4
EVENTS, DOWN_SECONDS, KILLS = (50_000, 10.0, 50) if FULL else (400, 1.0, 10)

# Every third event has an id of its own. An id is printed only when its event is accepted.
RECORDER = """
import asyncio, os, sys
from ratelimit import open_store
from ratelimit.usage import UsageLog

url, user, events, journal = sys.argv[1:]

async def main():
    async with open_store(url) as store:
        options = {"durability": "journal", "journal_dir": journal} if journal else {}
        async with UsageLog(store, max_queue=500, max_wait=60, grace=60, **options) as usage:
            numbers = iter(range(int(events)))
            async def record():
                for number in numbers:
                    own = f"order-{os.getpid()}-{number}" if number % 3 == 0 else None
                    event_id = await usage.record(user, "hint", id=own, metadata={"n": number})
                    os.write(1, (event_id + "\\n").encode())
            os.write(1, b"ready\\n")
            await asyncio.gather(*(record() for _ in range(20)))
            await usage.flush()
    assert usage.stats.dropped == 0, usage.stats

asyncio.run(main())
"""


async def recorder(url: str, user: str, *, events: int, journal: Path | str = "") -> asyncio.subprocess.Process:
    command = [sys.executable, "-c", RECORDER, url, user, str(events), str(journal)]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def ids_in_table(usage: UsageLog, user: str) -> Counter[str]:
    found: Counter[str] = Counter()
    cursor: str | None = None
    while True:
        page = await usage.events(user, limit=1000, cursor=cursor)
        found.update(event.id for event in page.events)
        cursor = page.cursor
        if cursor is None:
            return found


async def test_from_several_processes_through_an_engine_that_fails_and_is_down_for_a_while(engine: Engine) -> None:
    table, users = f"once-{uuid4().hex[:8]}", [f"user-{number}" for number in range(PROCESSES)]
    # The engine takes its time over a partition of tens of thousands of events.
    async with open_store(engine.store_url(table, create="true", read_timeout="30")) as store:
        async with FlakyProxy(engine.endpoint, share=0.1, seed=7) as proxy:
            url = engine.store_url(table, endpoint=proxy.endpoint)
            children = [await recorder(url, user, events=EVENTS) for user in users]
            try:
                for child in children:
                    assert child.stdout is not None
                    assert await child.stdout.readline() == b"ready\n"
                outputs = [asyncio.create_task(child.communicate()) for child in children]
                await proxy.refuse()
                await asyncio.sleep(DOWN_SECONDS)
                await proxy.listen()
                accepted = [set((await output)[0].decode().split()) for output in outputs]
            finally:
                for child in children:
                    if child.returncode is None:
                        child.kill()
                        await child.wait()
        assert [child.returncode for child in children] == [0] * PROCESSES
        assert len([kind for kind in proxy.answered if kind != "well"]) == 5, "every way to fail has been met"
        async with UsageLog(store) as usage:
            for user, ids in zip(users, accepted, strict=True):
                assert len(ids) == EVENTS
                assert await ids_in_table(usage, user) == Counter(dict.fromkeys(ids, 1))


async def test_a_process_killed_at_any_moment_loses_nothing_it_had_accepted(engine: Engine, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    url = engine.store_url(f"killed-{uuid4().hex[:8]}", create="true", read_timeout="30")
    accepted: set[str] = set()
    async with open_store(url) as store:
        for _ in range(KILLS):
            child = await recorder(url, "alice", events=10**6, journal=tmp_path)
            assert child.stdout is not None
            assert await child.stdout.readline() == b"ready\n"
            output = asyncio.create_task(child.stdout.read())
            await asyncio.sleep(chance.random() * 0.3)
            os.kill(child.pid, signal.SIGKILL)
            await child.wait()
            # A last line without its end was not fully said.
            accepted.update((await output).decode().split("\n")[:-1])
        assert len(accepted) > KILLS, f"seed {seed}"
        async with UsageLog(store, durability="journal", journal_dir=tmp_path) as usage:
            await usage.flush()
            found = await ids_in_table(usage, "alice")
        assert set(found) >= accepted, f"lost with seed {seed}: {len(accepted - set(found))} of {len(accepted)}"
        assert set(found.values()) == {1}, f"doubled with seed {seed}"
    assert os.listdir(tmp_path) == []
