"""What the generators tell, as it comes: every sample, and who was admitted how often."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TypeAlias

from loadtest.load.samples import Batch, Sample
from loadtest.plan import SERIES, Plan

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
