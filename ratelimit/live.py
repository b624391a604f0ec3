"""Live data: the last minutes of a process as samples, its busiest keys, and several processes' as one document.

What is counted anyway is sampled by the first check, or reader, of each interval: no timer has to be started or ended.
What that adds to a check, the bench `live` says.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache, partial
from heapq import nlargest
from itertools import accumulate
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from msgspec import Struct

from ratelimit.clock import instant
from ratelimit.cost.estimate import DEFAULT_REGION, Prices, dollars, load_prices
from ratelimit.cost.metrics import Scraped, consumption
from ratelimit.cost.units import HOURS, Workload
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError
from ratelimit.http.api.operation import package_version
from ratelimit.http.health import Readiness, health_of
from ratelimit.limiter import Limiter
from ratelimit.limiter.checker import Observer
from ratelimit.metrics import BUCKETS, OTHER, DecisionMetrics, Registry, decisions_of, parts, table_store
from ratelimit.metrics import Sample as Counted
from ratelimit.policy import Policy
from ratelimit.regions.stores import RegionsStore
from ratelimit.store.delegating import layers
from ratelimit.store.hashed import HashedUserStore, UserHash
from ratelimit.top_keys import KeyCount, KeyCounts, TopKeys, added

if TYPE_CHECKING:
    from ratelimit.usage import UsageLog

INTERVAL_S: Final = 5
MAX_SAMPLES: Final = 180
"""A quarter of an hour."""
KEY_PERIOD: Final = 60
"""Samples, five minutes: keys are those of the last one to two periods."""
TRACKED_KEYS: Final = 512
MAX_SAMPLED_POLICIES: Final = 100
MAX_SHOWN: Final = 50
"""Policies, and keys of either kind."""

OUTCOMES: Final = ("allowed", "denied", "shadow_denied", "unavailable")
Outcomes: TypeAlias = tuple[int, ...]
"""How many checks came to each of `OUTCOMES`."""
_NONE: Final[Outcomes] = (0, 0, 0, 0)
_UNITS: Final = "ratelimit_store_units_total"
_CALLS: Final = "ratelimit_store_calls_total"
_THROTTLES: Final = "ratelimit_store_throttles_total"
_MILLION: Final = 10**6
_KINDS: Final = {
    **dict.fromkeys(("GetItem", "BatchGetItem", "Query", "Scan"), "read"),
    **dict.fromkeys(("UpdateItem", "PutItem", "DeleteItem", "BatchWriteItem", "TransactWriteItems"), "write"),
}


class Interval(Struct, frozen=True, array_like=True):
    """What came in the time up to a tick."""

    tick: int
    ticks: int
    """How many intervals it is about; more than one where nobody counted meanwhile."""
    policies: dict[str, Outcomes]
    """The busiest of them."""
    others: Outcomes
    spans: list[int]
    """Checks by how long they took, as `BUCKETS` says."""
    writes: float
    reads: float
    throttles: float


class Recording(Struct, frozen=True):
    """What one process has recorded."""

    since: int
    """Microseconds since the epoch."""
    age_s: int
    """Seconds that it has recorded for, whatever the clock has done meanwhile."""
    samples: list[Interval]
    totals: dict[str, Outcomes]
    keys_window_s: int
    refused: KeyCounts
    written: KeyCounts
    counted: list[tuple[str, dict[str, str], float]]
    """Its metrics, but for the decisions."""


class LiveRecorder:
    """Records the last minutes of one process, and the users and actions that are refused most and written most."""

    def __init__(self, since: int, decisions: DecisionMetrics, registry: Registry) -> None:
        self.refused = TopKeys(TRACKED_KEYS)
        self.written = TopKeys(TRACKED_KEYS)
        self._since = since
        self._decisions = decisions
        self._registry = registry
        self._samples: deque[Interval] = deque(maxlen=MAX_SAMPLES)
        self._tick = _tick()
        self._due = 0.0
        self._age = 0
        self._periods = (0, 0)
        """Samples in the former period of the keys, and in the present one."""
        self._totals: dict[str, Outcomes] = {}
        self._spans = [0] * (len(BUCKETS) + 1)
        self._store = _of_the_store(self._counted())

    def observer(self, first: Observer, *, counts_writes: bool) -> Observer:
        """Return one that tells `first`, which counts decisions, and counts refusals; and as a write what was spent,
        where no store tells of its writes."""
        refused, written = self.refused.add, self.written.add

        def observe(decision: Decision, span: float) -> None:
            if monotonic() >= self._due:
                self.advance()
            first(decision, span)
            if not decision.allowed:
                refused((decision.user, decision.policy))
            elif counts_writes and decision.spent:
                written((decision.user, decision.policy))

        return observe

    def advance(self) -> None:
        tick = _tick()
        if tick > self._tick:
            # What is not sampled yet came in the first of them: whatever comes later samples before it counts.
            self.sample(self._tick + 1)
            self.sample(tick)
        self._due = (tick + 1) * INTERVAL_S

    def sample(self, tick: int) -> None:
        ticks = tick - self._tick
        if ticks < 1:
            return
        self._tick = tick
        self._age += ticks
        totals, spans, store = self._outcomes(), self._decisions.spans(), _of_the_store(self._counted())
        came = {
            policy: tuple(after - former for after, former in zip(now, before, strict=True))
            for policy, now in totals.items()
            if (before := self._totals.get(policy, _NONE)) != now
        }
        kept = came
        if len(came) > MAX_SAMPLED_POLICIES:
            kept = dict(nlargest(MAX_SAMPLED_POLICIES, came.items(), lambda entry: sum(entry[1])))
        others = _sum(outcomes for policy, outcomes in came.items() if policy not in kept)
        took = [now - before for now, before in zip(spans, self._spans, strict=True)]
        units = [max(0.0, now - before) for now, before in zip(store, self._store, strict=True)]
        self._samples.append(Interval(tick, ticks, kept, others, took, *units))
        self._totals, self._spans, self._store = totals, spans, store
        former, present = self._periods
        self._periods = former, present + ticks
        if present + ticks >= KEY_PERIOD:
            self._periods = present + ticks, 0
            self.refused.rotate()
            self.written.rotate()

    def read(self) -> Recording:
        self.advance()
        return Recording(
            since=self._since,
            age_s=self._age * INTERVAL_S,
            samples=list(self._samples),
            totals=self._outcomes(),
            keys_window_s=sum(self._periods) * INTERVAL_S,
            refused=self.refused.read(),
            written=self.written.read(),
            counted=[(one.name, one.labels, one.value) for one in self._counted()],
        )

    def _outcomes(self) -> dict[str, Outcomes]:
        return {policy: _outcomes(counts) for policy, counts in self._decisions.counts().items()}

    def _counted(self) -> list[Counted]:
        return [sample for metric in self._registry.collect(but="decisions") for sample in metric.samples]


def _tick() -> int:
    """Return the number of intervals since the machine started: it is the same for all of its processes."""
    return int(monotonic() // INTERVAL_S)


def _outcomes(counts: Mapping[tuple[object, ...], int]) -> Outcomes:
    found = dict.fromkeys(OUTCOMES, 0)
    for (is_allowed, is_shadow_denied, reason), count in counts.items():
        name = "shadow_denied" if is_shadow_denied else "allowed" if is_allowed else "denied"
        found["unavailable" if reason == "unavailable" else name] += count
    return tuple(found.values())


def _of_the_store(counted: Iterable[Counted]) -> tuple[float, float, float]:
    """Return writes, reads and throttles; in units where DynamoDB has said how many, else in calls."""
    units = {"write": 0.0, "read": 0.0}
    calls = {"write": 0.0, "read": 0.0, "": 0.0}
    throttles = 0.0
    for sample in counted:
        if sample.name == _UNITS:
            units[sample.labels["kind"]] += sample.value
        elif sample.name == _CALLS:
            calls[_KINDS.get(sample.labels["operation"], "")] += sample.value
        elif sample.name == _THROTTLES:
            throttles += sample.value
    found = units if any(units.values()) else calls
    return found["write"], found["read"], throttles


def _sum(several: Iterable[Outcomes]) -> Outcomes:
    return tuple(map(sum, zip(_NONE, *several, strict=True)))


# Several processes' recordings as one.


class About(NamedTuple):
    """What else there is to say of those who have recorded."""

    covers: str
    """Which processes these are, and which are not among them."""
    health: Mapping[str, object]
    store: str
    source: Callable[[Policy], str]
    """Where a policy stands."""
    hot_by: Literal["checks", "writes"]
    """What is counted of the keys that are `hot`."""
    silent: Sequence[str] = ()
    file: str | None = None
    rejected: bool = False


async def live_document(recordings: Mapping[str, Recording], limiter: Limiter, about: About) -> dict[str, Any]:
    """Return what all of them come to, as `GET /live` answers it, and the page draws it."""
    # In a thread, as it takes tens of milliseconds where there are many policies.
    found = await asyncio.to_thread(document, list(recordings.values()))
    for policy in found["policies"]:
        policy.update(_described(policy["name"], limiter, about.source))
    stores, table = list(layers(limiter.store)), table_store(limiter.store)
    secrets = [each.user_hash for each in stores if isinstance(each, HashedUserStore)]
    for name, counted in (("refused", "count"), ("hot", "writes")):
        found[name] = [_shown(key, counted, secrets) for key in found[name]]
    replicas = [
        f"of the table, the replica in {each.here}, and neither what is asked of "
        f"{', '.join(region for region in each.stores if region != each.here)} nor what is copied there"
        for each in stores
        if isinstance(each, RegionsStore)
    ]
    return {
        "at": instant(limiter.clock.now()),
        "covers": {
            "workers": len(recordings),
            "silent": about.silent,
            "since": instant(min(recording.since for recording in recordings.values())),
            "what": "; ".join((about.covers, *replicas)),
        },
        "store": about.store,
        "configuration": {"file": about.file, "state": "last good" if about.rejected else "as read"},
        "health": about.health,
        **found,
        "hot_by": about.hot_by,
        "cost": cost(recordings, _prices(None if table is None else table.settings.region)),
    }


def _described(name: str, limiter: Limiter, source: Callable[[Policy], str]) -> dict[str, object]:
    policy = limiter.policies.get(name)
    if policy is None:
        return {"source": "call" if name == OTHER else None}
    quotas = [str(quota) for quota in policy.quotas] or ["unlimited"]
    return {"quotas": quotas, "algorithm": policy.algorithm, "mode": policy.mode, "source": source(policy)}


def _shown(key: KeyCount, counted: str, secrets: Sequence[UserHash]) -> dict[str, object]:
    user = key.user
    for secret in secrets:
        user = secret.of(user)
    return {"user": user, "action": key.action, counted: key.count, "error": key.error}


@lru_cache(maxsize=8)
def _prices(region: str | None) -> Prices:
    """Return those of a region, or of the default one where they are not known."""
    try:
        return load_prices(region or DEFAULT_REGION)
    except ConfigError:
        return load_prices()


def document(recordings: Sequence[Recording]) -> dict[str, Any]:
    """Return what they come to together, as `GET /live` answers it; of policies and keys so many as are to be shown."""
    totals: dict[str, Outcomes] = {}
    recent: dict[str, int] = {}
    for recording in recordings:
        for policy, outcomes in recording.totals.items():
            totals[policy] = _sum((totals.get(policy, _NONE), outcomes))
        for sample in recording.samples:
            for policy, outcomes in sample.policies.items():
                recent[policy] = recent.get(policy, 0) + sum(outcomes)
    if not any(totals.get(OTHER, ())):
        totals.pop(OTHER, None)
    shown = nlargest(MAX_SHOWN, totals, lambda policy: (recent.get(policy, 0), sum(totals[policy])))
    frames = _frames(recordings)
    counted = {name for recording in recordings for name, _, _ in recording.counted}
    return {
        "interval_s": INTERVAL_S,
        "series": _series(frames),
        "units": "measured" if _UNITS in counted else "calls" if _CALLS in counted else None,
        "totals": _named(_sum(totals.values())),
        "policies": [
            {
                "name": policy,
                "totals": _named(totals[policy]),
                "series": _columns(OUTCOMES, [_rates(frame, _of_policy(frame, policy)) for frame in frames]),
            }
            for policy in shown
        ],
        "policies_left_out": len(totals) - len(shown),
        "keys_window_s": max(recording.keys_window_s for recording in recordings),
        "refused": added(recording.refused for recording in recordings).top(MAX_SHOWN),
        "hot": added(recording.written for recording in recordings).top(MAX_SHOWN),
    }


def _named(outcomes: Outcomes) -> dict[str, int]:
    return dict(zip(OUTCOMES, outcomes, strict=True))


_Frame: TypeAlias = list[Interval]
"""Samples of one interval, one for each process that has one."""


def _frames(recordings: Sequence[Recording]) -> list[_Frame]:
    """Return the samples by interval, without the last one where a process has not sampled that yet."""
    frames: dict[int, _Frame] = {}
    for recording in recordings:
        for sample in recording.samples:
            for tick in range(sample.tick + 1 - min(sample.ticks, MAX_SAMPLES), sample.tick + 1):
                frames.setdefault(tick, []).append(sample)
    if not frames:
        return []
    last = max(frames)
    if len(frames[last]) < len(frames.get(last - 1, ())):
        last -= 1
    return [frames.get(tick, []) for tick in range(max(min(frames), last - MAX_SAMPLES + 1), last + 1)]


def _series(frames: Sequence[_Frame]) -> dict[str, list[float | None]]:
    outcomes = [_rates(frame, [_sum((each.others, *each.policies.values())) for each in frame]) for frame in frames]
    store = [_rates(frame, [(each.writes, each.reads, each.throttles) for each in frame]) for frame in frames]
    return {
        **_columns(OUTCOMES, outcomes),
        **_columns(("writes", "reads", "throttles"), store),
        "p50_ms": [_quantile(frame, 0.50) for frame in frames],
        "p99_ms": [_quantile(frame, 0.99) for frame in frames],
    }


def _of_policy(frame: _Frame, policy: str) -> list[Outcomes]:
    """Return nothing also where it may have been one of those that were not kept apart."""
    if any(policy not in each.policies and each.others != _NONE for each in frame):
        return []
    return [each.policies.get(policy, _NONE) for each in frame]


def _rates(frame: _Frame, counts: Sequence[Sequence[float]]) -> list[float]:
    if len(counts) == 1 and not any(counts[0]):
        return [0.0] * len(counts[0])
    spans = [each.ticks * INTERVAL_S for each in frame]
    return [
        round(sum(count / span for count, span in zip(column, spans, strict=True)), 2)
        for column in zip(*counts, strict=True)
    ]


def _columns(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, list[float | None]]:
    return {name: [row[place] if row else None for row in rows] for place, name in enumerate(names)}


def _quantile(frame: _Frame, share: float) -> float | None:
    spans: list[int] = [sum(counts) for counts in zip(*(sample.spans for sample in frame), strict=True)]
    reached = list(accumulate(spans))
    if not reached or not reached[-1]:
        return None
    rank = share * reached[-1]
    place = bisect_left(reached, rank)
    if place == len(BUCKETS):
        return BUCKETS[-1] * 1000
    start = BUCKETS[place - 1] if place else 0.0
    part = (rank - (reached[place] - spans[place])) / spans[place]
    return round((start + (BUCKETS[place] - start) * part) * 1000, 3)


def cost(recordings: Mapping[str, Recording], prices: Prices) -> dict[str, Any] | None:
    """Return what they have cost so far, and a month if it goes on like that; None where nobody writes to a table."""
    ages = {worker: float(recording.age_s) for worker, recording in recordings.items()}
    samples = [sample for worker, recording in recordings.items() for sample in _labelled(worker, recording)]
    if not all(ages.values()) or not any(sample.name == _CALLS for sample in samples):
        return None
    nothing_stored = Workload(checks=0)
    month = consumption(samples, ages, nothing_stored)
    # A worker that has counted for a month is taken as it is.
    so_far = consumption(samples, dict.fromkeys(ages, HOURS * 3600.0), nothing_stored).units
    causes = {
        "checks": (month.units.checks, prices.write_million),
        "refused checks": (month.units.refused, prices.write_million),
        "usage log": (month.units.events, prices.write_million),
        "timelines": (month.units.timelines, prices.write_million),
        "reads": (month.units.reads, prices.read_million),
    }
    spent = so_far.writes * prices.write_million + so_far.reads * prices.read_million
    return {
        "basis": "projected from what has been counted since the start; storage is left out",
        "seconds": month.seconds,
        "measured": month.is_measured,
        "region": prices.region,
        "as_of": prices.as_of,
        "currency": "USD",
        "so_far": {
            "writes": round(so_far.writes), "reads": round(so_far.reads), "dollars": dollars(spent / _MILLION)
        },
        "month": [
            {"cause": cause, "units": round(units), "dollars": dollars(units * price / _MILLION)}
            for cause, (units, price) in causes.items()
        ],
        "total": dollars(sum((units * price for units, price in causes.values()), Fraction(0)) / _MILLION),
    }  # fmt: skip


def _labelled(worker: str, recording: Recording) -> Iterator[Scraped]:
    for name, labels, value in recording.counted:
        yield Scraped(name, {**labels, "worker": worker}, value)
    for outcome, count in zip(OUTCOMES, _sum(recording.totals.values()), strict=True):
        reason = "quota" if outcome == "denied" else "none"
        yield Scraped("ratelimit_decisions_total", {"outcome": outcome, "reason": reason, "worker": worker}, count)


# Of an app.


class AppLive:
    """The live data of an app's limiter, in this process, recorded from now on."""

    def __init__(self, limiter: Limiter, usage: UsageLog | None) -> None:
        decisions, registry = decisions_of(limiter), Registry()
        for part, read in parts(limiter, limiter.store, limiter.directory, usage):
            registry.register(part, partial(read, part))
        self._limiter = limiter
        self._usage = usage
        self._since = limiter.clock.now()
        self._readiness = Readiness(lambda: limiter.store, limiter.clock)
        self._recorder = LiveRecorder(self._since, decisions, registry)
        limiter.observer = self._recorder.observer(limiter.observer or decisions, counts_writes=True)

    async def __call__(self) -> dict[str, Any]:
        limiter = self._limiter
        health = await health_of(limiter, self._usage, self._readiness, self._since)
        table = table_store(limiter.store)
        about = About(
            covers="this process of the app; others are not among them",
            health={"status": health.status, "version": package_version(), "workers": {"0": health}},
            store=f"{health.store}://{'' if table is None else table.settings.table}",
            source=lambda policy: "app",
            hot_by="checks",
        )
        return await live_document({"0": self._recorder.read()}, limiter, about)
