"""The algorithms: pure functions from (a record, now, cost) to operations, and from the truth to an answer."""

from typing import Final

from ratelimit.algorithms.base import Ops, Rule, Taken
from ratelimit.algorithms.concurrency import Concurrency
from ratelimit.algorithms.fixed_window import FixedWindow
from ratelimit.algorithms.gcra import Gcra
from ratelimit.algorithms.sliding_window import SlidingWindow
from ratelimit.algorithms.totals import Totals
from ratelimit.policy import AlgorithmName
from ratelimit.quota import Quota

_ALGORITHMS: Final[dict[AlgorithmName, type[FixedWindow] | type[SlidingWindow] | type[Gcra]]] = {
    "fixed_window": FixedWindow,
    "sliding_window": SlidingWindow,
    "gcra": Gcra,
}


def rule(algorithm: AlgorithmName, quota: Quota) -> Rule:
    """Return the rule of one quota under the named algorithm; slots have their own."""
    if quota.is_concurrent:
        return Concurrency(quota)
    return _ALGORITHMS[algorithm](quota)


__all__ = ["Concurrency", "FixedWindow", "Gcra", "Ops", "Rule", "SlidingWindow", "Taken", "Totals", "rule"]
