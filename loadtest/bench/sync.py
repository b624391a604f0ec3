"""What a check costs without an event loop, beside what it could have been, boto3's client, and the bare exchange."""

from __future__ import annotations

from loadtest.bench.report import BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.stub import stub_server

MEMORY = "sync check, memory"
DYNAMODB = "sync check, DynamoDB (stub)"
BARE = "boto3's client, a bare update_item"
FLOOR = "a check's bytes on a bare socket"

_HERE = "loadtest.bench.contenders_sync"
_MEMORY_US, _DYNAMODB_US, _TIMES = 8, 45, 10


def run(rounds: Rounds = 7, seconds: Seconds = 0.5) -> Findings:
    """The limiter without an event loop, in memory and on a stub: one check after the other, but where threads are
    named."""
    with stub_server() as endpoint:
        measured, notes = contest(_entries(endpoint), rounds=rounds, seconds=seconds)
    rows = [Row(name, _figures(one, measured.get(BARE), measured.get(FLOOR))) for name, one in measured.items()]
    return Findings(rows, _targets(measured), notes)


def _entries(endpoint: str) -> list[Entry]:
    on_stub = {"endpoint": endpoint}
    return [
        Entry(MEMORY, f"{_HERE}:in_memory"),
        Entry("sync check, memory, gcra", f"{_HERE}:in_memory", {"algorithm": "gcra"}),
        Entry(DYNAMODB, f"{_HERE}:on_dynamodb", on_stub),
        Entry("sync check, DynamoDB (stub), gcra", f"{_HERE}:on_dynamodb", {**on_stub, "algorithm": "gcra"}),
        Entry("sync check, DynamoDB (stub), 16 threads", f"{_HERE}:on_dynamodb", {**on_stub, "threads": 16}),
        Entry("instead: an event loop in each thread", f"{_HERE}:loop_of_its_own", on_stub),
        Entry("instead: one event loop, in a thread", f"{_HERE}:loop_in_a_thread", on_stub),
        Entry(BARE, f"{_HERE}:bare", on_stub),
        Entry(FLOOR, f"{_HERE}:floor", on_stub),
        Entry("sync check, memory, compiled", f"{_HERE}:in_memory", build="compiled"),
        Entry("sync check, DynamoDB (stub), compiled", f"{_HERE}:on_dynamodb", on_stub, "compiled"),
    ]


def _figures(one: Measured, bare: Measured | None, floor: Measured | None) -> dict[str, float | None]:
    return {
        "CPU µs per check": one.median("cpu_us"),
        "p50 µs": one.median("p50_us"),
        "p99 µs": one.median("p99_us"),
        "checks/s": one.median("per_second"),
        "times less CPU than boto3": None if bare is None else ratio(bare, one, "cpu_us"),
        "times the bare socket": None if floor is None else ratio(one, floor, "cpu_us"),
    }


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    targets = []
    for name, most in ((MEMORY, _MEMORY_US), (DYNAMODB, _DYNAMODB_US)):
        if name in measured:
            targets.append(BenchTarget(f"{name}, µs", measured[name].median("cpu_us"), "at most", most))
    if DYNAMODB in measured and BARE in measured:
        less = ratio(measured[BARE], measured[DYNAMODB], "cpu_us")
        targets.append(BenchTarget(f"CPU of {BARE}, times that of: {DYNAMODB}", less, "at least", _TIMES))
    return targets
