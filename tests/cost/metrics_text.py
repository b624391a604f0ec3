"""The metrics of a service that has worked for a while, as it would show them."""

from __future__ import annotations

from ratelimit.dynamodb import Stats
from ratelimit.metrics import Family, Sample, counter, exposition, gauge, of_store

STARTED = 1_800_000_000.0


def worker(
    *,
    allowed: int,
    denied: int,
    cached: int,
    logged: int = 0,
    write_units: float = 0,
    started: float = STARTED,
) -> list[Family]:
    """One worker's: each admitted check is a call, and each refused one that the cache did not know."""
    stats = Stats(calls={"UpdateItem": allowed + denied - cached, "GetItem": 30}, write_units=write_units)
    decisions = [
        Sample(number, {"policy": "hint", "outcome": outcome, "reason": reason}, "_total")
        for number, outcome, reason in ((allowed, "allowed", "none"), (denied, "denied", "quota"))
    ]
    return [
        *of_store(stats),
        Family("ratelimit_decisions", "Checks.", "counter", decisions),
        counter("ratelimit_denials_cached", "Refusals.", cached),
        counter("ratelimit_checks_leased", "Leased.", 0),
        counter("ratelimit_checks_coalesced", "Coalesced.", 0),
        counter("ratelimit_usage_written", "Events.", logged),
        gauge("process_start_time_seconds", "Start.", started),
    ]


def text(*workers: list[Family]) -> str:
    """As it is scraped."""
    body, _ = exposition({str(n): families for n, families in enumerate(workers, 1)}, "text/plain")
    return body.decode()
