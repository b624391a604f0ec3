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
from ratelimit.testing import FakeClock
from tests.engines import Engine

PROCESSES, TASKS = 8, 50
NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)

RACE = """
import asyncio, json, multiprocessing, sys
from ratelimit import Limiter, Policy, open_store
from ratelimit.dynamodb import DynamoDBStore  # once, before the processes part
from ratelimit.testing import FakeClock

url, user, quotas, algorithm, processes, tasks = sys.argv[1:]

async def admitted():
    async with open_store(url) as store:
        policy = Policy("hint", quotas, algorithm=algorithm, on_unavailable="deny")
        limiter = Limiter(store, [policy], clock=FakeClock(), deadline=60)
        await limiter.peek("somebody-else", "hint")
        start.wait(60)
        decisions = await asyncio.gather(*(limiter.check(user, "hint") for _ in range(int(tasks))))
        assert not any(decision.reason == "unavailable" for decision in decisions)
        return sum(decision.allowed for decision in decisions)

def racer(_):
    return asyncio.run(admitted())

fork = multiprocessing.get_context("fork")
start = fork.Barrier(int(processes))
with fork.Pool(int(processes)) as pool:
    print(json.dumps(pool.map(racer, range(int(processes)), chunksize=1)))
"""


def race(url: str, user: str, quotas: str, algorithm: str) -> list[int]:
    """Units admitted by each process; all of them start at once, when all are ready."""
    command = [sys.executable, "-c", RACE, url, user, quotas, algorithm, str(PROCESSES), str(TASKS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    admitted: list[int] = json.loads(done.stdout)
    return admitted


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
            totals = await Limiter(store, [Policy("hint", quotas)], clock=FakeClock(), deadline=60).totals("alice")
        return totals["hint"].get(NOON.date(), 0)

    asyncio.run(used())  # creates the table
    admitted = race(url, "alice", quotas, algorithm)
    assert len(admitted) == PROCESSES
    assert sum(admitted) == limit
    assert asyncio.run(used()) == limit, "the totals are counted in the same write"


JOINT_RACE = """
import asyncio, json, multiprocessing, os, signal, sys, time
from ratelimit import Limiter, Policy, open_store
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.testing import FakeClock

url, algorithm, lease, processes, tasks, users = sys.argv[1:]
processes, tasks, users = int(processes), int(tasks), int(users)
policies = [
    Policy("user", "7/day", algorithm=algorithm, on_unavailable="deny"),
    Policy("org", "200/day", algorithm=algorithm, on_unavailable="deny", lease=int(lease) or None),
]

async def race(number):
    async with Limiter(await open_store(url), policies, clock=FakeClock(), deadline=60) as limiter:
        await limiter.peek("somebody-else", "org")
        start.wait(60)

        async def ask(task):
            for turn in range(2 if number > 2 else 10**9):  # the first three go on until they are killed
                user = f"user-{(number + 3 * task + 17 * turn) % users}"
                answer = await limiter.check_all([(user, "user"), ("acme", "org")])
                assert not any(decision.reason == "unavailable" for decision in answer)
                admitted[number] += bool(answer)

        await asyncio.gather(*map(ask, range(tasks)))

fork = multiprocessing.get_context("fork")
start = fork.Barrier(processes)
admitted = fork.RawArray("i", processes)
racers = [fork.Process(target=lambda number=number: asyncio.run(race(number))) for number in range(processes)]
for racer in racers:
    racer.start()
while sum(admitted) < 50:
    time.sleep(0.001)
for racer in racers[:3]:
    os.kill(racer.pid, signal.SIGKILL)
for racer in racers:
    racer.join(60)
print(json.dumps({"exits": [racer.exitcode for racer in racers], "admitted": sum(admitted)}))
"""


@pytest.mark.parametrize(
    ("algorithm", "lease"),
    [
        ("fixed_window", 0),
        pytest.param("gcra", 0, marks=pytest.mark.slow),
        pytest.param("fixed_window", 3, marks=pytest.mark.slow),
    ],
)
def test_several_keys_stay_of_one_mind_when_processes_are_killed(engine: Engine, algorithm: str, lease: int) -> None:
    """Each admission is one unit of a user's and one of the shared key's: at the end, the sums are the same. But what
    a killed process held by a lease is lost."""
    url = f"dynamodb://joint-{uuid4().hex[:8]}?region=eu-west-1&endpoint={engine.endpoint}&create=true"
    users = [f"user-{number}" for number in range(64)]

    async def used() -> list[int]:
        async with open_store(url) as store:
            limiter = Limiter(
                store, [Policy("user", "7/day"), Policy("org", "200/day")], clock=FakeClock(), deadline=60
            )
            asked = [(user, "user") for user in users] + [("acme", "org")]
            return [
                (await limiter.totals(user, actions=[action]))[action].get(NOON.date(), 0) for user, action in asked
            ]

    asyncio.run(used())  # creates the table
    numbers = map(str, (lease, PROCESSES, TASKS, len(users)))
    command = [sys.executable, "-c", JOINT_RACE, url, algorithm, *numbers]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["exits"] == [-9] * 3 + [0] * (PROCESSES - 3), done.stderr
    *each, shared = asyncio.run(used())
    assert shared <= 200
    assert 0 <= shared - sum(each) <= 3 * (lease + TASKS if lease else 0)
    assert lease or shared == 200
    assert max(each) <= 7
    assert 50 <= outcome["admitted"] <= 200
