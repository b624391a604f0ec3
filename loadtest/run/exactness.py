"""Exactness under load: what clients were granted, what the table has counted, what the log holds. All the same."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import msgspec

from ..load.samples import Batch, Sample
from ..plan import SERIES, Plan

# What the generators tell, as it comes: every sample, and who was admitted how often.

Who: TypeAlias = tuple[str, str]
"""Action and user."""


@dataclass(slots=True)
class Tally:
    """Of one group."""

    plan: Plan
    samples: list[Sample] = field(default_factory=list)
    """Those that were measured; not those that warmed up."""
    admitted: Counter[Who] = field(default_factory=Counter)
    failed: Counter[Who] = field(default_factory=Counter)
    """Whether these were counted is not known."""
    checks: Counter[str] = field(default_factory=Counter)
    """By meter: all that were answered, warm-up included."""
    users: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Who they were, by meter."""
    _left: dict[str, int] = field(default_factory=dict)

    def add(self, worker: str, batch: Batch) -> None:
        """One more batch."""
        self._left[worker] = batch.left
        series = SERIES[self.plan.group]
        for row in batch.rows:
            sample = Sample(*row)
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


class Exactness(msgspec.Struct, frozen=True):
    """The books of a group, compared by user and action."""

    admitted: int
    counted: int
    """In the totals of the table."""
    logged: int
    """In the events of the log."""
    unknown: int
    """Requests without an answer: each may have been counted, and logged, or not."""
    differences: list[str]
    """The first ten that even those do not explain."""

    @property
    def holds(self) -> bool:
        """Whether the three agree."""
        return not self.differences


def compare_books(tally: Tally, books: Iterable[Mapping[str, Any]]) -> Exactness:
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
