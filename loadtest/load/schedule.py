"""Intended start times at a constant rate. Whoever is free takes the next one, whether it lies ahead or behind.

A latency is counted from the intended start. When the server is slow and all users are busy, the next request goes out
late, and its waiting counts: a closed loop would have left it out just when it matters (coordinated omission).
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from random import Random
from typing import Final, NamedTuple

from ..plan import MARK, SERIES, USERS_OF, LoadPlan, Series

_HAIR: Final = 1e-6
"""Of a step: what floating-point arithmetic may be off by."""


class Ticket(NamedTuple):
    """One request to be made."""

    at: float
    """Its intended start, in seconds of the schedule: below 0 while it warms up."""
    series: int
    """Which one: an index."""


class Schedule:
    """The part of one of `workers` generators: every one has the same rate, and its starts between the others'.

    The series take turns in blocks, in an order drawn anew for each, so that a noisy moment hits all of them alike.
    """

    def __init__(
        self, series: Sequence[Series], *, rate: float, warm_up: float, duration: float, worker: int, workers: int,
        seed: int,
    ) -> None:  # fmt: skip
        self._step = workers / rate
        self._first = -warm_up + worker / rate
        self._duration = duration
        self._warming = max(0, ceil(-self._first / self._step - _HAIR))
        self._random = Random(f"{seed}:{worker}")
        self._turns = [index for index, each in enumerate(series) for _ in range(each.weight)]
        self._block: list[int] = []
        self.taken = 0

    def take(self, now: float) -> Ticket | None:
        """The next; None when the time is over, however many were still to be made."""
        if now >= 0 and self.taken < self._warming:
            self.taken = self._warming  # what the warm-up did not get to is not carried over into what is measured
        at = self._first + self.taken * self._step
        if at >= self._duration or now >= self._duration:
            return None
        if not self._block:
            self._block = self._random.sample(self._turns, len(self._turns))
        self.taken += 1
        return Ticket(at, self._block.pop())

    @property
    def left(self) -> int:
        """How many were intended and never taken."""
        intended = ceil((self._duration - self._first) / self._step - _HAIR)
        return max(0, intended - self.taken)


# Who asks: users drawn from populations of several shapes, the same ones again for the same seed.

_EXPONENT: Final = 1.1


class Draw:
    """The users of one generator. Each series has its own, so that what they spend can be told apart."""

    def __init__(self, plan: LoadPlan, worker: int) -> None:
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
