"""What a warm check costs the client, against a stub that answers at once: on either lane, over plain HTTP and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from loadtest.bench import builds
from loadtest.bench.report import BenchReport, Row, Target, bench_report, conclude
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.stub import stub_server

BARE = "aiobotocore, a bare update_item"
SLOW = "check, aiobotocore lane"
FAST = "check, fast lane"
COMPILED = "check, fast lane, compiled"
GCRA = "check, fast lane, gcra"
APPLY = "store.apply, fast lane"
TLS = ", over TLS"

_QUOTAS = "1000000000/hour; 1000000000/day"
_BOTO = "loadtest.bench.contenders_boto:on_dynamodb"
_OURS = "loadtest.bench.ours:on_dynamodb"
_APPLY = "loadtest.bench.ours:applying"
_TIMES = 8


def command(
    rounds: Annotated[int, typer.Option(help="Turns of each contender.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one turn.")] = 0.8,
    at_once: Annotated[int, typer.Option(help="Checks at a time.")] = 32,
    uvloop: Annotated[bool, typer.Option(help="Run the clients on uvloop.")] = False,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
) -> None:
    """The client's own cost of a check, against a stub that answers at once."""
    conclude(run(rounds=rounds, seconds=seconds, at_once=at_once, uvloop=uvloop), json)


def run(*, rounds: int, seconds: float, at_once: int = 32, uvloop: bool = False) -> BenchReport:
    """256 users, two windows."""
    uncompiled = builds.compiled()
    notes = [f"not measured: the compiled build: {uncompiled}"] if uncompiled else []
    with ExitStack() as exits:
        shared = {"endpoint": exits.enter_context(stub_server()), "uvloop": uvloop}
        entries = _entries(shared, compiled=not uncompiled)
        if find_spec("trustme") is None:
            notes.append("not measured: TLS, which needs trustme")
        else:
            entries += exits.enter_context(_over_tls(shared, compiled=not uncompiled))
        measured, failed = contest(entries, rounds=rounds, seconds=seconds, at_once=at_once)
    notes += [f"not measured: {name}: {reason}" for name, reason in failed.items()]
    rows = [Row(name, _figures(one, measured.get(_peer(name)))) for name, one in measured.items()]
    options = f"--rounds {rounds} --seconds {seconds} --at-once {at_once}" + " --uvloop" * uvloop
    return bench_report("lane", rows, _targets(measured), notes, arguments=options)


def _entries(shared: dict[str, Any], *, compiled: bool) -> list[Entry]:
    check = {**shared, "quotas": _QUOTAS}
    entries = [
        Entry(BARE, _BOTO, shared),
        Entry(SLOW, _OURS, {**check, "fast": False}),
        Entry(FAST, _OURS, check),
        Entry(GCRA, _OURS, {**check, "algorithm": "gcra"}),
        Entry(APPLY, _APPLY, check),
    ]
    return [*entries, Entry(COMPILED, _OURS, check, compiled=True)] if compiled else entries


@contextmanager
def _over_tls(shared: dict[str, Any], *, compiled: bool) -> Iterator[list[Entry]]:
    """As DynamoDB is asked, with a certificate of our own."""
    import trustme

    with TemporaryDirectory() as kept:
        authority, bundle, server = trustme.CA(), Path(kept, "ca.pem"), Path(kept, "server.pem")
        authority.cert_pem.write_to_path(str(bundle))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(server))
        with stub_server(certificate=server) as endpoint:
            secure = {**shared, "endpoint": endpoint}
            check, trusting = {**secure, "quotas": _QUOTAS}, {"AWS_CA_BUNDLE": str(bundle)}
            entries = [
                Entry(BARE + TLS, _BOTO, secure, environment=trusting),
                Entry(FAST + TLS, _OURS, check, environment=trusting),
            ]
            if compiled:
                entries.append(Entry(COMPILED + TLS, _OURS, check, compiled=True, environment=trusting))
            yield entries


def _peer(name: str) -> str:
    return BARE + TLS if name.endswith(TLS) else BARE


def _figures(one: Measured, bare: Measured | None) -> dict[str, float | None]:
    return {
        "checks/s": one.median("per_second"),
        "p50 ms": one.median("p50_us") / 1000,
        "p99 ms": one.median("p99_us") / 1000,
        "CPU µs per check": one.median("cpu_us"),
        "times less than bare": None if bare is None else ratio(bare, one, "cpu_us"),
        "times its checks/s": None if bare is None else ratio(one, bare, "per_second"),
    }


def _targets(measured: dict[str, Measured]) -> list[Target]:
    targets = []
    for ours in (FAST, FAST + TLS):
        bare = _peer(ours)
        if ours in measured and bare in measured:
            less = ratio(measured[bare], measured[ours], "cpu_us")
            more = ratio(measured[ours], measured[bare], "per_second")
            targets.append(Target(f"CPU of {bare}, times that of: {ours}", less, "at least", _TIMES))
            targets.append(Target(f"checks/s, times those of {bare}: {ours}", more, "at least", _TIMES))
    return targets
