"""The metrics of a service that has worked for a while, as it would show them."""

from __future__ import annotations

import collections

from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import Metric

from ratelimit.dynamodb import Stats
from ratelimit.metrics import exposition, store_metrics

STARTED = 1_800_000_000.0


def worker(
    *,
    allowed: int,
    denied: int,
    cached: int,
    logged: int = 0,
    write_units: float = 0,
    started: float = STARTED,
) -> list[Metric]:
    """One worker's: each admitted check is a call, and each refused one that the cache did not know."""
    stats = Stats(calls=collections.Counter(UpdateItem=allowed + denied - cached, GetItem=30), write_units=write_units)
    decisions = Counter("ratelimit_decisions", "Checks.", labels=["policy", "outcome", "reason"])
    decisions.add_metric(["hint", "allowed", "none"], allowed)
    decisions.add_metric(["hint", "denied", "quota"], denied)
    return [
        *store_metrics(stats),
        decisions,
        Counter("ratelimit_denials_cached", "Refusals.", cached),
        Counter("ratelimit_checks_leased", "Leased.", 0),
        Counter("ratelimit_checks_coalesced", "Coalesced.", 0),
        Counter("ratelimit_usage_written", "Events.", logged),
        Gauge("process_start_time_seconds", "Start.", started),
    ]


def text(*workers: list[Metric]) -> str:
    """As it is scraped."""
    body, _ = exposition({str(n): metrics for n, metrics in enumerate(workers, 1)}, "text/plain")
    return body.decode()
