"""Who asks: users drawn from populations of several shapes, the same ones again for the same seed."""

from __future__ import annotations

from bisect import bisect
from itertools import accumulate
from random import Random
from typing import Final

from loadtest.plan import MARK, SERIES, USERS_OF, Plan, Series

_EXPONENT: Final = 1.1


class Draw:
    """The users of one generator. Each series has its own, so that what they spend can be told apart."""

    def __init__(self, plan: Plan, worker: int) -> None:
        self._prefix = user_prefix(plan.run)
        self._series = SERIES[plan.group]
        names = [series.name for series in self._series]
        self._owner = [names.index(series.as_series or series.name) for series in self._series]
        self._worker = worker
        self._random = Random(f"{plan.seed}:{worker}:users")
        self._fresh = 0
        self._zipf = list(accumulate(1 / rank**_EXPONENT for rank in range(1, USERS_OF["zipf"] + 1)))

    def user(self, number: int) -> str:
        """For one request of the series with this number."""
        series = self._series[number]
        return f"{self._prefix}{self._owner[number]}-{self._who(series)}"

    def _who(self, series: Series) -> str:
        if series.users == "fresh":
            self._fresh += 1
            return f"{self._worker}.{self._fresh}"
        if series.users == "zipf":
            return str(bisect(self._zipf, self._random.random() * self._zipf[-1]))
        return str(self._random.randrange(USERS_OF[series.users]))


def user_prefix(run: str) -> str:
    """What the users of one run have in common, and no others."""
    return f"{MARK}{run}-"
