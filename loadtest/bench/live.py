"""What the live data cost: checks of a sidecar that has an admin listener, and of an app that has the page, beside the
same without."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from statistics import median
from typing import Any, Final

from loadtest.bench.builds import Build
from loadtest.bench.ours import ACTION, ROOMY, USERS
from loadtest.bench.report import BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Entry, contest, difference
from loadtest.bench.stub import stub_server
from loadtest.bench.worker import Contender
from ratelimit.config import Config
from ratelimit.dashboard import dashboard
from ratelimit.decision import Decision
from ratelimit.limiter import Limiter
from ratelimit.live import INTERVAL_S, LiveRecorder
from ratelimit.metrics import DecisionMetrics, Registry
from ratelimit.policy import Policy
from ratelimit.prometheus import expose
from ratelimit.server.factory import sidecar
from ratelimit.store import MemoryStore

CASES: Final[dict[str, dict[str, Any]]] = {
    f"{USERS} users, memory": {"users": USERS},
    f"{USERS} users, DynamoDB (stub)": {"users": USERS, "table": True},
    "a million users, refused": {"users": 1_000_000, "cost": 2, "quotas": "1/day"},
    "one user, refused": {"users": 1, "cost": 2, "quotas": "1/day"},
    "an app with metrics, memory": {"users": USERS, "app": True},
    "an app without metrics, memory": {"users": USERS, "app": False},
}
WITH, COMPILED = "with live data", "compiled: "
_RATE: Final = 10_000
"""Checks a second that the samples are spread over."""
_POLICIES: Final = (10, 10_000)


@asynccontextmanager
async def checks(
    admin: str, users: int, *, quotas: str = ROOMY, cost: int = 1, store: str = "memory://"
) -> AsyncIterator[Contender]:
    """A sidecar's limiter, as its configuration makes it."""
    config = Config(store=store, admin=admin, deadline=30, policies=(Policy(ACTION, quotas),))
    runtime = sidecar(lambda: config).current.runtime
    await runtime.open()
    yield _contender(runtime.limiter, users, cost)
    await runtime.limiter.close()
    await runtime.end(())


@asynccontextmanager
async def app_checks(admin: str, users: int, *, metrics: bool) -> AsyncIterator[Contender]:
    """An app's limiter, that the page is made for, or is not."""
    async with Limiter(MemoryStore(), [Policy(ACTION, ROOMY)]) as limiter:
        if metrics:
            expose(limiter)
        if admin != "off":
            dashboard(limiter, auth="none")
        yield _contender(limiter, users, 1)


def _contender(limiter: Limiter, users: int, cost: int) -> Contender:
    names = itertools.cycle([f"user-{number}" for number in range(users)])
    check = limiter.check

    async def call() -> Decision:
        return await check(next(names), ACTION, cost=cost)

    return Contender(call)


def run(rounds: Rounds = 15, seconds: Seconds = 0.3) -> Findings:
    """The live data: what they add to a check, one after the other with and without in turn, and what a sample of them
    takes."""
    with stub_server() as endpoint:
        measured, notes = contest(list(_entries(endpoint)), rounds=rounds, seconds=seconds)
    rows, targets = [], []
    for name, without in measured.items():
        if (both := measured.get(f"{name}, {WITH}")) is None:
            continue
        added = difference(both, without, "cpu_us")
        rows.append(Row(name, {"CPU µs per check": without.median("cpu_us"), "added µs": added}))
        # On the stub, the difference is less than what the rest varies by; without metrics, it is of counting at all.
        if "stub" not in name and "without metrics" not in name:
            targets.append(BenchTarget(f"added to a check, {name}, µs", added, "at most", 1))
    for policies in _POLICIES:
        took = _sample_us(policies)
        name = f"a sample, {policies:,} policies, spread over {_RATE:,} checks/s"
        rows.append(Row(name, {"CPU µs per check": None, "added µs": took / (INTERVAL_S * _RATE)}))
    return Findings(rows, targets, notes)


def _entries(endpoint: str) -> Iterator[Entry]:
    builds: dict[str, Build] = {"": "", COMPILED: "compiled"}
    for prefix, build in builds.items():
        for case, given in CASES.items():
            contender, options = "checks", {**given}
            if options.pop("table", False):
                options["store"] = f"dynamodb://bench?region=eu-west-1&endpoint={endpoint}"
            if "app" in options:
                contender, options["metrics"] = "app_checks", options.pop("app")
            for admin, suffix in (("off", ""), ("127.0.0.1:0", f", {WITH}")):
                target = f"loadtest.bench.live:{contender}"
                yield Entry(f"{prefix}{case}{suffix}", target, {**options, "admin": admin}, build)


def _sample_us(policies: int) -> float:
    """Where each policy has been asked since the last one."""
    names = [f"policy-{number}" for number in range(policies)]
    decisions = DecisionMetrics(names)
    recorder = LiveRecorder(0, decisions, Registry())
    times = []
    for tick in range(10**12, 10**12 + 9):  # after any that this machine has seen
        for name in names:
            decisions(Decision(allowed=True, policy=name, cost=1, quotas=()), 0.001)
        began = time.process_time()
        recorder.sample(tick)
        times.append(time.process_time() - began)
    return median(times) * 1e6
