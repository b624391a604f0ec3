"""Exact across processes: eight of them, with fifty tasks each, race for one key."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from ratelimit import Limiter, Policy, open_store
from tests.engines import Engine

PROCESSES, TASKS = 8, 50
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)

RACER = """
import asyncio, json, sys
from ratelimit import Limiter, Policy, open_store
from ratelimit.testing import FakeClock

url, user, quotas, algorithm, tasks = sys.argv[1:]

async def main():
    async with open_store(url) as store:
        policy = Policy("hint", quotas, algorithm=algorithm, on_unavailable="deny")
        limiter = Limiter(store, [policy], clock=FakeClock(), deadline=60)
        await limiter.peek("somebody-else", "hint")
        print("ready", flush=True)
        sys.stdin.readline()
        decisions = await asyncio.gather(*(limiter.check(user, "hint") for _ in range(int(tasks))))
        assert not any(decision.reason == "unavailable" for decision in decisions)
        print(json.dumps(sum(decision.allowed for decision in decisions)), flush=True)

asyncio.run(main())
"""


def race(url: str, user: str, quotas: str, algorithm: str) -> list[int]:
    """Units admitted by each process; all of them start on one word, when all are ready."""
    command = [sys.executable, "-c", RACER, url, user, quotas, algorithm, str(TASKS)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(PROCESSES)
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        return [int(json.loads(racer.communicate(timeout=90)[0])) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()


@pytest.mark.parametrize(
    ("quotas", "algorithm", "limit", "fast"),
    [
        pytest.param("100/day", "fixed_window", 100, "on", marks=pytest.mark.slow),
        ("100/day", "fixed_window", 100, "off"),
        pytest.param("100/day", "sliding_window", 100, "on", marks=pytest.mark.slow),
        pytest.param("100/day", "gcra", 100, "on", marks=pytest.mark.slow),
        ("20/hour; 100/day", "fixed_window", 20, "on"),
        ("20/hour; 100/day", "sliding_window", 20, "on"),
        ("20/hour; 100/day", "gcra", 20, "on"),
    ],
)
def test_racing_processes_admit_exactly_the_limit(
    engine: Engine, quotas: str, algorithm: str, limit: int, fast: str
) -> None:
    url = f"dynamodb://race-{uuid4().hex[:8]}?region=eu-west-1&endpoint={engine.endpoint}&create=true&fast={fast}"

    async def used() -> int:
        async with open_store(url) as store:
            totals = await Limiter(store, [Policy("hint", quotas)], deadline=60).totals("alice")
        return totals["hint"].get(NOON.date(), 0)

    asyncio.run(used())  # creates the table
    admitted = race(url, "alice", quotas, algorithm)
    assert sum(admitted) == limit
    assert asyncio.run(used()) == limit, "the totals are counted in the same write"
