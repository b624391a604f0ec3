"""Who asks, and when: Poisson arrivals, on one hot key or on many by Zipf's law, spread evenly over the processes."""

from __future__ import annotations

import asyncio
import math
from bisect import bisect
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import accumulate
from random import Random
from typing import Final, Literal, TypeAlias

Keys: TypeAlias = Literal["hot", "zipf"]
Ask: TypeAlias = Callable[[str, int], Awaitable[None]]
"""Puts one check of a user to a process (by its number), and sees it answered."""

ZIPF_KEYS: Final = 10_000
ZIPF_EXPONENT: Final = 1.1
# Arrivals this close together are put at the same moment: at a million a second a jump of the clock for each would
# be most of the work, and 50 µs is below what any answer from the table depends on.
TICK: Final = 50e-6


def hottest_share(keys: str) -> float:
    """The part of all checks that the hottest user makes."""
    weights = _weights(keys)
    return weights[0] / sum(weights)


def _weights(keys: str) -> list[float]:
    return [1.0] if keys == "hot" else [rank**-ZIPF_EXPONENT for rank in range(1, ZIPF_KEYS + 1)]


class Users:
    """Draws the user of a check."""

    def __init__(self, keys: Keys, random: Random) -> None:
        self._random = random
        weights = _weights(keys)
        self._names = [f"user{rank}" for rank in range(1, len(weights) + 1)]
        self._upto = list(accumulate(weights))

    def draw(self) -> str:
        """A user, the hot ones more often."""
        if len(self._names) == 1:
            return self._names[0]
        return self._names[bisect(self._upto, self._random.random() * self._upto[-1])]


class Demand:
    """Puts checks for `seconds`, `rate` of them a second.

    A check that is answered in memory costs no task. One that has to wait holds the task it runs in; the checks behind
    it go on in another one at the same moment, in order.
    """

    def __init__(self, ask: Ask, users: Users, random: Random, *, processes: int) -> None:
        self._ask = ask
        self._users = users
        self._random = random
        self._processes = processes
        self._arrived: deque[tuple[str, int]] = deque()
        self._loop = asyncio.get_running_loop()

    async def put(self, rate: float, seconds: float, *, ramp: float = 0.0) -> None:
        """Returns when the last check is answered. The rate rises evenly from 0 over the first `ramp` seconds."""
        started = self._loop.time()
        expected = self._random.expovariate(1)
        async with asyncio.TaskGroup() as tasks:
            while (at := _when(expected, rate, ramp)) < seconds:
                await asyncio.sleep(started + at - self._loop.time())
                while _when(expected, rate, ramp) < at + TICK:
                    self._arrived.append((self._users.draw(), int(self._random.random() * self._processes)))
                    expected += self._random.expovariate(1)
                self._go_on(tasks)

    def _go_on(self, tasks: asyncio.TaskGroup) -> None:
        if self._arrived:
            tasks.create_task(self._answer_all(tasks))

    async def _answer_all(self, tasks: asyncio.TaskGroup) -> None:
        self._loop.call_soon(self._go_on, tasks)
        while self._arrived:
            await self._ask(*self._arrived.popleft())


def _when(expected: float, rate: float, ramp: float) -> float:
    """The second by which so many checks are to be expected: Poisson arrivals in time as it passes for the rate."""
    during = rate * ramp / 2
    return math.sqrt(2 * ramp * expected / rate) if expected < during else ramp + (expected - during) / rate
