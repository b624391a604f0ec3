"""What came of the checks of one run, counted as they are answered."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TypeAlias

from ratelimit.decision import Decision
from ratelimit.quota import Quota

# A user, and the index of the window.
Share: TypeAlias = tuple[str, int]


class Tally:
    """Counts decisions against one quota."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.latencies = array("d")
        """Seconds, of every check."""
        self.asked: Counter[Share] = Counter()
        self.admitted: Counter[Share] = Counter()
        self.unavailable = 0
        self.early = 0
        """Refused by the quota at a moment when fewer than its limit had been granted to anybody."""
        self._span = quota.window.span(0)

    def count(self, user: str, decision: Decision, latency: float) -> None:
        """One answer. It counts into the window of the moment it was decided in."""
        if not self._span.start <= decision.at_us < self._span.end:
            self._span = self.quota.window.span(decision.at_us)
        share = (user, self._span.index)
        self.latencies.append(latency)
        self.asked[share] += 1
        if decision.allowed:
            self.admitted[share] += 1
        elif decision.reason == "unavailable":
            self.unavailable += 1
        elif self.admitted[share] < self.quota.limit:
            self.early += 1

    @property
    def checks(self) -> int:
        """All that were answered."""
        return len(self.latencies)

    @property
    def over_admission(self) -> int:
        """Units admitted beyond a quota. Must be 0."""
        return sum(max(0, admitted - self.quota.limit) for admitted in self.admitted.values())

    @property
    def under_admission(self) -> float:
        """Of the units that were asked for and within the quota, the share that nobody got."""
        due = {share: min(asked, self.quota.limit) for share, asked in self.asked.items()}
        missed = sum(max(0, units - self.admitted[share]) for share, units in due.items())
        return missed / sum(due.values()) if due else 0.0

    def quantiles(self, *shares: float) -> list[float]:
        """Latencies in seconds that these shares of the checks stayed within."""
        ordered = sorted(self.latencies)
        return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0 for share in shares]
