"""The metrics of a service that has worked for a while, as it would show them."""

from __future__ import annotations

import collections

from ratelimit.dynamodb import Stats
from ratelimit.metrics import Family, Sample, counter, dynamodb_metrics, gauge
from ratelimit.prometheus import exposition

STARTED = 1_800_000_000.0


def worker(
    *,
    allowed: int,
    denied: int,
    cached: int,
    logged: int = 0,
    indexed: float = 0,
    write_units: float = 0,
    started: float = STARTED,
) -> list[Family]:
    """One worker's: each admitted check is a call, and each refused one that the cache did not know."""
    stats = Stats(calls=collections.Counter(UpdateItem=allowed + denied - cached, GetItem=30), write_units=write_units)
    decisions = [
        Sample("ratelimit_decisions_total", {"policy": "hint", "outcome": outcome, "reason": reason}, count)
        for outcome, reason, count in (("allowed", "none", allowed), ("denied", "quota", denied))
    ]
    return [
        *dynamodb_metrics(stats),
        Family("ratelimit_decisions", "Checks.", "counter", decisions),
        counter("ratelimit_denials_cached", "Refusals.", cached),
        counter("ratelimit_checks_leased", "Leased.", 0),
        counter("ratelimit_checks_coalesced", "Coalesced.", 0),
        counter("ratelimit_usage_written", "Events.", logged),
        counter("ratelimit_usage_indexed", "On a timeline.", indexed),
        gauge("process_start_time_seconds", "Start.", started),
    ]


def text(*workers: list[Family]) -> str:
    """As it is scraped."""
    body, _ = exposition({str(n): metrics for n, metrics in enumerate(workers, 1)}, "text/plain")
    return body.decode()
