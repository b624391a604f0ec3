"""`Tally`: decisions by policy and outcome, and how long they took. The only metrics that a check itself keeps."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

from ratelimit.decision import Decision
from ratelimit.metrics.families import Family, Sample

OTHER: Final = "other"
"""The policy of checks that brought quotas of their own, for an action that the configuration does not name."""
BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

_ALLOWED: Final = (True, False, None)
_DENIED: Final = (False, False, "quota")


class Tally:
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
