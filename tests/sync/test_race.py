"""Exact across processes and threads: eight processes with sixteen threads each race for one key."""

from __future__ import annotations

import json
import subprocess
import sys
from uuid import uuid4

import pytest

from ratelimit.policy import Policy
from ratelimit.sync import Limiter, open_store
from ratelimit.testing import FakeClock
from tests.engines import Engine

PROCESSES, THREADS = 8, 16

RACE = """
import json, multiprocessing, sys, threading
from ratelimit import Policy
from ratelimit.sync import Limiter, open_store
from ratelimit.testing import FakeClock

url, quotas, algorithm, processes, threads = sys.argv[1:]
policy = Policy("hint", quotas, algorithm=algorithm, on_unavailable="deny")
limiter = Limiter(open_store(url), [policy], clock=FakeClock(), deadline=60)  # before the processes part
limiter.peek("somebody-else", "hint")

def racer(_):
    limiter.peek("somebody-else", "hint")
    ready, decisions = threading.Barrier(int(threads)), []

    def check():
        if not ready.wait(60):
            start.wait(60)
        ready.wait(60)
        for _ in range(2):
            decisions.append(limiter.check("alice", "hint"))

    racers = [threading.Thread(target=check) for _ in range(int(threads))]
    for one in racers:
        one.start()
    for one in racers:
        one.join(100)
    assert not any(decision.reason == "unavailable" for decision in decisions), limiter.store.inner.stats
    return len(decisions), sum(decision.allowed for decision in decisions)

fork = multiprocessing.get_context("fork")
start = fork.Barrier(int(processes))
with fork.Pool(int(processes)) as pool:
    print(json.dumps(pool.map(racer, range(int(processes)), chunksize=1)))
"""


@pytest.mark.parametrize(
    ("quotas", "algorithm", "limit"),
    [
        ("100/day", "fixed_window", 100),
        ("20/hour; 100/day", "sliding_window", 20),
        ("100/day", "gcra", 100),
    ],
)
def test_racing_threads_admit_exactly_the_limit(engine: Engine, quotas: str, algorithm: str, limit: int) -> None:
    url = f"dynamodb://race-{uuid4().hex[:8]}?region=eu-west-1&endpoint={engine.endpoint}&create=true&read_timeout=30"
    with Limiter(open_store(url), [Policy("hint", quotas)], clock=FakeClock()) as limiter:
        command = [sys.executable, "-c", RACE, url, quotas, algorithm, str(PROCESSES), str(THREADS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
        checks, admitted = zip(*json.loads(done.stdout), strict=True)
        assert sum(checks) == 2 * PROCESSES * THREADS
        assert sum(admitted) == limit
        assert sum(limiter.totals("alice")["hint"].values()) == limit, "the totals are counted in the same write"
