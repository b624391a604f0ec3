"""A bad store: how long a check takes with each `on_unavailable`, and what it costs once the breaker is open."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, get_args

import typer

from loadtest.bench.report import AtOnce, BenchTarget, Figure, Findings, Rounds, Row
from loadtest.bench.runner import CREDENTIALS
from loadtest.bench.stub import Mood, stub_server
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.limiter import Limiter
from ratelimit.policy import OnUnavailable, Policy

Fault: TypeAlias = Literal["slow (2 s)", "dead", "500", "throttling"]

DEADLINE: Final = 0.25
LANES: Final = ("fast", "aiobotocore")
_MOODS: Final[dict[str, Mood]] = {"500": "failing", "throttling": "throttling"}
_ACTION: Final = "hint"
_TOLERANCE_MS: Final = 20
_OPENS_WITHIN: Final = 10


class _Case(NamedTuple):
    """What one fault did to the checks under one `on_unavailable`."""

    waits: list[float]
    """Seconds, of each check while the breaker was closed."""
    open_us: list[float]
    """Microseconds of CPU per check with the breaker open; none where it never opens."""

    @property
    def over_ms(self) -> float:
        """By how much the slowest check was later than the deadline; 0 where none was."""
        return max(0.0, max(self.waits) - DEADLINE) * 1000


def run(
    rounds: Rounds = 5,
    at_once: AtOnce = 32,
    repeats: Annotated[int, typer.Option(help="Checks with the breaker open, per round.")] = 2_000,
) -> Findings:
    """A bad store: how late a check may be, and what it costs once the breaker is open. Every fault with every answer
    to it, in bursts of as many users as checks."""
    os.environ |= CREDENTIALS
    cases = {
        (fault, lane, answer): asyncio.run(_case(fault, answer, lane == "fast", rounds, at_once, repeats))
        for fault in get_args(Fault)
        for lane in LANES
        for answer in get_args(OnUnavailable)
    }
    rows = [Row(f"{fault}, {lane} lane, {answer}", _figures(case)) for (fault, lane, answer), case in cases.items()]
    checks = sum(len(case.waits) for case in cases.values())
    late = max(case.over_ms for case in cases.values())
    opened = [median(case.open_us) for case in cases.values() if case.open_us]
    targets = [
        BenchTarget(f"the slowest of {checks:,} checks, ms over the deadline", late, "at most", _TOLERANCE_MS),
        BenchTarget("a check with the breaker open, µs", max(opened), "at most", 100),
    ]
    notes = [
        f"deadline {DEADLINE * 1000:.0f} ms; {at_once} checks at a time; throttling does not open the breaker; "
        "gc.freeze() once the store is open"
    ]
    return Findings(rows, targets, notes)


async def _case(fault: Fault, answer: OnUnavailable, fast: bool, rounds: int, at_once: int, repeats: int) -> _Case:
    case = _Case([], [])
    policy = Policy(_ACTION, "1000000/hour", on_unavailable=answer)
    with _faulty(fault) as (endpoint, break_it):
        store = DynamoDBStore(table="bench", endpoint=endpoint, fast=fast)
        async with Limiter(store, [policy], deadline=DEADLINE) as limiter:
            # botocore's model is a hundred thousand objects: going through them once takes longer than the tolerance.
            gc.freeze()
            break_it()
            for number in range(rounds):
                limiter.breaker.succeeded()  # closed again, as far as it knows
                case.waits.extend(await _burst(limiter, number, at_once))
                if fault != "throttling":
                    await _open_breaker(limiter)
                    case.open_us.append(await _cost_when_open(limiter, repeats))
    return case


async def _burst(limiter: Limiter, number: int, at_once: int) -> list[float]:
    async def one(user: str) -> float:
        began = time.perf_counter()
        decision = await limiter.check(user, _ACTION)
        if decision.reason != "unavailable":
            raise AssertionError(decision)
        return time.perf_counter() - began

    return await asyncio.gather(*(one(f"user-{number}-{each}") for each in range(at_once)))


async def _open_breaker(limiter: Limiter) -> None:
    for number in range(_OPENS_WITHIN):
        if limiter.breaker.state == "open":
            return
        await limiter.check(f"opener-{number}", _ACTION)
    raise AssertionError(f"the breaker is {limiter.breaker.state} after {_OPENS_WITHIN} failures")


async def _cost_when_open(limiter: Limiter, repeats: int) -> float:
    began = time.process_time()
    for _ in range(repeats):
        await limiter.check("somebody", _ACTION)
    return (time.process_time() - began) / repeats * 1e6


@contextmanager
def _faulty(fault: Fault) -> Iterator[tuple[str, Callable[[], object]]]:
    """A stub that lets the store open, and what to call after that: the dead one dies then, as a server would."""
    with ExitStack() as exits:
        delay = 2.0 if fault == "slow (2 s)" else 0.0
        endpoint = exits.enter_context(stub_server(delay=delay, mood=_MOODS.get(fault, "ok")))
        yield endpoint, exits.close if fault == "dead" else lambda: None


def _figures(case: _Case) -> dict[str, Figure]:
    return {
        "p50 ms": median(case.waits) * 1000,
        "max ms": max(case.waits) * 1000,
        "ms over the deadline": case.over_ms,
        "CPU µs, breaker open": median(case.open_us) if case.open_us else None,
    }
