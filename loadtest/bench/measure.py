"""Contenders that take turns: each round runs all of them, so that a noisy moment hits them alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from statistics import median
from typing import TypeAlias

import msgspec

Call: TypeAlias = Callable[[], Awaitable[object]]


class Figures(msgspec.Struct, frozen=True):
    """Medians over the rounds."""

    name: str
    cpu_us: float
    """CPU of this process per call, one call after the other."""
    per_second: float
    """Calls a second, `at_once` at a time."""
    cpu_us_at_once: float
    """CPU per call in those: what a busy machine does not distort."""
    cpu_ratio: float
    """How many times less CPU than the first contender: the median of the rounds' ratios."""
    rate_ratio: float
    cpu_ratio_at_once: float


async def compare(contenders: Mapping[str, Call], *, rounds: int, seconds: float, at_once: int) -> list[Figures]:
    """Measure all; the first is what the others are held against."""
    for call in contenders.values():
        await _one_by_one(call, seconds / 4)
    cpu, rate, busy = (_columns(contenders) for _ in range(3))
    for _ in range(rounds):
        for name, call in contenders.items():
            cpu[name].append(await _one_by_one(call, seconds))
        for name, call in contenders.items():
            per_second, each = await _many(call, seconds, at_once)
            rate[name].append(per_second)
            busy[name].append(each)
    first = next(iter(contenders))
    return [
        Figures(
            name=name,
            cpu_us=median(cpu[name]),
            per_second=median(rate[name]),
            cpu_us_at_once=median(busy[name]),
            cpu_ratio=_ratio(cpu[first], cpu[name]),
            rate_ratio=_ratio(rate[name], rate[first]),
            cpu_ratio_at_once=_ratio(busy[first], busy[name]),
        )
        for name in contenders
    ]


def _columns(names: Iterable[str]) -> dict[str, list[float]]:
    return {name: [] for name in names}


def _ratio(more: list[float], less: list[float]) -> float:
    """The median of the rounds' ratios."""
    return median(one / other for one, other in zip(more, less, strict=True))


async def _one_by_one(call: Call, seconds: float) -> float:
    """Microseconds of CPU per call."""
    calls, began = 0, time.process_time()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        for _ in range(10):
            await call()
        calls += 10
    return (time.process_time() - began) / calls * 1e6


async def _many(call: Call, seconds: float, at_once: int) -> tuple[float, float]:
    """Calls a second, and microseconds of CPU per call."""
    calls, cpu_began = 0, time.process_time()
    began = time.perf_counter()
    until = began + seconds

    async def loop() -> None:
        nonlocal calls
        while time.perf_counter() < until:
            await call()
            calls += 1

    await asyncio.gather(*(loop() for _ in range(at_once)))
    return calls / (time.perf_counter() - began), (time.process_time() - cpu_began) / calls * 1e6
