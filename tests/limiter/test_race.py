"""Exact across processes: eight of them, with fifty tasks each, race for one key."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from ratelimit import Limiter, Policy, open_store
from ratelimit.names import Key
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.limiter.stores import YieldingStore

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
            totals = await Limiter(store, [Policy("hint", quotas)], clock=FakeClock()).totals("alice")
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
            limiter = Limiter(store, [Policy("user", "7/day"), Policy("org", "200/day")], clock=FakeClock())
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


# Slots and reservations across processes, some of which are killed: never over, and all of it back in time.


HOLD = 3
COMES_BACK_S = HOLD + 1
"""The policy's `hold`, rounded up to a whole second."""
SLOTS, UNITS, COST = 5, 300, 7

WORKERS = """
import asyncio, json, os, random, sys, time
from ratelimit import Limiter, Policy, open_store
from ratelimit.dynamodb import DynamoDBStore  # once, before the processes part

url, log, processes, tasks, slots, units, cost, hold = sys.argv[1:]
cost, hold = int(cost), int(hold)
out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(*entry):
    # A length that divides a page: who is killed while writing has written all of it, or nothing.
    os.write(out, json.dumps(entry).ljust(127).encode() + b"\\n")

async def task(limiter, number):
    what = "slots" if number % 2 else "units"
    while True:
        held = limiter.slot("alice", what) if what == "slots" else limiter.reserve("alice", what, cost)
        if not await held.take():
            await asyncio.sleep(random.random() / 20)
            continue
        name = f"{os.getpid()}-{number}-{time.monotonic()}"
        note(what, "took", name, time.monotonic(), 0)
        await asyncio.sleep(random.random() / 50)
        used = random.randint(0, 1)
        note(what, "ends", name, time.monotonic(), used)
        if what == "units":
            held.settle(used)
        await held.release()
        note(what, "ended", name, time.monotonic(), used)
        await asyncio.sleep(random.random() / 50)

async def work():
    async with open_store(url) as store:
        policies = [Policy(name, quotas, on_unavailable="deny", hold=hold)
                    for name, quotas in (("slots", f"{slots} concurrent"), ("units", f"{units}/day"))]
        async with Limiter(store, policies, deadline=20) as limiter:
            await asyncio.gather(*(task(limiter, number) for number in range(int(tasks))))

for _ in range(int(processes)):
    if not (child := os.fork()):
        asyncio.run(work())
        os._exit(1)
    print(child, flush=True)
sys.stdin.read()
"""


class Entry(NamedTuple):
    """What a worker has said."""

    what: str
    said: str
    name: str
    at: float
    used: int


def killed_in_the_middle(url: str, log: Path, *, processes: int, tasks: int, lasts: float) -> tuple[list[Entry], float]:
    """Let workers take and give back all the time; kill some, and later the others. Return what they said, and when
    the last one was killed."""
    options = [str(each) for each in (processes, tasks, SLOTS, UNITS, COST, HOLD)]
    command = [sys.executable, "-c", WORKERS, url, str(log), *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        workers = [int(parent.stdout.readline()) for _ in range(processes)]
        try:
            deadline = time.monotonic() + 240
            while not log.exists() or log.read_text().count("ended") < 2 * processes:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            time.sleep(lasts)
            for worker in workers[: processes // 2]:
                os.kill(worker, signal.SIGKILL)
            time.sleep(lasts)
        finally:
            for worker in workers:
                os.kill(worker, signal.SIGKILL)
            killed_at = time.time()
            parent.kill()
    return [Entry(*json.loads(line)) for line in log.read_text().splitlines()], killed_at


def most_held(entries: list[Entry]) -> int:
    """The most that were held at the same time: each for sure from when it was taken until it was given back, or, where
    its worker was killed, for `HOLD` seconds, which had begun somewhat before that was told."""
    taken = {entry.name: entry.at for entry in entries if entry.said == "took"}
    given = {entry.name: entry.at for entry in entries if entry.said == "ends"}
    over = {name: given.get(name, at + HOLD - 1) for name, at in taken.items()}
    moments = sorted([(at, 1) for at in taken.values()] + [(at, -1) for at in over.values()])
    return max(accumulate(change for _, change in moments))


@pytest.mark.parametrize(
    ("processes", "tasks", "lasts"),
    [pytest.param(8, 50, 4.0, marks=pytest.mark.slow), pytest.param(4, 10, 0.4, marks=pytest.mark.process)],
)
def test_processes_that_are_killed_in_the_middle(
    engine: Engine, tmp_path: Path, processes: int, tasks: int, lasts: float
) -> None:
    url = f"dynamodb://slots-{uuid4().hex[:8]}?region=eu-west-1&endpoint={engine.endpoint}&create=true"
    policies = [Policy("slots", f"{SLOTS} concurrent", hold=HOLD), Policy("units", f"{UNITS}/day", hold=HOLD)]

    async def create() -> None:
        async with open_store(url):
            pass

    async def look() -> tuple[list[bool], int, dict[str, int]]:
        async with open_store(url) as store, Limiter(store, policies) as limiter:
            free = [(await limiter.slot("alice", "slots").take()).allowed for _ in range(SLOTS + 1)]
            await limiter.reserve("alice", "units", 1).take()
            await limiter.drain()
            return free, (await limiter.peek("alice", "units")).used, dict(await store.read(Key("alice", "units")))

    asyncio.run(create())
    entries, killed_at = killed_in_the_middle(url, tmp_path / "log", processes=processes, tasks=tasks, lasts=lasts)
    of_slots = [entry for entry in entries if entry.what == "slots"]
    assert most_held(of_slots) <= SLOTS, "never over"
    assert len({entry.name for entry in of_slots}) > SLOTS
    time.sleep(max(0.0, killed_at + COMES_BACK_S - time.time()))
    free, used, left = asyncio.run(look())
    assert free == [True] * SLOTS + [False]
    mine = left.get("r", 0)
    assert mine <= 1, "all of theirs is back"
    ended = sum(entry.used for entry in entries if (entry.what, entry.said) == ("units", "ended"))
    ends = sum(entry.used for entry in entries if (entry.what, entry.said) == ("units", "ends"))
    assert 0 < ended <= used - mine <= min(ends, UNITS), "what was used, once; by the killed, that one or not"


@pytest.mark.parametrize("reserves", [False, True])
async def test_tasks_in_memory(reserves: bool) -> None:
    """Eight limiters with fifty tasks each on one store, in which each call lets the others go first."""
    store = YieldingStore()
    policy = Policy("job", f"{SLOTS} concurrent" if not reserves else f"{UNITS}/day; {SLOTS} concurrent", hold=HOLD)
    held = most = used = 0

    async def task(limiter: Limiter, draw: random.Random) -> None:
        nonlocal held, most, used
        for _ in range(4):
            units = draw.randint(0, 1)
            slot: Any = limiter.reserve("alice", "job", COST) if reserves else limiter.slot("alice", "job")
            if not await slot.take():
                await asyncio.sleep(0)
                continue
            held += 1
            most = max(most, held)
            await asyncio.sleep(0)
            held -= 1
            if reserves:
                slot.settle(units)
                used += units
            await slot.release()

    limiters = [Limiter(store, [policy], clock=FakeClock(), denial_cache=0) for _ in range(8)]
    await asyncio.gather(*(task(limiter, random.Random(n)) for limiter in limiters for n in range(50)))
    assert most == SLOTS
    left = await store.read(Key("alice", "job"))
    assert (left["c"], left.get("r", 0)) == (0, 0)
    if reserves:
        (spent,) = (value for field, value in left.items() if field.startswith("d"))
        assert spent == used
