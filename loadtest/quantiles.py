"""Quantiles of latencies, and how far to trust their differences: a bootstrap over the seconds of a run.

Latencies of one second resemble each other (a pause hits all of them), so that it is whole seconds that are drawn
again, and not single latencies, which would make every difference look certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import ceil
from random import Random
from typing import Final

from .result import ConfidenceInterval, Quantiles

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
