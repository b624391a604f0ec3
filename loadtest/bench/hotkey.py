"""One hot key: what coalescing is worth, what it costs where it is of no use, and whether it stays exact."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from loadtest.bench.ours import exactness
from loadtest.bench.report import AtOnce, BenchTarget, Findings, Rounds, Row, Seconds, Uvloop
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.servers import Absent, engine
from loadtest.bench.stub import stub_server

COALESCED = "one key, fast lane, coalesced"
PLAIN = "one key, fast lane, each on its own"
SLOW = "one key, aiobotocore lane, each on its own"
NOTHING = "no check: callers who wait together"
MANY = "256 keys, fast lane, coalescer on"
MANY_PLAIN = "256 keys, fast lane, coalescer off"

_ENTRIES: dict[str, dict[str, Any]] = {
    COALESCED: {"users": 1},
    PLAIN: {"users": 1, "coalesced": False},
    SLOW: {"users": 1, "coalesced": False, "fast": False},
    MANY: {"apart": True},
    MANY_PLAIN: {"apart": True, "coalesced": False},
}
ENGINE = "ministack"
_QUOTA = 5_000
_CHECKS = 8_000


def run(
    rounds: Rounds = 7,
    seconds: Seconds = 0.8,
    at_once: AtOnce = 256,
    delay: Annotated[float, typer.Option(help="Seconds that the store takes to answer.")] = 0.002,
    uvloop: Uvloop = False,
) -> Findings:
    """One hot key, 256 at a time, coalesced and each check on its own: on a stub that answers late, and then on an
    engine that counts, up to the quota and beyond."""
    with stub_server(delay=delay) as endpoint:
        shared = {"endpoint": endpoint, "users": max(256, at_once), "pool": at_once, "uvloop": uvloop}
        entries = [
            Entry(name, "loadtest.bench.ours:on_dynamodb", {**shared, **options}) for name, options in _ENTRIES.items()
        ]
        entries.append(Entry(NOTHING, "loadtest.bench.ours:nothing", {"delay": delay, "uvloop": uvloop}))
        measured, notes = contest(entries, rounds=rounds, seconds=seconds, at_once=at_once)
    if PLAIN in measured and NOTHING in measured:
        most = ratio(measured[NOTHING], measured[PLAIN], "per_second")
        notes.append(f"if a coalesced check took no time at all, it would be {most:.2f} times: {PLAIN}")
    targets = _targets(measured)
    _add_exactness(at_once, targets, notes)
    return Findings([Row(name, _figures(one)) for name, one in measured.items()], targets, notes)


def _add_exactness(at_once: int, targets: list[BenchTarget], notes: list[str]) -> None:
    """Far more checks of one key than its quota allows, on an engine that counts."""
    try:
        with engine(ENGINE) as endpoint:
            found = asyncio.run(exactness(endpoint, quota=_QUOTA, checks=_CHECKS, at_once=at_once))
    except Absent as reason:
        notes.append(f"not measured: exactness: {reason}")
        return
    notes.append(
        f"on {ENGINE}, of {_CHECKS:,} checks of one key: "
        + ", ".join(f"{number:,.0f} {name}" for name, number in found.items())
    )
    off = abs(found["admitted"] - _QUOTA) + abs(found["counted"] - _QUOTA)
    targets.append(BenchTarget("admitted and counted beside the quota", off, "at most", 0))
    units = found["write units"] / _CHECKS
    targets.append(BenchTarget("write units per check, as the engine reports them", units, "at most", 0.02))


def _figures(one: Measured) -> dict[str, float | None]:
    return {
        "checks/s": one.median("per_second"),
        **one.milliseconds(),
        "CPU µs per check": one.median("cpu_us"),
        "writes per check": one.counts.get("writes_per_check"),
    }


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    targets = []
    for name, bound in ((PLAIN, 2.5), (SLOW, 40)):
        if COALESCED in measured and name in measured:
            times = ratio(measured[COALESCED], measured[name], "per_second")
            targets.append(BenchTarget(f"checks/s, times those of: {name}", times, "at least", bound))
    if COALESCED in measured:
        writes = measured[COALESCED].counts["writes_per_check"]
        targets.append(BenchTarget("writes (of one unit each) per check", writes, "at most", 0.02))
    if MANY in measured and MANY_PLAIN in measured:
        kept = ratio(measured[MANY], measured[MANY_PLAIN], "per_second")
        targets.append(
            BenchTarget("checks/s of 256 keys, as a part of those without the coalescer", kept, "at least", 0.9)
        )
    return targets
