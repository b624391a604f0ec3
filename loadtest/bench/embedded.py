"""The embedded store against `limits` in memory, and what a repeated refusal costs."""

from __future__ import annotations

from loadtest.bench.ours import ROOMY, TWO
from loadtest.bench.report import BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.stub import stub_server

OURS = "Limiter, memory"
COMPILED = "Limiter, memory, compiled"
REFUSED = "repeated refusal, DynamoDB (stub)"
THEIRS = "limits, memory: hit"


def run(rounds: Rounds = 7, seconds: Seconds = 0.4) -> Findings:
    """The embedded store against `limits` in memory; and what a repeated refusal costs."""
    with stub_server(mood="refusing") as endpoint:
        measured, notes = contest(_entries(endpoint), rounds=rounds, seconds=seconds)
    rows = [Row(name, _figures(one, measured.get(THEIRS))) for name, one in measured.items()]
    return Findings(rows, _targets(measured), notes)


def _entries(endpoint: str) -> list[Entry]:
    memory, refused = "loadtest.bench.ours:embedded", "loadtest.bench.ours:refused"
    limits = "loadtest.bench.contenders_limits:in_memory"
    return [
        Entry(OURS, memory, {"quotas": ROOMY}),
        Entry("Limiter, memory, sliding window", memory, {"quotas": ROOMY, "algorithm": "sliding_window"}),
        Entry("Limiter, memory, gcra", memory, {"quotas": ROOMY, "algorithm": "gcra"}),
        Entry("Limiter, memory, two windows", memory, {"quotas": TWO}),
        Entry(REFUSED, refused, {"endpoint": endpoint}),
        Entry(COMPILED, memory, {"quotas": ROOMY}, "compiled"),
        Entry("repeated refusal, compiled", refused, {"endpoint": endpoint}, "compiled"),
        Entry(THEIRS, limits, {"quotas": ROOMY}, "peers"),
        Entry("limits, memory: hit, get_window_stats", limits, {"quotas": ROOMY, "stats": True}, "peers"),
        Entry("limits, memory: two windows, two hits", limits, {"quotas": TWO}, "peers"),
    ]


def _figures(one: Measured, theirs: Measured | None) -> dict[str, float | None]:
    return {
        "CPU µs per check": one.median("cpu_us"),
        "checks/s": one.median("per_second"),
        "x CPU of limits": None if theirs is None else ratio(one, theirs, "cpu_us"),
    }


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    targets = []
    if OURS in measured:
        targets.append(BenchTarget("a check on the embedded store, µs", measured[OURS].median("cpu_us"), "at most", 15))
    best = measured.get(COMPILED, measured.get(OURS))
    if best is not None and THEIRS in measured:
        behind = ratio(best, measured[THEIRS], "cpu_us")
        targets.append(BenchTarget("its CPU, compiled, as a part of that of limits (an aim)", behind, "at most", 1))
    if REFUSED in measured:
        refused = measured[REFUSED]
        targets.append(BenchTarget("a repeated refusal, µs", refused.median("cpu_us"), "at most", 20))
        targets.append(BenchTarget("calls of 2,000 repeated refusals", refused.counts["calls"], "at most", 0))
    return targets
