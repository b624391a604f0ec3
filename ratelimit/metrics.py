"""The numbers that the parts keep anyway, as families: read when somebody asks, and by nobody else."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, get_args

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ratelimit.decision import Decision
from ratelimit.directory import DirectoryStats
from ratelimit.limiter import Limiter
from ratelimit.limiter.background import Loss
from ratelimit.store import MemoryStore
from ratelimit.store.mirror import MirrorStats
from ratelimit.usage.options import UsageStats

if TYPE_CHECKING:
    from ratelimit.dynamodb.stats import Stats


# `Family`: one metric with all its samples, in Prometheus' data model, as a plain value that workers can exchange.

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]


class Sample(Struct, frozen=True):
    """A number. `suffix` is what its name has beyond the family's: `_total`, `_bucket`, `_sum`, `_count`."""

    value: float
    labels: dict[str, str] = {}
    suffix: str = ""


class Family(Struct, frozen=True):
    """Its name has no `_total`: that is the samples'."""

    name: str
    help: str
    kind: Kind
    samples: list[Sample]


def counter(name: str, help: str, value: float) -> Family:
    """One that only grows, without labels."""
    return Family(name, help, "counter", [Sample(value, {}, "_total")])


def counters(name: str, help: str, label: str, values: Mapping[str, float]) -> Family:
    """One that only grows, by the values of one label."""
    return Family(name, help, "counter", [Sample(value, {label: key}, "_total") for key, value in values.items()])


def gauge(name: str, help: str, value: float, **labels: str) -> Family:
    """One that goes up and down."""
    return Family(name, help, "gauge", [Sample(value, labels)])


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


# `Registry`: everything that is counted in this process, also by parts that have gone since: a counter never falls.

Source: TypeAlias = Callable[[], Iterable[Family]]
_Labels: TypeAlias = tuple[tuple[str, str], ...]


class Registry:
    """Sources by a key of the caller's. Of a gauge that several have, the one that came last counts."""

    def __init__(self) -> None:
        self._sources: dict[Hashable, Source] = {}
        self._past: list[Family] = []

    def keep(self, key: Hashable, source: Source) -> None:
        """Read this one too; harmless where it is read already."""
        self._sources.setdefault(key, source)

    def retire(self, key: Hashable) -> None:
        """Read it a last time. Its counters stay, its gauges go."""
        source = self._sources.pop(key, None)
        if source is not None:
            counted = [family for family in source() if family.kind != "gauge"]
            self._past = _merged([*self._past, *counted])

    def families(self) -> list[Family]:
        """All of it."""
        return _merged([*self._past, *(family for source in self._sources.values() for family in source())])


def _merged(families: Iterable[Family]) -> list[Family]:
    found: dict[str, tuple[Family, dict[tuple[str, _Labels], Sample]]] = {}
    for family in families:
        _, samples = found.setdefault(family.name, (family, {}))
        for sample in family.samples:
            place = sample.suffix, tuple(sorted(sample.labels.items()))
            before = samples.get(place)
            if before is None or family.kind == "gauge":
                samples[place] = sample
            else:
                samples[place] = Sample(before.value + sample.value, sample.labels, sample.suffix)
    return [Family(family.name, family.help, family.kind, list(samples.values())) for family, samples in found.values()]


# Families as the text that Prometheus scrapes, of one worker or of several. Needs the extra `sidecar`.


def exposition(workers: Mapping[str, Sequence[Family]], accept: str) -> tuple[bytes, str]:
    """The body and its content type, as the scraper asked for it (`Accept`): the text format or OpenMetrics.

    By worker, which becomes a label of every sample.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Workers(workers))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def process_families() -> list[Family]:
    """This process's memory, CPU time and open files, where the platform tells (`process_…`)."""
    found: list[Family] = []
    for metric in ProcessCollector(registry=None).collect():
        kind: Kind = "counter" if metric.type == "counter" else "gauge"
        samples = [Sample(s.value, dict(s.labels), s.name.removeprefix(metric.name)) for s in metric.samples]
        found.append(Family(metric.name, metric.documentation, kind, samples))
    return found


class _Workers(Collector):
    """A registry of its own for each scrape: nothing is global, and nothing is left over."""

    def __init__(self, workers: Mapping[str, Sequence[Family]]) -> None:
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for worker, families in self._workers.items():
            for family in families:
                metric = metrics.setdefault(family.name, Metric(family.name, family.help, family.kind))
                for sample in family.samples:
                    metric.add_sample(family.name + sample.suffix, {"worker": worker, **sample.labels}, sample.value)
        yield from metrics.values()


# Decisions by policy and outcome, and how long they took: the only metrics that a check itself keeps.

OTHER: Final = "other"
"""The policy of checks that brought quotas of their own, for an action that the configuration does not name."""
BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_ALLOWED: Final = (True, False, None)
_DENIED: Final = (False, False, "quota")


class DecisionMetrics:
    """An observer of a limiter. What it holds is bounded by the policies it is told of, never by users."""

    def __init__(self, policies: Iterable[str] = ()) -> None:
        self._other: dict[tuple[object, ...], int] = {}
        self._counts: dict[str, dict[tuple[object, ...], int]] = {}
        self._spans = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        self.name(policies)

    def name(self, policies: Iterable[str]) -> None:
        """These have a label of their own from now on, and begin at 0."""
        for policy in policies:
            self._counts.setdefault(policy, self._other if policy == OTHER else {_ALLOWED: 0, _DENIED: 0})

    def __call__(self, decision: Decision, span: float) -> None:
        """One more, which took so many seconds."""
        counts = self._counts.get(decision.policy, self._other)
        outcome = (decision.allowed, decision.shadow_denied, decision.reason)
        counts[outcome] = counts.get(outcome, 0) + 1
        self._spans[bisect_left(BUCKETS, span)] += 1
        self._sum += span

    def families(self) -> list[Family]:
        """As they stand."""
        return [self._decisions(), self._latency()]

    def _decisions(self) -> Family:
        by_policy = {**self._counts, OTHER: self._other}
        samples = [
            Sample(number, {"policy": policy, **_labels(*outcome)}, "_total")
            for policy, counts in by_policy.items()
            for outcome, number in counts.items()
        ]
        return Family("ratelimit_decisions", "Checks, by policy, outcome and reason.", "counter", samples)

    def _latency(self) -> Family:
        bounds = [*map(str, BUCKETS), "+Inf"]
        totals = list(accumulate(self._spans))
        samples = [Sample(number, {"le": bound}, "_bucket") for bound, number in zip(bounds, totals, strict=True)]
        samples += [Sample(totals[-1], {}, "_count"), Sample(self._sum, {}, "_sum")]
        return Family("ratelimit_check_seconds", "Seconds that a check took.", "histogram", samples)


def _labels(allowed: object, shadow_denied: object, reason: object) -> dict[str, str]:
    outcome = "shadow_denied" if shadow_denied else "allowed" if allowed else "denied"
    return {"outcome": outcome, "reason": str(reason or "none")}
