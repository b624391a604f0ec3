"""The embedded store against `limits` in memory, and what a repeated refusal costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench import builds, peers_home
from loadtest.bench.ours import ROOMY
from loadtest.bench.report import BenchReport, Row, Target, bench_report, conclude
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.stub import stub_server

OURS = "Limiter, memory"
COMPILED = "Limiter, memory, compiled"
REFUSED = "repeated refusal, DynamoDB (stub)"
REFUSED_COMPILED = "repeated refusal, compiled"
THEIRS = "limits, memory: hit"
TWO = "1000000000/hour; 1000000000/day"


def command(
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 7,
    seconds: Annotated[float, typer.Option(help="Length of one turn.")] = 0.4,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
) -> None:
    """The embedded store against `limits` in memory; and what a repeated refusal costs."""
    conclude(run(rounds=rounds, seconds=seconds), json)


def run(*, rounds: int, seconds: float) -> BenchReport:
    """One check after the other."""
    python, missing = peers_home.python()
    uncompiled = builds.compiled()
    with stub_server(mood="refusing") as endpoint:
        entries = _entries(endpoint, python, compiled=not uncompiled)
        measured, failed = contest(entries, rounds=rounds, seconds=seconds, at_once=1)
    notes = [missing] if missing else []
    notes += [f"not measured: the compiled build: {uncompiled}"] if uncompiled else []
    notes += [f"not measured: {name}: {reason}" for name, reason in failed.items()]
    rows = [Row(name, _figures(one, measured.get(THEIRS))) for name, one in measured.items()]
    return bench_report("embedded", rows, _targets(measured), notes, arguments=f"--rounds {rounds} --seconds {seconds}")


def _entries(endpoint: str, python: str | None, *, compiled: bool) -> list[Entry]:
    memory, limits = "loadtest.bench.ours:embedded", "loadtest.bench.contenders_limits:in_memory"
    entries = [
        Entry(OURS, memory, {"quotas": ROOMY}),
        Entry("Limiter, memory, sliding window", memory, {"quotas": ROOMY, "algorithm": "sliding_window"}),
        Entry("Limiter, memory, gcra", memory, {"quotas": ROOMY, "algorithm": "gcra"}),
        Entry("Limiter, memory, two windows", memory, {"quotas": TWO}),
        Entry(REFUSED, "loadtest.bench.ours:refused", {"endpoint": endpoint}),
    ]
    if compiled:
        entries += [
            Entry(COMPILED, memory, {"quotas": ROOMY}, compiled=True),
            Entry(REFUSED_COMPILED, "loadtest.bench.ours:refused", {"endpoint": endpoint}, compiled=True),
        ]
    if python is not None:
        entries += [
            Entry(THEIRS, limits, {"quotas": ROOMY}, python),
            Entry("limits, memory: hit, get_window_stats", limits, {"quotas": ROOMY, "stats": True}, python),
            Entry("limits, memory: two windows, two hits", limits, {"quotas": TWO}, python),
        ]
    return entries


def _figures(one: Measured, theirs: Measured | None) -> dict[str, float | None]:
    return {
        "CPU µs per check": one.median("cpu_us"),
        "checks/s": one.median("per_second"),
        "x CPU of limits": None if theirs is None else ratio(one, theirs, "cpu_us"),
    }


def _targets(measured: dict[str, Measured]) -> list[Target]:
    targets = []
    if OURS in measured:
        targets.append(Target("a check on the embedded store, µs", measured[OURS].median("cpu_us"), "at most", 15))
    best = measured.get(COMPILED, measured.get(OURS))
    if best is not None and THEIRS in measured:
        behind = ratio(best, measured[THEIRS], "cpu_us")
        targets.append(Target("its CPU, compiled, as a part of that of limits (an aim)", behind, "at most", 1))
    if REFUSED in measured:
        refused = measured[REFUSED]
        targets.append(Target("a repeated refusal, µs", refused.median("cpu_us"), "at most", 20))
        targets.append(Target("calls of 2,000 repeated refusals", refused.counts["calls"], "at most", 0))
    return targets
