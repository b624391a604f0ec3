"""A Starlette app on one uvicorn worker: bare, and with the middleware on every store."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from loadtest.bench import requester
from loadtest.bench.builds import Build, absent
from loadtest.bench.report import AtOnce, BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Measured, difference, in_turns, ratio
from loadtest.bench.servers import module
from loadtest.bench.stub import stub_server


class _Variant(NamedTuple):
    name: str
    app: str
    """As `asgi_server` names it."""
    build: Build = ""


BARE = _Variant("bare app", "bare")
EMBEDDED = _Variant("middleware, embedded store", "embedded")
FAST = _Variant("middleware, DynamoDB (stub), fast lane", "fast")
SLOW = _Variant("middleware, DynamoDB (stub), aiobotocore lane", "slow")
EMBEDDED_COMPILED = _Variant("the same, compiled", "embedded", "compiled")
FAST_COMPILED = _Variant("the same, compiled", "fast", "compiled")
_FROZEN = _Variant("the same, compiled, after gc.freeze()", "frozen", "compiled")
_VARIANTS = (BARE, EMBEDDED, EMBEDDED_COMPILED, FAST, FAST_COMPILED, _FROZEN, SLOW)


def run(rounds: Rounds = 5, seconds: Seconds = 2, at_once: AtOnce = 32) -> Findings:
    """A Starlette app on one uvicorn worker: bare, and with the middleware on every store; one of them busy at a
    time."""
    lacking = absent(variant.build for variant in _VARIANTS)
    measured = {variant: Measured() for variant in _VARIANTS if variant.build not in lacking}
    with ExitStack() as exits:
        endpoint = exits.enter_context(stub_server())
        servers = {
            variant: exits.enter_context(
                module("loadtest.bench.asgi_server", variant.app, endpoint, build=variant.build)
            )
            for variant in measured
        }
        for server in servers.values():
            requester.request_many(server.port, seconds=min(1, seconds), at_once=at_once)
        for variant in in_turns(measured, rounds):
            turn = requester.turn_of(servers[variant], seconds=seconds, at_once=at_once)
            measured[variant].turns.append(turn)
    rows = [Row(variant.name, _figures(one, measured[BARE])) for variant, one in measured.items()]
    notes = [f"requests by {requester.client()}, uvicorn on uvloop and httptools", *lacking.values()]
    return Findings(rows, _targets(measured), notes)


def _figures(one: Measured, bare: Measured) -> dict[str, float | None]:
    return {
        "requests/s": one.median("per_second"),
        "part of bare": ratio(one, bare, "per_second"),
        "CPU µs per request": one.median("cpu_us"),
        "CPU µs more than bare": difference(one, bare, "cpu_us"),
        "part of bare, by CPU": ratio(bare, one, "cpu_us"),
    }


def _targets(measured: dict[_Variant, Measured]) -> list[BenchTarget]:
    """Of the compiled build, where there is one."""
    bare, slow = measured[BARE], measured[SLOW]
    embedded = measured.get(EMBEDDED_COMPILED, measured[EMBEDDED])
    fast = measured.get(FAST_COMPILED, measured[FAST])
    return [
        BenchTarget("fast lane, part of the bare app's requests/s", ratio(fast, bare, "per_second"), "at least", 0.45),
        BenchTarget("fast lane, times the aiobotocore lane's", ratio(fast, slow, "per_second"), "at least", 8),
        BenchTarget("embedded store, part of the bare app's", ratio(embedded, bare, "per_second"), "at least", 0.7),
    ]
