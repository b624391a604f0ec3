"""What a warm check costs the client, against a stub that answers at once: on either lane, over plain HTTP and TLS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadtest.bench.ours import TWO
from loadtest.bench.report import AtOnce, BenchTarget, Findings, Rounds, Row, Seconds, Uvloop
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.stub import stub_server

BARE = "aiobotocore, a bare update_item"
SLOW = "check, aiobotocore lane"
FAST = "check, fast lane"
COMPILED = "check, fast lane, compiled"
GCRA = "check, fast lane, gcra"
APPLY = "store.apply, fast lane"
TLS = ", over TLS"

_BOTO = "loadtest.bench.contenders_boto:on_dynamodb"
_OURS = "loadtest.bench.ours:on_dynamodb"
_APPLY = "loadtest.bench.ours:applying"
_TIMES = 8


def run(rounds: Rounds = 5, seconds: Seconds = 0.8, at_once: AtOnce = 32, uvloop: Uvloop = False) -> Findings:
    """The client's own cost of a check, against a stub that answers at once: 256 users, two windows."""
    notes = []
    with ExitStack() as exits:
        shared = {"endpoint": exits.enter_context(stub_server()), "uvloop": uvloop}
        entries = _entries(shared)
        if find_spec("trustme") is None:
            notes.append("not measured: TLS, which needs trustme")
        else:
            entries += exits.enter_context(_over_tls(shared))
        measured, failed = contest(entries, rounds=rounds, seconds=seconds, at_once=at_once)
    rows = [Row(name, _figures(one, measured.get(_peer(name)))) for name, one in measured.items()]
    return Findings(rows, _targets(measured), [*notes, *failed])


def _entries(shared: dict[str, Any]) -> list[Entry]:
    check = {**shared, "quotas": TWO}
    return [
        Entry(BARE, _BOTO, shared),
        Entry(SLOW, _OURS, {**check, "fast": False}),
        Entry(FAST, _OURS, check),
        Entry(GCRA, _OURS, {**check, "algorithm": "gcra"}),
        Entry(APPLY, _APPLY, check),
        Entry(COMPILED, _OURS, check, "compiled"),
    ]


@contextmanager
def _over_tls(shared: dict[str, Any]) -> Iterator[list[Entry]]:
    """As DynamoDB is asked, with a certificate of our own."""
    import trustme

    with TemporaryDirectory() as kept:
        authority, bundle, server = trustme.CA(), Path(kept, "ca.pem"), Path(kept, "server.pem")
        authority.cert_pem.write_to_path(str(bundle))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(server))
        with stub_server(certificate=server) as endpoint:
            secure = {**shared, "endpoint": endpoint}
            check, trusting = {**secure, "quotas": TWO}, {"AWS_CA_BUNDLE": str(bundle)}
            yield [
                Entry(BARE + TLS, _BOTO, secure, environment=trusting),
                Entry(FAST + TLS, _OURS, check, environment=trusting),
                Entry(COMPILED + TLS, _OURS, check, "compiled", trusting),
            ]


def _peer(name: str) -> str:
    return BARE + TLS if name.endswith(TLS) else BARE


def _figures(one: Measured, bare: Measured | None) -> dict[str, float | None]:
    return {
        "checks/s": one.median("per_second"),
        **one.milliseconds(),
        "CPU µs per check": one.median("cpu_us"),
        "times less than bare": None if bare is None else ratio(bare, one, "cpu_us"),
        "times its checks/s": None if bare is None else ratio(one, bare, "per_second"),
    }


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    targets = []
    for ours in (FAST, FAST + TLS):
        bare = _peer(ours)
        if ours in measured and bare in measured:
            less = ratio(measured[bare], measured[ours], "cpu_us")
            more = ratio(measured[ours], measured[bare], "per_second")
            targets.append(BenchTarget(f"CPU of {bare}, times that of: {ours}", less, "at least", _TIMES))
            targets.append(BenchTarget(f"checks/s, times those of {bare}: {ours}", more, "at least", _TIMES))
    return targets
