"""From samples to figures; and exactness under load: what clients were granted, what the table has counted and what the
log holds are the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import ceil
from random import Random
from typing import Any, Final, TypeAlias

from .plan import SERIES, LoadPlan, RequestSample, SampleBatch
from .result import Added, ConfidenceInterval, Exactness, GroupResult, KeptRate, Meter, Quantiles, SeriesResult

# What the generators tell, as it comes: every sample, and who was admitted how often.

Who: TypeAlias = tuple[str, str]
"""Action and user."""


@dataclass(slots=True)
class SampleTally:
    """Of one group."""

    plan: LoadPlan
    samples: list[RequestSample] = field(default_factory=list)
    """Those that were measured; not those that warmed up."""
    admitted: Counter[Who] = field(default_factory=Counter)
    failed: Counter[Who] = field(default_factory=Counter)
    """Whether these were counted is not known."""
    checks: Counter[str] = field(default_factory=Counter)
    """By meter: all that were answered, warm-up included."""
    users: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Who they were, by meter."""
    _left: dict[str, int] = field(default_factory=dict)

    def add(self, worker: str, batch: SampleBatch) -> None:
        self._left[worker] = batch.left
        series = SERIES[self.plan.group]
        for row in batch.rows:
            sample = RequestSample(*row)
            kind = series[sample.series]
            if kind.action is not None:
                self.checks[kind.meter or kind.target] += 1
                self.users[kind.meter or kind.target].add(sample.user)
                self.admitted[kind.action, sample.user] += sample.outcome == "allowed"
                self.failed[kind.action, sample.user] += sample.outcome == "failed"
            if sample.at >= 0:
                self.samples.append(sample)

    @property
    def unsent(self) -> int:
        """Requests that were intended and never made, because everybody was busy until the end."""
        return sum(self._left.values())


_MOST_TOLD: Final = 10


def figures(tally: SampleTally, books: Sequence[Mapping[str, Any]], *, complete: bool) -> GroupResult:
    plan = tally.plan
    seconds = plan.duration if complete else _seconds(tally.samples)
    series = _series(tally, seconds)
    events = sum(book["log"]["events"] for book in books)
    units = sum(book["log"]["units"] for book in books)
    return GroupResult(
        group=plan.group,
        users=plan.users,
        seconds=round(seconds, 1),
        complete=complete,
        pace=_pace(tally, seconds),
        series=series,
        added=_added(series),
        meters=_meters(tally, books),
        event_units=round(units / events, 3) if units and events else None,
        exactness=compare_books(tally, books),
        sent=_by_second((sample.at + sample.wait + sample.lag for sample in tally.samples), seconds),
        answered=_by_second((s.at + s.latency for s in tally.samples if s.outcome != "failed"), seconds),
        failed=_by_second((s.at + s.latency for s in tally.samples if s.outcome == "failed"), seconds),
    )


def _seconds(samples: list[RequestSample]) -> float:
    """How long a run went that was cut short."""
    return max((sample.at + sample.wait for sample in samples), default=0) / 1e6


def _series(tally: SampleTally, seconds: float) -> list[SeriesResult]:
    found = []
    for index, kind in enumerate(SERIES[tally.plan.group]):
        mine = [sample for sample in tally.samples if sample.series == index]
        answered = [sample for sample in mine if sample.outcome != "failed"]
        blocks: list[list[int]] = [[] for _ in range(ceil(seconds))]
        for sample in answered:
            if (second := sample.at // 1_000_000) < len(blocks):
                blocks[second].append(sample.latency)
        found.append(
            SeriesResult(
                name=kind.name,
                over=kind.over,
                count=len(mine),
                refused=sum(sample.outcome == "refused" for sample in mine),
                failed=len(mine) - len(answered),
                latency=quantiles([sample.latency for sample in answered]),
                service=quantiles([sample.service for sample in answered]),
                samples=blocks,
            )
        )
    return found


def _added(series: list[SeriesResult]) -> list[Added]:
    by_name = {each.name: each for each in series}
    found = []
    for each in series:
        if each.over is not None:
            base = by_name[each.over]
            p50, p99 = (difference(each.samples, base.samples, part, paired=True) for part in (0.5, 0.99))
            if p50 is not None and p99 is not None:
                found.append(Added(each.name, base.name, p50, p99))
    return found


def _pace(tally: SampleTally, seconds: float) -> KeptRate:
    samples = tally.samples
    in_time = sum(sample.at + sample.wait + sample.lag < seconds * 1e6 for sample in samples)
    return KeptRate(
        asked=tally.plan.rate,
        sent=round(in_time / seconds, 2) if seconds else 0.0,
        unsent=tally.unsent,
        waited_p99=_p99(sample.wait for sample in samples),
        lag_p99=_p99(sample.lag for sample in samples),
        seconds=seconds,
    )


def _p99(values: Iterable[int]) -> float:
    ordered = sorted(values)
    return quantile(ordered, 0.99) / 1000 if ordered else 0.0


def _meters(tally: SampleTally, books: Sequence[Mapping[str, Any]]) -> list[Meter]:
    """Of what was asked of a DynamoDB; on the embedded store there is nothing to count."""
    return [
        Meter(name, tally.checks[name], meter["writes"], meter["units"], len(tally.users[name]))
        for book in books
        for name, meter in book["meters"].items()
        if book["shared"]
    ]


def _by_second(times: Iterable[int], seconds: float) -> list[int]:
    counts = [0] * ceil(seconds)
    for time in times:
        if 0 <= time < len(counts) * 1_000_000:
            counts[time // 1_000_000] += 1
    return counts


def compare_books(tally: SampleTally, books: Iterable[Mapping[str, Any]]) -> Exactness:
    """`books` are the servers'; on a table that they share, those of any one are everybody's."""
    totals: dict[Who, int] = {}
    events: dict[Who, int] = {}
    for book in books:
        for target, source in ((totals, book["totals"]), (events, book["events"])):
            for action, users in source.items():
                for user, units in users.items():
                    # A table that is shared says the same to all; without one, each server has users of its own.
                    target[action, user] = max(target.get((action, user), 0), units)
    known = tally.admitted
    differences = []
    for who in sorted({*known, *totals, *events}):
        least, most = known[who], known[who] + tally.failed[who]
        if not (least <= totals.get(who, 0) <= most and least <= events.get(who, 0) <= most):
            differences.append(
                f"{who[1]} {who[0]}: admitted {least}, counted {totals.get(who, 0)}, logged {events.get(who, 0)}"
            )
    return Exactness(
        sum(known.values()), sum(totals.values()), sum(events.values()), sum(tally.failed.values()),
        differences[:_MOST_TOLD],
    )  # fmt: skip


# Quantiles of latencies, and how far to trust their differences: a bootstrap over the seconds of a run. Latencies of
# one second resemble each other (a pause hits all of them), so that it is whole seconds that are drawn again, and not
# single latencies, which would make every difference look certain.

ROUNDS: Final = 400
MOST_USED: Final = 6_000
"""Latencies of one series that the bootstrap looks at: of more, every second or third."""

Seconds = Sequence[Sequence[int]]
"""Latencies in µs, second by second."""


def quantile(ordered: Sequence[int], part: float) -> int:
    """The smallest that this part of all does not exceed."""
    return ordered[max(0, ceil(part * len(ordered)) - 1)]


def quantiles(latencies: Sequence[int]) -> Quantiles | None:
    """Of latencies in µs; None of none."""
    if not latencies:
        return None
    ordered = sorted(latencies)
    p50, p90, p99, p999 = (quantile(ordered, part) / 1000 for part in (0.5, 0.9, 0.99, 0.999))
    return Quantiles(p50, p90, p99, p999, ordered[-1] / 1000, round(sum(ordered) / len(ordered) / 1000, 3))


def difference(new: Seconds, old: Seconds, part: float, *, paired: bool) -> ConfidenceInterval | None:
    """How much larger a quantile is, in milliseconds; None where there is nothing to compare.

    `paired` where both were measured in the same seconds, which are then drawn together.
    """
    one, other = _Resampled(new), _Resampled(old)
    if not one.ordered or not other.ordered:
        return None
    value = (quantile(sorted(chain(*new)), part) - quantile(sorted(chain(*old)), part)) / 1000
    random = Random(0)
    drawn = []
    for _ in range(ROUNDS):
        weights = _weights(random, len(new))
        both = weights if paired and len(new) == len(old) else _weights(random, len(old))
        first, second = one.quantile(part, weights), other.quantile(part, both)
        if first is not None and second is not None:
            drawn.append((first - second) / 1000)
    drawn.sort()
    low, high = (drawn[round((len(drawn) - 1) * end)] for end in (0.025, 0.975))
    return ConfidenceInterval(round(value, 3), round(low, 3), round(high, 3))


class _Resampled:
    """The latencies of a series in order, each with the second that it belongs to."""

    def __init__(self, seconds: Seconds) -> None:
        step = 1 + sum(map(len, seconds)) // MOST_USED
        kept = [latencies[::step] for latencies in seconds]
        self.ordered = sorted((latency, second) for second, latencies in enumerate(kept) for latency in latencies)
        self._sizes = [len(latencies) for latencies in kept]

    def quantile(self, part: float, weights: Sequence[int]) -> int | None:
        """With each second as often as it was drawn; None where only empty ones were."""
        total = sum(size * weight for size, weight in zip(self._sizes, weights, strict=True))
        if not total:
            return None
        # Counted from the top, which is nearer for the quantiles that take the longest.
        left = total - max(1, ceil(part * total)) + 1
        for latency, second in reversed(self.ordered):
            left -= weights[second]
            if left <= 0:
                return latency
        raise AssertionError("unreachable: the weights add up")


def _weights(random: Random, seconds: int) -> list[int]:
    weights = [0] * seconds
    for drawn in random.choices(range(seconds), k=seconds):
        weights[drawn] += 1
    return weights
