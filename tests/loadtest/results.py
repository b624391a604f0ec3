"""Runs made up for tests, with latencies that are known."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from loadtest.figures import SampleTally, figures
from loadtest.options import Budgets, judge
from loadtest.plan import SERIES, Group, LoadPlan, Outcome, RequestSample, SampleBatch
from loadtest.result import FORMAT, GroupResult, Report

Latency = Callable[[Random, int, int], int]
"""Of a series, in a second: µs."""


def plan(group: Group = "middleware", *, rate: float = 200.0, duration: float = 10.0) -> LoadPlan:
    return LoadPlan(
        run="r1", group=group, rate=rate, users=8, duration=duration, warm_up=0, workers=1, seed=1, targets={},
    )  # fmt: skip


def usual(random: Random, series: int, second: int) -> int:
    return 1_000 + 500 * series + round(random.expovariate(1 / 300))


def result(
    given: LoadPlan | None = None, latency: Latency = usual, *, seed: int = 1, failing: int = 0, complete: bool = True,
    wait: int = 0,
) -> GroupResult:  # fmt: skip
    """Requests at the rate, their books in order; the first `failing` fail."""
    given = given or plan()
    tally, random = SampleTally(given), Random(seed)
    rows = []
    kinds = SERIES[given.group]
    for number in range(round(given.rate * given.duration)):
        at = round(number / given.rate * 1e6)
        series = number % len(kinds)
        took = latency(random, series, at // 1_000_000)
        outcome: Outcome = "failed" if number < failing else "allowed"
        sample = RequestSample(series, f"lt-r1-{series}-0", at, wait, 5, wait + took, took, outcome)
        rows.append(list(sample))
    tally.add("", SampleBatch(rows, 0))
    return figures(tally, [book(tally)], complete=complete)


def book(tally: SampleTally, **changes: object) -> dict[str, object]:
    """What a server would have counted."""
    sums: dict[str, dict[str, int]] = {}
    for (action, user), units in tally.admitted.items():
        sums.setdefault(action, {})[user] = units
    total = sum(tally.checks.values())
    meters = {name: {"writes": count, "units": float(count)} for name, count in tally.checks.items()}
    whole = {
        "meters": meters, "log": {"writes": 0, "units": float(total), "events": total}, "shared": True,
        "totals": sums, "events": {action: dict(users) for action, users in sums.items()}, "evicted": 0,
    }  # fmt: skip
    return {**whole, **changes}


def report(*groups: GroupResult, budgets: Budgets | None = None, place: str = "ministack") -> Report:
    groups = groups or (result(),)
    return Report(
        format=FORMAT, run="r1", place=place, command="ratelimit loadtest run <b>", date="2026-11-21T07:00:00+00:00",
        complete=all(group.complete for group in groups), environment={"machine": "2 cores"}, groups=list(groups),
        verdicts=judge(budgets or Budgets(error_rate=0.0), list(groups)), notes=[],
    )  # fmt: skip


def encoded(given: Report) -> bytes:
    return msgspec.json.encode(given)
