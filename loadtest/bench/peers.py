"""Against the peers: zae-limiter, bare aiobotocore, and `limits` on Redis; the same loop for all.

Whoever speaks DynamoDB may open 64 connections, and is measured twice: on the replay server, which answers everybody at
once with what the engine had answered (Redis is as quick), and on DynamoDB Local itself, where the engine is most of
what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from loadtest.bench.ours import ROOMY
from loadtest.bench.replay import replay_server, tally
from loadtest.bench.report import AtOnce, BenchTarget, Findings, Rounds, Row, Seconds, Uvloop
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.servers import Absent, engine, redis
from loadtest.talking import TalkingProgram

FAST = "ratelimit, fast lane"
COMPILED = "ratelimit, fast lane, compiled"
SLOW = "ratelimit, aiobotocore lane"
BARE = "bare aiobotocore update_item"
ZAE = "zae-limiter 0.17"
REDIS = "limits 5.8 + Redis, coredis (its default)"
REDIS_STATS = "the same, and the window's state for headers"
REDISPY = "limits 5.8 + Redis, redis-py"

REPLAY = "replay server"
LOCAL = "DynamoDB Local"


def run(rounds: Rounds = 5, seconds: Seconds = 1.5, at_once: AtOnce = 32, uvloop: Uvloop = False) -> Findings:
    """Against zae-limiter and `limits` with Redis: 256 users, so many checks at a time, with what this machine has."""
    notes: list[str] = []
    with ExitStack() as exits:
        entries, replaying = _open(exits, notes, uvloop=uvloop)
        measured, failed = contest(entries, rounds=rounds, seconds=seconds, at_once=at_once)
    notes += [*failed, *_on_the_engines(measured, replaying)]
    return Findings([Row(name, _figures(one)) for name, one in measured.items()], _targets(measured), notes)


def _open(exits: ExitStack, notes: list[str], *, uvloop: bool) -> tuple[list[Entry], TalkingProgram | None]:
    """Return who can be measured, and the replay server, if there is an engine to stand before."""
    entries: list[Entry] = []
    replaying = None
    local = _there(exits, lambda: engine("dynamodb-local"), f"everything on {LOCAL}", notes)
    behind = local or _there(exits, lambda: engine("ministack"), f"everything on the {REPLAY}", notes)
    if behind is not None:
        replaying = exits.enter_context(replay_server(behind))
        entries += _on_dynamodb(REPLAY, {"endpoint": replaying.endpoint, "uvloop": uvloop})
    if (url := _there(exits, redis, "limits with Redis", notes)) is not None:
        entries += [
            Entry(
                name, "loadtest.bench.contenders_limits:on_redis",
                {"url": url, "quotas": ROOMY, "client": client, "stats": stats, "uvloop": uvloop}, "peers",
            )
            for name, client, stats in (
                (REDIS, "coredis", False), (REDIS_STATS, "coredis", True), (REDISPY, "redispy", False),
            )
        ]  # fmt: skip
    if local is not None:
        entries += _on_dynamodb(LOCAL, {"endpoint": local, "uvloop": uvloop})
    return entries, replaying


def _there(
    exits: ExitStack, opened: Callable[[], AbstractContextManager[str]], what: str, notes: list[str]
) -> str | None:
    """Return where it listens; None if it is not on this machine, and a note of what is not measured therefore."""
    try:
        return exits.enter_context(opened())
    except Absent as reason:
        notes.append(f"not measured: {what}: {reason}")
        return None


def _on_dynamodb(where: str, other: dict[str, Any]) -> list[Entry]:
    """The fast lane comes first, and makes the table for those after it."""
    here, ours = "loadtest.bench.ours:on_dynamodb", {**other, "create": True}
    return [
        Entry(f"{FAST}, {where}", here, ours),
        Entry(f"{COMPILED}, {where}", here, ours, "compiled"),
        Entry(f"{SLOW}, {where}", here, {**ours, "fast": False}),
        Entry(f"{BARE}, {where}", "loadtest.bench.contenders_boto:on_dynamodb", other),
        Entry(f"{ZAE}, {where}", "loadtest.bench.contenders_zae:on_dynamodb", other, "peers"),
    ]


def _figures(one: Measured) -> dict[str, float | None]:
    return {
        "checks/s": one.median("per_second"),
        **one.milliseconds(),
        "client CPU µs per check": one.median("cpu_us"),
        # Ours makes no calls but writes.
        "calls per check": one.counts.get("calls_per_check", one.counts.get("writes_per_check")),
        "write units per check": one.counts.get("units_per_check"),
    }


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    """Of the compiled build, where there is one."""
    ours = measured.get(f"{COMPILED}, {REPLAY}", measured.get(f"{FAST}, {REPLAY}"))
    if ours is None:
        return []
    targets = []
    if (zae := measured.get(f"{ZAE}, {REPLAY}")) is not None:
        per_second, cpu = ratio(ours, zae, "per_second"), ratio(zae, ours, "cpu_us")
        targets.append(BenchTarget(f"checks/s, times those of {ZAE} ({REPLAY})", per_second, "at least", 4))
        targets.append(BenchTarget(f"CPU of {ZAE}, times ours ({REPLAY})", cpu, "at least", 20))
    if REDIS in measured:
        part = ratio(ours, measured[REDIS], "cpu_us")
        promise = f"client CPU per check ({REPLAY}), as a part of that of {REDIS}"
        targets.append(BenchTarget(promise, part, "at most", 0.5))
    if (units := ours.counts.get("units_per_check")) is not None:
        targets.append(BenchTarget("write units per check", units, "at most", 1.0))
    return targets


def _on_the_engines(measured: dict[str, Measured], replaying: TalkingProgram | None) -> list[str]:
    """How much of this was replayed; and the same ratios on DynamoDB Local, which are its figures more than ours."""
    notes = []
    if replaying is not None:
        counts = tally(replaying)
        replayed, handed_on = counts.replayed.get("UpdateItem", 0), counts.handed_on.get("UpdateItem", 0)
        notes.append(
            f"the {REPLAY} was asked for {replayed + handed_on:,} UpdateItems and handed {handed_on:,} of them on to "
            f"the engine behind it: the first of their kind, or refused"
        )
    ours, zae = (measured.get(f"{name}, {LOCAL}") for name in (FAST, ZAE))
    if ours is not None and zae is not None:
        per_second, cpu = ratio(ours, zae, "per_second"), ratio(zae, ours, "cpu_us")
        notes.append(f"on {LOCAL}, one answer at a time: {per_second:.1f} times the checks/s of {ZAE}, CPU 1/{cpu:.1f}")
    return notes
