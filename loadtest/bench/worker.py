"""A contender in a process of its own, that takes a turn whenever it is told to.

`python -m loadtest.bench.worker MODULE:FUNCTION OPTIONS` opens `FUNCTION(**OPTIONS)`, an async context manager that
gives a `Contender`, says `"ready"`, and then answers each line of JSON on its standard input with one. Only the
standard library, since peers run it in a virtual environment of their own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from loadtest.talking import obey

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
        return self.calls / self.seconds

    @property
    def cpu_us(self) -> float:
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


@dataclass(frozen=True)
class Contender:
    """Something to be measured. `count` gives figures that are counted and not timed, as in write units per check."""

    call: Call
    count: Callable[[], Awaitable[dict[str, float]]] | None = None
    turn: Callable[..., Awaitable[Turn]] | None = None
    """Takes its turn in a way of its own, as what blocks has to."""


Open = Callable[..., AbstractAsyncContextManager[Contender]]


def main(target: str, options: str) -> None:
    given: dict[str, Any] = json.loads(options)
    factory = None
    if given.pop("uvloop", False):
        factory = import_module("uvloop").new_event_loop
    module, _, name = target.partition(":")
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(getattr(import_module(module), name), given))


async def _serve(open_: Open, options: dict[str, Any]) -> None:
    async with open_(**options) as contender:

        async def answer(order: Any) -> object:
            if order == "count":
                return {} if contender.count is None else await contender.count()
            return await (contender.turn or partial(take_turn, contender.call))(**order)

        await obey("ready", answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
