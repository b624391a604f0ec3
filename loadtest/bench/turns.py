"""One turn of one contender: the same loop for all of them, whatever they check with.

Only the standard library, since peers run it in a virtual environment of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

Call = Callable[[], Awaitable[object]]

_BLOCK = 10
_MIN_CPU = 1e-9


class Turn(NamedTuple):
    """What a turn came to. Microseconds, but for `seconds` and `cpu_seconds`."""

    calls: int
    seconds: float
    cpu_seconds: float
    """Of this process: the servers are others."""
    p50_us: float = 0.0
    p99_us: float = 0.0

    @property
    def per_second(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per call."""
        return max(self.cpu_seconds, _MIN_CPU) / self.calls * 1e6


async def take_turn(call: Call, *, seconds: float, at_once: int) -> Turn:
    """Call over and over for so long: `at_once` loops of it; with 1, without timing the single call."""
    if at_once == 1:
        return await _alone(call, seconds)
    times: list[float] = []
    clock = time.perf_counter
    cpu, began = time.process_time(), clock()
    until = began + seconds

    async def loop() -> None:
        now = clock()
        while now < until:
            sent = now
            await call()
            now = clock()
            times.append(now - sent)

    await asyncio.gather(*(loop() for _ in range(at_once)))
    ended, cpu = clock(), time.process_time() - cpu
    times.sort()
    return Turn(len(times), ended - began, cpu, at(times, 0.50), at(times, 0.99))


async def _alone(call: Call, seconds: float) -> Turn:
    calls = 0
    clock = time.perf_counter
    cpu, began = time.process_time(), clock()
    until = began + seconds
    while clock() < until:
        for _ in range(_BLOCK):
            await call()
        calls += _BLOCK
    return Turn(calls, clock() - began, time.process_time() - cpu)


def at(times: list[float], part: float) -> float:
    """The quantile, in microseconds; the times are sorted seconds."""
    return times[min(len(times) - 1, int(part * len(times)))] * 1e6
