"""The numbers that the parts keep anyway, as families: read when somebody asks, and by nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

from ratelimit.directory import DirectoryStats
from ratelimit.limiter import Limiter
from ratelimit.limiter.background import Loss
from ratelimit.metrics.families import Family, Sample, counter, counters, gauge
from ratelimit.store import MemoryStore
from ratelimit.store.follower import MirrorStats
from ratelimit.usage.stats import UsageStats

if TYPE_CHECKING:
    from ratelimit.dynamodb.stats import Stats

BREAKER_STATES: Final = ("closed", "half_open", "open")

_USAGE: Final = {
    "accepted": "Usage events taken over.",
    "written": "Usage events in the table.",
    "retried": "Usage events sent again.",
    "dropped": "Usage events lost: no room, no time left at the end, or refused by the store.",
    "spilled": "Usage events kept in the journal only, because the queue was full.",
    "replayed": "Usage events found in the journal of a process that ended before.",
    "erased": "Usage events in a journal that were not written, because the user was erased meanwhile.",
    "unjournaled": "Usage events meant for the journal that the disk did not take.",
    "torn": "Segments of the journal that ended in a broken record.",
    "damaged": "Segments of the journal that were damaged before their end, and kept.",
}
_USAGE_NOW: Final = {
    "depth": "Usage events that wait in memory.",
    "in_flight": "Usage events on their way to the table.",
    "journal_bytes": "Bytes in the journal.",
}
_DIRECTORY: Final = {
    "hits": "Questions about users and plans answered from the cache.",
    "reads": "Questions about users and plans asked of the store.",
    "shared": "Questions that joined a read under way.",
    "failures": "Reads of users and plans without a usable answer.",
    "spared": "Reads not even tried, because the store had failed repeatedly.",
    "late": "Questions that gave up waiting for a read.",
    "stale": "Questions answered by what was known before.",
    "without": "Times that a policy's own quotas had to do, because nothing was known.",
    "unknown_plans": "Times that a policy's own quotas held, because the user's plan does not exist.",
    "evicted": "Answers that gave way to others before their time was up.",
}
_MIRROR: Final = {
    "written": "Writes that the mirror has taken.",
    "failed": "Writes that the mirror did not take.",
    "dropped": "Writes that the mirror was not even given: too many waited.",
    "different": "Writes after which a field stood elsewhere than in the store that decides.",
}


def of_limiter(limiter: Limiter) -> list[Family]:
    """Of one limiter."""
    lost = {loss: limiter.background.lost[loss] for loss in get_args(Loss)}
    state = limiter.breaker.state
    states = [Sample(float(state == each), {"state": each}) for each in BREAKER_STATES]
    stats = limiter.stats
    return [
        counter("ratelimit_denials_cached", "Refusals repeated without asking the store.", stats.denials_cached),
        counter("ratelimit_checks_leased", "Checks granted from units taken ahead.", stats.leased),
        counter("ratelimit_checks_coalesced", "Checks that shared the write of another.", stats.coalesced),
        counters("ratelimit_units_lost", "Units that the store did not take in the background.", "kind", lost),
        counter("ratelimit_alerts_dropped", "Alerts not raised: too many were being handled.", limiter.alerts.dropped),
        Family("ratelimit_breaker_state", "1 for the state that the circuit breaker is in.", "gauge", states),
    ]


def of_webhook(sent: int, failed: int) -> list[Family]:
    """Of the receiver of alerts."""
    results = {"sent": sent, "failed": failed}
    return [counters("ratelimit_alerts", "Alerts posted to the webhook, by how it ended.", "result", results)]


def of_store(stats: Stats) -> list[Family]:
    """Of DynamoDB. Its units are known only where the store's URL says `consumed=true`."""
    found = [
        counters("ratelimit_store_calls", "Requests to DynamoDB, retries included.", "operation", stats.calls),
        counter("ratelimit_store_retries", "Requests to DynamoDB tried again.", stats.retries),
        counter("ratelimit_store_throttles", "Requests that DynamoDB throttled.", stats.throttles),
        counters("ratelimit_store_fallbacks", "Checks that left the fast lane.", "reason", stats.fallbacks),
        counter("ratelimit_store_connections", "Connections that the fast lane made.", stats.connections),
        counters("ratelimit_store_connections_dropped", "Connections that ended.", "reason", stats.dropped),
    ]
    units = {"write": stats.write_units, "read": stats.read_units}
    if any(units.values()):
        found.append(counters("ratelimit_store_units", "Capacity that DynamoDB says was consumed.", "kind", units))
    return found


def of_memory(store: MemoryStore) -> list[Family]:
    """Of the embedded store."""
    return [
        gauge("ratelimit_store_records", "Records in the embedded store.", len(store)),
        counter("ratelimit_store_evicted", "Records that gave way before their time: max_keys.", store.evicted),
    ]


def of_mirror(stats: MirrorStats) -> list[Family]:
    """Of a second store that is kept up to date."""
    sums = [counter(f"ratelimit_mirror_{name}", text, getattr(stats, name)) for name, text in _MIRROR.items()]
    return [*sums, gauge("ratelimit_mirror_waiting", "Writes that wait for the mirror.", stats.waiting)]


def of_usage(stats: UsageStats) -> list[Family]:
    """Of the usage log."""
    sums = [counter(f"ratelimit_usage_{name}", text, getattr(stats, name)) for name, text in _USAGE.items()]
    return sums + [gauge(f"ratelimit_usage_{name}", text, getattr(stats, name)) for name, text in _USAGE_NOW.items()]


def of_directory(stats: DirectoryStats) -> list[Family]:
    """Of the cache of users and plans."""
    return [counter(f"ratelimit_directory_{name}", text, getattr(stats, name)) for name, text in _DIRECTORY.items()]
