"""From samples to figures; and exactness under load: what clients were granted, what the table has counted and what the
log holds are the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, TypeAlias

from .plan import SERIES, LoadPlan, RequestSample, SampleBatch
from .quantiles import difference, quantile, quantiles
from .result import Added, Exactness, GroupResult, KeptRate, Meter, SeriesResult

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
