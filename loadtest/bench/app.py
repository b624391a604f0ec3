"""A Starlette app on one uvicorn worker: bare, and with the middleware on every store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import typer

from loadtest.bench import builds, requester
from loadtest.bench.report import BenchReport, Row, Target, bench_report, conclude
from loadtest.bench.stub import stub_server

_NAMES = {
    "bare": "bare app",
    "embedded": "middleware, embedded store",
    "embedded, compiled": "the same, compiled",
    "fast": "middleware, DynamoDB (stub), fast lane",
    "fast, compiled": "the same, compiled",
    "frozen, compiled": "the same, compiled, after gc.freeze()",
    "slow": "middleware, DynamoDB (stub), aiobotocore lane",
}
_COMPILED = ", compiled"
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_REGION": "eu-west-1"}


class _Turn(NamedTuple):
    per_second: float
    cpu_us: float


def command(
    rounds: Annotated[int, typer.Option(help="Turns of each variant.")] = 5,
    seconds: Annotated[int, typer.Option(help="Length of one turn, in whole seconds.")] = 2,
    at_once: Annotated[int, typer.Option(help="Connections.")] = 32,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
) -> None:
    """A Starlette app on one uvicorn worker: bare, and with the middleware on every store."""
    conclude(run(rounds=rounds, seconds=seconds, at_once=at_once), json)


def run(*, rounds: int, seconds: float, at_once: int = 32) -> BenchReport:
    """A server for each variant, one of them busy at a time."""
    uncompiled = builds.compiled()
    variants = [name for name in _NAMES if not (uncompiled and name.endswith(_COMPILED))]
    turns: dict[str, list[_Turn]] = {variant: [] for variant in variants}
    with ExitStack() as exits:
        endpoint = exits.enter_context(stub_server())
        ports = {variant: exits.enter_context(_server(variant, endpoint)) for variant in variants}
        for port in ports.values():
            requester.request_many(port, seconds=min(1, seconds), at_once=at_once)
        for number in range(rounds):
            for variant in reversed(variants) if number % 2 else variants:
                turns[variant].append(_turn(ports[variant], seconds, at_once))
    rows = [Row(_NAMES[variant], _figures(one, turns["bare"])) for variant, one in turns.items()]
    client = "wrk" if requester.has_wrk() else "our own client (there is no wrk)"
    notes = [f"requests by {client}, uvicorn on uvloop and httptools; all share this machine's cores"]
    notes += [f"not measured: the compiled build: {uncompiled}"] if uncompiled else []
    options = f"--rounds {rounds} --seconds {seconds} --at-once {at_once}"
    return bench_report("app", rows, _targets(turns), notes, arguments=options)


def _turn(port: int, seconds: float, at_once: int) -> _Turn:
    before = float(requester.read(port, "/cpu"))
    rate, requests = requester.request_many(port, seconds=seconds, at_once=at_once)
    used = float(requester.read(port, "/cpu")) - before
    return _Turn(rate, used / requests * 1e6)


def _figures(turns: list[_Turn], bare: list[_Turn]) -> dict[str, float | None]:
    cpu = median(turn.cpu_us for turn in turns)
    return {
        "requests/s": median(turn.per_second for turn in turns),
        "part of bare": _ratio(turns, bare, "per_second"),
        "CPU µs per request": cpu,
        "CPU µs more than bare": cpu - median(turn.cpu_us for turn in bare),
        "part of bare, by CPU": _ratio(bare, turns, "cpu_us"),
    }


def _ratio(one: list[_Turn], other: list[_Turn], figure: str) -> float:
    pairs = zip(one, other, strict=True)
    return float(median(getattr(mine, figure) / getattr(theirs, figure) for mine, theirs in pairs))


def _targets(turns: dict[str, list[_Turn]]) -> list[Target]:
    """Of the compiled build, where there is one."""
    embedded, fast = (turns.get(f"{one}{_COMPILED}", turns[one]) for one in ("embedded", "fast"))
    bare, slow = turns["bare"], turns["slow"]
    return [
        Target("fast lane, part of the bare app's requests/s", _ratio(fast, bare, "per_second"), "at least", 0.45),
        Target("fast lane, times the aiobotocore lane's", _ratio(fast, slow, "per_second"), "at least", 8),
        Target("embedded store, part of the bare app's", _ratio(embedded, bare, "per_second"), "at least", 0.7),
    ]


@contextmanager
def _server(variant: str, endpoint: str) -> Iterator[int]:
    command = [sys.executable, "-m", "loadtest.bench.app_server", variant.removesuffix(_COMPILED), endpoint]
    environment = {**os.environ, **_CREDENTIALS}
    if variant.endswith(_COMPILED):
        environment |= builds.environment()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()
