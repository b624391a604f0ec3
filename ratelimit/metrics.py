"""Prometheus metrics of what the parts count anyway: read when somebody asks, and by nobody else.

They are prometheus_client's own `Metric` values, and it writes them out; its global registry and its multi-process mode
are not used. That mode counts in files of its own, by process id and with a lock, while the parts here count in plain
attributes, one `Registry` a worker adds up those that came and went, and workers are told apart by small numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias, get_args

import msgspec
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily as Histogram
from prometheus_client.core import Metric, Sample
from prometheus_client.exposition import choose_encoder

from ratelimit.decision import Decision
from ratelimit.directory import DirectoryStats
from ratelimit.limiter import Limiter
from ratelimit.limiter.background import Loss
from ratelimit.store import MemoryStore
from ratelimit.store.mirror import MirrorStats
from ratelimit.usage.settings import UsageStats

if TYPE_CHECKING:
    from ratelimit.dynamodb.calls import Stats

Source: TypeAlias = Callable[[], Iterable[Metric]]


class Registry:
    """Everything that is counted in this process, also by parts that have gone since: a counter never falls.

    Sources go by a key of the caller's. Of a gauge that several have, the one that came last counts.
    """

    def __init__(self) -> None:
        self._sources: dict[Hashable, Source] = {}
        self._past: list[Metric] = []

    def register(self, key: Hashable, source: Source) -> None:
        """Read this source too; harmless where it is read already."""
        self._sources.setdefault(key, source)

    def retire(self, key: Hashable) -> None:
        """Read a source a last time. Its counters stay, its gauges go."""
        source = self._sources.pop(key, None)
        if source is not None:
            self._past = _merged([*self._past, *(metric for metric in source() if metric.type != "gauge")])

    def collect(self, *, but: Hashable = None) -> list[Metric]:
        """Read all sources, or all but one."""
        sources = [source for key, source in self._sources.items() if key != but]
        return _merged([*self._past, *(metric for source in sources for metric in source())])


def _merged(metrics: Iterable[Metric]) -> list[Metric]:
    found: dict[str, tuple[Metric, dict[Hashable, Sample]]] = {}
    for metric in metrics:
        _, samples = found.setdefault(metric.name, (Metric(metric.name, metric.documentation, metric.type), {}))
        for sample in metric.samples:
            key = sample.name, frozenset(sample.labels.items())
            before = samples.get(key)
            if before is not None and metric.type != "gauge":
                sample = sample._replace(value=before.value + sample.value)
            samples[key] = sample
    for merged, samples in found.values():
        merged.samples = list(samples.values())
    return [merged for merged, _ in found.values()]


def exposition(workers: Mapping[str, Iterable[Metric]], accept: str) -> tuple[bytes, str]:
    """Return the body and its content type, as the scraper asked for it (`Accept`): the text format or OpenMetrics.

    The worker becomes a label of every sample.
    """
    labelled = Registry()
    for worker, metrics in workers.items():
        labelled.register(worker, lambda worker=worker, metrics=metrics: _labelled(worker, metrics))  # type: ignore[misc]
    encode, content_type = choose_encoder(accept)
    return encode(labelled), content_type


def _labelled(worker: str, metrics: Iterable[Metric]) -> Iterable[Metric]:
    for metric in metrics:
        labelled = Metric(metric.name, metric.documentation, metric.type)
        for sample in metric.samples:
            labelled.add_sample(sample.name, {"worker": worker, **sample.labels}, sample.value)
        yield labelled


# How workers tell one another their metrics: name, help, type and samples. Quicker to read than the text format, for
# whoever collects from many also serves requests.
_Told: TypeAlias = list[tuple[str, str, str, list[tuple[str, dict[str, str], float]]]]
_decoder: Final = msgspec.json.Decoder(_Told)


def encode(metrics: Iterable[Metric]) -> bytes:
    """Write metrics down for another worker."""
    return msgspec.json.encode([
        (metric.name, metric.documentation, metric.type, [sample[:3] for sample in metric.samples])
        for metric in metrics
    ])  # fmt: skip


def decode(told: bytes) -> list[Metric]:
    """Read what `encode` has written."""
    metrics = []
    for name, documentation, kind, samples in _decoder.decode(told):
        metrics.append(metric := Metric(name, documentation, kind))
        for sample in samples:
            metric.add_sample(*sample)
    return metrics


def by_label(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Counter:
    """Make a counter of the values of one label."""
    counter = Counter(name, documentation, labels=[label])
    for value, count in values.items():
        counter.add_metric([value], count)
    return counter


class DecisionMetrics:
    """Count decisions by policy and outcome, and how long they took: the only metrics that a check itself keeps.

    An observer of a limiter. What it holds is bounded by the policies it is told of, never by users.
    """

    def __init__(self, policies: Iterable[str] = ()) -> None:
        self._other: dict[tuple[object, ...], int] = {}
        self._counts: dict[str, dict[tuple[object, ...], int]] = {}
        self._spans = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        self.add_policies(policies)

    def add_policies(self, policies: Iterable[str]) -> None:
        """Give these a label of their own from now on, beginning at 0."""
        for policy in policies:
            self._counts.setdefault(policy, self._other if policy == OTHER else {_ALLOWED: 0, _DENIED: 0})

    def __call__(self, decision: Decision, span: float) -> None:
        """Count one more, which took so many seconds."""
        counts = self._counts.get(decision.policy, self._other)
        outcome = (decision.allowed, decision.shadow_denied, decision.reason)
        counts[outcome] = counts.get(outcome, 0) + 1
        self._spans[bisect_left(BUCKETS, span)] += 1
        self._sum += span

    def counts(self) -> Mapping[str, Mapping[tuple[object, ...], int]]:
        """Return how many there were by policy and then by (allowed, shadow_denied, reason)."""
        return {**self._counts, OTHER: self._other}

    def spans(self) -> list[int]:
        """Return how many took so long, by `BUCKETS`, and how many took longer."""
        return list(self._spans)

    def collect(self) -> list[Metric]:
        """Return the counts as they stand."""
        decisions = Counter(
            "ratelimit_decisions", "Checks, by policy, outcome and reason.", labels=["policy", "outcome", "reason"]
        )
        for policy, counts in self.counts().items():
            for (allowed, shadow_denied, reason), count in counts.items():
                outcome = "shadow_denied" if shadow_denied else "allowed" if allowed else "denied"
                decisions.add_metric([policy, outcome, str(reason or "none")], count)
        buckets = list(zip([*map(str, BUCKETS), "+Inf"], accumulate(self._spans), strict=True))
        return [decisions, Histogram("ratelimit_check_seconds", "Seconds that a check took.", buckets, self._sum)]


OTHER: Final = "other"
"""The policy of checks that brought quotas of their own, for an action that the configuration does not name."""
BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_ALLOWED: Final = (True, False, None)
_DENIED: Final = (False, False, "quota")


# What each part has to tell.

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


def limiter_metrics(limiter: Limiter) -> list[Metric]:
    """Return a limiter's metrics."""
    lost = {loss: limiter.stats.lost[loss] for loss in get_args(Loss)}
    breaker = Gauge("ratelimit_breaker_state", "1 for the state that the circuit breaker is in.", labels=["state"])
    for each in BREAKER_STATES:
        breaker.add_metric([each], float(each == limiter.breaker.state))
    stats = limiter.stats
    return [
        Counter("ratelimit_denials_cached", "Refusals repeated without asking the store.", stats.denials_cached),
        Counter("ratelimit_checks_leased", "Checks granted from units taken ahead.", stats.leased),
        Counter("ratelimit_checks_coalesced", "Checks that shared the write of another.", stats.coalesced),
        by_label("ratelimit_units_lost", "Units that the store did not take in the background.", "kind", lost),
        Counter(
            "ratelimit_alerts_dropped", "Alerts not raised: too many were being handled.", limiter.stats.alerts_dropped
        ),
        breaker,
    ]


def webhook_metrics(sent: int, failed: int) -> list[Metric]:
    """Return those of the receiver of alerts."""
    results = {"sent": sent, "failed": failed}
    return [by_label("ratelimit_alerts", "Alerts posted to the webhook, by how it ended.", "result", results)]


def envoy_metrics(calls: Mapping[tuple[str, str], int]) -> list[Metric]:
    """Return those of Envoy's rate limit service: domains without rules are one."""
    counter = Counter("ratelimit_envoy_calls", "Calls of Envoy's rate limit service.", labels=["domain", "answer"])
    for labels, count in calls.items():
        counter.add_metric(labels, count)
    return [counter]


def store_metrics(stats: Stats) -> list[Metric]:
    """Return DynamoDB's. Its units are known only where the store's URL says `consumed=true`."""
    found: list[Metric] = [
        by_label("ratelimit_store_calls", "Requests to DynamoDB, retries included.", "operation", stats.calls),
        Counter("ratelimit_store_retries", "Requests to DynamoDB tried again.", stats.retries),
        Counter("ratelimit_store_throttles", "Requests that DynamoDB throttled.", stats.throttles),
        by_label("ratelimit_store_fallbacks", "Checks that left the fast lane.", "reason", stats.fallbacks),
        Counter("ratelimit_store_connections", "Connections that the fast lane made.", stats.connections),
        by_label("ratelimit_store_connections_dropped", "Connections that ended.", "reason", stats.dropped),
    ]
    units = {"write": stats.write_units, "read": stats.read_units}
    if any(units.values()):
        found.append(by_label("ratelimit_store_units", "Capacity that DynamoDB says was consumed.", "kind", units))
    return found


def memory_metrics(store: MemoryStore) -> list[Metric]:
    """Return those of the embedded store."""
    return [
        Gauge("ratelimit_store_records", "Records in the embedded store.", len(store)),
        Counter("ratelimit_store_evicted", "Records that gave way before their time: max_keys.", store.evicted),
    ]


def mirror_metrics(stats: MirrorStats) -> list[Metric]:
    """Return those of a second store that is kept up to date."""
    return [
        *_counters("ratelimit_mirror_", _MIRROR, stats),
        Gauge("ratelimit_mirror_waiting", "Writes that wait for the mirror.", stats.waiting),
    ]


def usage_metrics(stats: UsageStats) -> list[Metric]:
    """Return those of the usage log."""
    now = [Gauge(f"ratelimit_usage_{name}", text, getattr(stats, name)) for name, text in _USAGE_NOW.items()]
    return [*_counters("ratelimit_usage_", _USAGE, stats), *now]


def directory_metrics(stats: DirectoryStats) -> list[Metric]:
    """Return those of the cache of users and plans."""
    return _counters("ratelimit_directory_", _DIRECTORY, stats)


def _counters(prefix: str, texts: Mapping[str, str], stats: object) -> list[Metric]:
    return [Counter(prefix + name, text, getattr(stats, name)) for name, text in texts.items()]
