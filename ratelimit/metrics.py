"""What the parts count anyway, as families of metrics: read when somebody asks, and by nobody else.

Parts count in plain attributes, and a `Registry` adds up those that came and went. Families are named and typed as
Prometheus has them; `prometheus.py` and `otel.py` hand them on, both the same ones.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from itertools import accumulate
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, get_args
from weakref import WeakKeyDictionary, ref

import msgspec

from ratelimit.decision import Decision
from ratelimit.directory import Directory, DirectoryStats
from ratelimit.limiter import Limiter
from ratelimit.limiter.background import Loss
from ratelimit.limiter.checker import Observer
from ratelimit.regions.home import HomeStore
from ratelimit.regions.sum import SumStore
from ratelimit.settings import stats_of
from ratelimit.store import MemoryStore, MirrorStore, Store
from ratelimit.store.delegating import layers
from ratelimit.store.mirror import MirrorStats
from ratelimit.usage.settings import UsageStats

if TYPE_CHECKING:
    from ratelimit import sync
    from ratelimit.dynamodb import DynamoDBStore
    from ratelimit.dynamodb.calls import Stats
    from ratelimit.usage import UsageLog


class Sample(NamedTuple):
    """One value, by the name that Prometheus has for it: `…_total` of a counter, `…_bucket` of a histogram."""

    name: str
    labels: dict[str, str]
    value: float


class Family(NamedTuple):
    """A metric: what it is called and means, its type (`counter`, `gauge`, `histogram`), and how it stands."""

    name: str
    documentation: str
    type: str
    samples: list[Sample]


Source: TypeAlias = Callable[[], Iterable[Family]]


def counter(name: str, documentation: str, value: float) -> Family:
    """Return a counter without labels. Its name does not end in `_total`."""
    return Family(name, documentation, "counter", [Sample(f"{name}_total", {}, value)])


def gauge(name: str, documentation: str, value: float) -> Family:
    return Family(name, documentation, "gauge", [Sample(name, {}, value)])


def by_label(name: str, documentation: str, label: str, values: Mapping[str, float]) -> Family:
    # A copy: it may be counted on by other threads.
    samples = [Sample(f"{name}_total", {label: each}, count) for each, count in dict(values).items()]
    return Family(name, documentation, "counter", samples)


class Registry:
    """Everything that is counted in this process, also by parts that have gone since: a counter never falls.

    Sources go by a key of the caller's. What several have adds up, gauges too.
    """

    def __init__(self) -> None:
        self._sources: dict[Hashable, Source] = {}
        self._owners: dict[Hashable, ref[Any]] = {}
        self._past: list[Family] = []
        self._lock = Lock()
        """Of a source that is read a last time: whoever collects meanwhile sees it once."""

    def __contains__(self, key: Hashable) -> bool:
        return key in self._sources

    def register(self, key: Hashable, source: Source, owner: ref[Any] | None = None) -> None:
        """Read this source too, until its owner is gone; harmless where it is read already."""
        self._sources.setdefault(key, source)
        if owner is not None:
            self._owners.setdefault(key, owner)

    def retire(self, key: Hashable) -> None:
        """Read a source a last time. Its counters stay, its gauges go."""
        with self._lock:
            self._owners.pop(key, None)
            source = self._sources.pop(key, None)
            if source is not None:
                self._past = _merged([*self._past, *(family for family in source() if family.type != "gauge")])

    def collect(self, *, but: Hashable = None) -> list[Family]:
        for key in [key for key, owner in list(self._owners.items()) if owner() is None]:
            self.retire(key)
        with self._lock:
            past, sources = self._past, [source for key, source in list(self._sources.items()) if key != but]
        return _merged([*past, *(family for source in sources for family in source())])


def _merged(families: Iterable[Family]) -> list[Family]:
    found: dict[str, list[Family]] = {}
    for family in families:
        found.setdefault(family.name, []).append(family)
    return [same[0] if len(same) == 1 else _sum(same) for same in found.values()]


def _sum(same: list[Family]) -> Family:
    found: dict[Hashable, Sample] = {}
    for family in same:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            before = found.get(key)
            if before is not None:
                sample = sample._replace(value=before.value + sample.value)
            found[key] = sample
    return same[0]._replace(samples=list(found.values()))


# How workers tell one another their metrics. Quicker to read than the text format, for whoever collects from many also
# serves requests.
decode: Final = msgspec.json.Decoder(list[Family]).decode


def encode(families: Iterable[Family]) -> bytes:
    return msgspec.json.encode(list(families))


class _PolicyCounts:
    """How many decisions of a policy there were: `allowed` for no reason, and `others` by (allowed, shadow_denied,
    reason)."""

    __slots__ = ("allowed", "others")

    def __init__(self, known: Mapping[tuple[object, ...], int] = MappingProxyType({})) -> None:
        self.allowed = 0
        self.others: defaultdict[tuple[object, ...], int] = defaultdict(int, known)

    def by_outcome(self) -> dict[tuple[object, ...], int]:
        # A copy: other threads may count on.
        others = dict(self.others)
        return {**others, _ALLOWED: self.allowed} if self.allowed or _ALLOWED in others else others


class DecisionMetrics:
    """Count decisions by policy and outcome, and how long they took: the only metrics that a check itself keeps.

    An observer of a limiter. What it holds is bounded by the policies it is told of, never by users.
    """

    def __init__(self, policies: Iterable[str] = ()) -> None:
        self._other = _PolicyCounts()
        self._counts: dict[str, _PolicyCounts] = {}
        self._spans = [0] * (len(BUCKETS) + 1)
        self._sum = 0.0
        self.add_policies(policies)

    def add_policies(self, policies: Iterable[str]) -> None:
        for policy in policies:
            if policy not in self._counts:
                self._counts[policy] = self._other if policy == OTHER else _PolicyCounts({_ALLOWED: 0, _DENIED: 0})

    def __call__(self, decision: Decision, span: float) -> None:
        counts = self._counts.get(decision.policy, self._other)
        if decision.reason is None:  # as almost all of them: the quotas had room
            counts.allowed += 1
        else:
            counts.others[decision.allowed, decision.shadow_denied, decision.reason] += 1
        self._spans[bisect_left(BUCKETS, span) if span > _AT_ONCE else 0] += 1
        self._sum += span

    def counts(self) -> Mapping[str, Mapping[tuple[object, ...], int]]:
        """Return how many there were by policy and then by (allowed, shadow_denied, reason)."""
        counted = {**self._counts, OTHER: self._other}
        return {policy: counts.by_outcome() for policy, counts in counted.items()}

    def spans(self) -> list[int]:
        """Return how many took so long, by `BUCKETS`, and how many took longer."""
        return list(self._spans)

    def collect(self) -> list[Family]:
        decisions = []
        for policy, counts in self.counts().items():
            for (allowed, shadow_denied, reason), count in counts.items():
                outcome = "shadow_denied" if shadow_denied else "allowed" if allowed else "denied"
                labels = {"policy": policy, "outcome": outcome, "reason": str(reason or "none")}
                decisions.append(Sample("ratelimit_decisions_total", labels, count))
        below = list(accumulate(self._spans))
        spans = [
            Sample(f"{CHECK_SECONDS}_bucket", {"le": le}, count)
            for le, count in zip([*map(str, BUCKETS), "+Inf"], below, strict=True)
        ]
        spans += [Sample(f"{CHECK_SECONDS}_count", {}, below[-1]), Sample(f"{CHECK_SECONDS}_sum", {}, self._sum)]
        return [
            Family("ratelimit_decisions", "Checks, by policy, outcome and reason.", "counter", decisions),
            Family(CHECK_SECONDS, CHECK_SECONDS_HELP, "histogram", spans),
        ]


def add_observer(limiter: Limiter, observer: Observer) -> None:
    first = limiter.observer
    if first is None:
        limiter.observer = observer
        return

    def observe(decision: Decision, span: float) -> None:
        first(decision, span)
        observer(decision, span)

    limiter.observer = observe


def decisions_of(limiter: Limiter) -> DecisionMetrics:
    """Return what counts a limiter's decisions, from the first call on: one, for however many look."""
    found = _counted.get(limiter)
    if found is None:
        found = _counted[limiter] = DecisionMetrics(limiter.policies)
        add_observer(limiter, found)
    return found


_counted: Final[WeakKeyDictionary[Limiter, DecisionMetrics]] = WeakKeyDictionary()

OTHER: Final = "other"
"""The policy of checks that brought quotas of their own, for an action that the configuration does not name."""
CHECK_SECONDS: Final = "ratelimit_check_seconds"
CHECK_SECONDS_HELP: Final = "Seconds that a check took."
BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_AT_ONCE: Final = BUCKETS[0]
_ALLOWED: Final = (True, False, None)
_DENIED: Final = (False, False, "quota")


# What each part has to tell.

BREAKER_STATES: Final = ("closed", "half_open", "open")


def limiter_metrics(limiter: Limiter) -> list[Family]:
    lost = {loss: limiter.stats.lost[loss] for loss in get_args(Loss)}
    state, stats = limiter.breaker.state, limiter.stats
    states = [Sample("ratelimit_breaker_state", {"state": each}, float(each == state)) for each in BREAKER_STATES]
    return [
        counter("ratelimit_denials_cached", "Refusals repeated without asking the store.", stats.denials_cached),
        counter("ratelimit_checks_leased", "Checks granted from units taken ahead.", stats.leased),
        counter("ratelimit_checks_coalesced", "Checks that shared the write of another.", stats.coalesced),
        by_label("ratelimit_units_lost", "Units that the store did not take in the background.", "kind", lost),
        counter("ratelimit_alerts_dropped", "Alerts not raised: too many were being handled.", stats.alerts_dropped),
        Family("ratelimit_breaker_state", "Circuit breakers in this state: one each limiter.", "gauge", states),
    ]


def webhook_metrics(sent: int, failed: int) -> list[Family]:
    results = {"sent": sent, "failed": failed}
    return [by_label("ratelimit_alerts", "Alerts posted to the webhook, by how it ended.", "result", results)]


def envoy_metrics(calls: Mapping[tuple[str, str], int]) -> list[Family]:
    samples = [
        Sample("ratelimit_envoy_calls_total", {"domain": domain, "answer": answer}, count)
        for (domain, answer), count in dict(calls).items()
    ]
    return [Family("ratelimit_envoy_calls", "Calls of Envoy's rate limit service.", "counter", samples)]


def store_metrics(store: Store) -> list[Family]:
    found: list[Family] = []
    for layer in layers(store):
        if isinstance(layer, MirrorStore):
            found += mirror_metrics(layer.stats)
        elif isinstance(layer, MemoryStore):
            found += memory_metrics(layer)
        elif isinstance(layer, HomeStore):
            found += region_metrics(layer.asked)
        elif type(layer) is SumStore:
            found += sum_metrics(layer)
    table = table_store(store)
    return found if table is None else [*dynamodb_metrics(table.stats), *found]


def table_store(store: Store) -> DynamoDBStore | None:
    """Return the store of the table that a store stands on; of several regions, this one's. None where it has none."""
    *_, innermost = layers(store)
    if isinstance(innermost, MemoryStore):
        return None
    from ratelimit.dynamodb import DynamoDBStore

    return innermost if isinstance(innermost, DynamoDBStore) else None


def dynamodb_metrics(stats: Stats) -> list[Family]:
    """Return DynamoDB's. Its units are known only where the store's URL says `consumed=true`."""
    units = {"write": stats.write_units, "read": stats.read_units}
    return [
        by_label("ratelimit_store_calls", "Requests to DynamoDB, retries included.", "operation", stats.calls),
        counter("ratelimit_store_retries", "Requests to DynamoDB tried again.", stats.retries),
        counter("ratelimit_store_throttles", "Requests that DynamoDB throttled.", stats.throttles),
        by_label("ratelimit_store_fallbacks", "Checks that left the fast lane.", "reason", stats.fallbacks),
        counter("ratelimit_store_connections", "Connections that the fast lane made.", stats.connections),
        by_label("ratelimit_store_connections_dropped", "Connections that ended.", "reason", stats.dropped),
        by_label(
            "ratelimit_store_units",
            "Capacity that DynamoDB says was consumed.",
            "kind",
            units if any(units.values()) else {},
        ),
    ]


def region_metrics(asked: Mapping[str, int]) -> list[Family]:
    return [by_label("ratelimit_region_requests", "Requests about counters, by their region.", "region", asked)]


def sum_metrics(store: SumStore) -> list[Family]:
    return [
        counter("ratelimit_region_units_found", "Units that other regions were found to have admitted.", store.found),
        gauge("ratelimit_region_excess_units", "Units by which a quota may be exceeded so.", store.excess),
    ]


def memory_metrics(store: MemoryStore) -> list[Family]:
    return [
        gauge("ratelimit_store_records", "Records in the embedded store.", len(store)),
        counter("ratelimit_store_evicted", "Records that gave way before their time: max_keys.", store.evicted),
    ]


def mirror_metrics(stats: MirrorStats) -> list[Family]:
    return _sums("ratelimit_mirror_", stats)


def usage_metrics(stats: UsageStats) -> list[Family]:
    return _sums("ratelimit_usage_", stats)


def directory_metrics(stats: DirectoryStats) -> list[Family]:
    return _sums("ratelimit_directory_", stats)


def _sums(prefix: str, stats: object) -> list[Family]:
    return [
        (gauge if is_gauge else counter)(prefix + name, text, getattr(stats, name))
        for name, (text, is_gauge) in stats_of(type(stats)).items()
    ]


# The parts of an app.


def parts(
    limiter: Limiter, store: Store, directory: object, usage: UsageLog | sync.UsageLog | None
) -> Iterator[tuple[Any, Callable[[Any], list[Family]]]]:
    """Yield each part that has something to tell, and what reads it."""
    yield limiter, limiter_metrics
    yield store, store_metrics
    if usage is not None:
        yield usage, lambda part: usage_metrics(part.stats)
    if isinstance(directory, Directory):
        yield directory, lambda part: directory_metrics(part.stats)


def names_of(limiter: Limiter | sync.Limiter, usage: UsageLog | sync.UsageLog | None = None) -> list[Family]:
    """Return the families that `watch` would add, without having anything counted from now on."""
    core = limiter if isinstance(limiter, Limiter) else limiter._core
    read = [family for part, read in parts(core, core.store, core.directory, usage) for family in read(part)]
    return _merged([*DecisionMetrics().collect(), *read])


def watch(
    registry: Registry, limiter: Limiter | sync.Limiter, usage: UsageLog | sync.UsageLog | None = None
) -> Limiter | None:
    """Have a registry read a limiter and its parts, which it does not keep alive: when they go, their counters stay.

    Return the limiter that decides (of a blocking one, what is in it); None where it was read already.
    """
    core = limiter if isinstance(limiter, Limiter) else limiter._core
    is_new = ref(core) not in registry
    if is_new:
        decisions = decisions_of(core)
        registry.register(decisions, decisions.collect, ref(core))
    for part, read in parts(core, core.store, core.directory, usage):
        registry.register(ref(part), _Weak(part, read), ref(part))
    return core if is_new else None


class _Weak:
    """A source that does not keep its part alive. Of one that has gone, the counters stay as they were last read."""

    def __init__(self, part: object, read: Callable[[Any], list[Family]]) -> None:
        self._part = ref(part)
        self._read = read
        self._last: list[Family] = []

    def __call__(self) -> list[Family]:
        part = self._part()
        if part is not None:
            self._last = self._read(part)
        return self._last
