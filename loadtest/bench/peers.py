"""Against the peers: zae-limiter on DynamoDB Local, `limits` on Redis, bare aiobotocore; the same loop for all."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from loadtest.bench import peers_home
from loadtest.bench.crew import Entry, Measured, contest, ratio
from loadtest.bench.engines import Absent, engine, redis
from loadtest.bench.ours import ROOMY
from loadtest.bench.sheet import Row, Sheet, Target, conclude, sheet
from loadtest.bench.stub import stub_server

FAST = "ratelimit, fast lane"
SLOW = "ratelimit, aiobotocore lane"
BARE = "bare aiobotocore update_item"
ZAE = "zae-limiter 0.17"
STUB = "ratelimit, fast lane, stub"
REDIS = "limits 5.8 + Redis, coredis (its default)"
REDIS_STATS = "the same, and the window's state for headers"
REDISPY = "limits 5.8 + Redis, redis-py"


def command(
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one turn.")] = 1.5,
    at_once: Annotated[int, typer.Option(help="Checks at a time.")] = 32,
    uvloop: Annotated[bool, typer.Option(help="Run all clients on uvloop.")] = False,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
) -> None:
    """Against zae-limiter and `limits` with Redis: 256 users, so many checks at a time."""
    conclude(run(rounds=rounds, seconds=seconds, at_once=at_once, uvloop=uvloop), json)


def run(*, rounds: int, seconds: float, at_once: int = 32, uvloop: bool = False) -> Sheet:
    """Everything that this machine has; the notes say what it has not."""
    notes: list[str] = []
    python, missing = peers_home.python()
    if missing:
        notes.append(missing)
    with ExitStack() as exits:
        entries: list[Entry] = []
        try:
            entries += _on_dynamodb(exits.enter_context(engine("dynamodb-local")), python, uvloop=uvloop)
        except Absent as reason:
            notes.append(f"not measured: everything on DynamoDB Local: {reason}")
        try:
            entries += _on_redis(exits.enter_context(redis()), python, uvloop=uvloop)
        except Absent as reason:
            notes.append(f"not measured: limits with Redis: {reason}")
        stub = exits.enter_context(stub_server())
        entries.append(Entry(STUB, "loadtest.bench.ours:on_dynamodb", {"endpoint": stub, "uvloop": uvloop}))
        measured, failed = contest(entries, rounds=rounds, seconds=seconds, at_once=at_once)
    notes += [f"not measured: {name}: {reason}" for name, reason in failed.items()]
    rows = [Row(name, _figures(one)) for name, one in measured.items()]
    options = f"--rounds {rounds} --seconds {seconds} --at-once {at_once}" + " --uvloop" * uvloop
    return sheet("peers", rows, _targets(measured), notes, arguments=options)


def _on_dynamodb(endpoint: str, python: str | None, *, uvloop: bool) -> list[Entry]:
    """The fast lane comes first, and makes the table for those after it."""
    ours = {"endpoint": endpoint, "create": True, "uvloop": uvloop}
    other = {"endpoint": endpoint, "uvloop": uvloop}
    entries = [
        Entry(FAST, "loadtest.bench.ours:on_dynamodb", ours),
        Entry(SLOW, "loadtest.bench.ours:on_dynamodb", {**ours, "fast": False}),
        Entry(BARE, "loadtest.bench.contenders_boto:on_dynamodb", other),
    ]
    if python is not None:
        entries.append(Entry(ZAE, "loadtest.bench.contenders_zae:on_dynamodb", other, python))
    return entries


def _on_redis(url: str, python: str | None, *, uvloop: bool) -> list[Entry]:
    if python is None:
        return []
    return [
        Entry(
            name,
            "loadtest.bench.contenders_limits:on_redis",
            {"url": url, "quotas": ROOMY, "client": client, "stats": stats, "uvloop": uvloop},
            python,
        )
        for name, client, stats in (
            (REDIS, "coredis", False), (REDIS_STATS, "coredis", True), (REDISPY, "redispy", False),
        )
    ]  # fmt: skip


def _figures(one: Measured) -> dict[str, float | None]:
    return {
        "checks/s": one.median("per_second"),
        "p50 ms": one.median("p50_us") / 1000,
        "p99 ms": one.median("p99_us") / 1000,
        "client CPU µs per check": one.median("cpu_us"),
        "write units per check": one.counts.get("units_per_check"),
    }


def _targets(measured: dict[str, Measured]) -> list[Target]:
    if FAST not in measured:
        return []
    ours = measured[FAST]
    targets = []
    if ZAE in measured:
        zae = measured[ZAE]
        targets.append(Target(f"checks/s, times those of {ZAE}", ratio(ours, zae, "per_second"), "at least", 4))
        targets.append(Target(f"CPU of {ZAE}, times ours", ratio(zae, ours, "cpu_us"), "at least", 20))
    if REDIS in measured:
        part = ratio(ours, measured[REDIS], "cpu_us")
        targets.append(Target(f"client CPU per check, as a part of that of {REDIS}", part, "at most", 0.5))
    if (units := ours.counts.get("units_per_check")) is not None:
        targets.append(Target("write units per check", units, "at most", 1.0))
    return targets
