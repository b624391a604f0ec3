"""One simulation: a mode, a number of processes, a demand. The same seed gives the same figures."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
from array import array
from bisect import bisect
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from time import perf_counter
from typing import Final, Literal, TypeAlias

import msgspec

from ratelimit.algorithms.totals import totals_of
from ratelimit.breaker import BreakerState
from ratelimit.clock import Clock
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.limiter import Limiter
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import Counters
from ratelimit.limiter.deadline import CircuitBreaker
from ratelimit.limiter.limiter import DEFAULT_DEADLINE
from ratelimit.names import Key
from ratelimit.policy import Lease, Policy
from ratelimit.quota import Quota
from ratelimit.store import Store
from ratelimit.testing import virtual_time

from .table import RegionalStore, SimulatedStore, Table, at_once

# One simulated process: what it does with a check, by mode.

_ACTION: Final = "load"


@dataclass(frozen=True, slots=True)
class Mode:
    """`plain` (a write for every check), `coalesced` (what a policy does by itself), or with a lease."""

    name: str
    plain: bool = False
    lease: Lease = None

    @classmethod
    def parse(cls, text: str) -> Mode:
        """`plain`, `coalesced`, `lease=50`, `lease=auto` (or `50`, `auto`). Raises `ConfigError`."""
        text = text.strip().lower()
        if text == "plain":
            return cls("plain", plain=True)
        if text == "coalesced":
            return cls("coalesced")
        amount = text.removeprefix("lease=")
        if amount == "auto":
            return cls("lease=auto", lease="auto")
        if amount.isascii() and amount.isdecimal() and int(amount) > 0:
            return cls(f"lease={int(amount)}", lease=int(amount))
        raise ConfigError("modes", f"unknown mode {text!r}; use plain, coalesced, lease=50 or lease=auto")

    def process(self, store: Store, quotas: str, clock: Clock) -> Limiter | Plain:
        """A process that has just started. Where the store gives no answer it refuses, so that nothing is uncounted."""
        policy = Policy(_ACTION, quotas, lease=self.lease, on_unavailable="deny")
        return Plain(store, policy, clock) if self.plain else Limiter(store, [policy], clock=clock)


class Plain:
    """What a naive client does: a conditional write for every check. Same counters, same deadline and breaker as
    `Limiter`; no coalescer, no denial cache, no lease."""

    def __init__(self, store: Store, policy: Policy, clock: Clock) -> None:
        self._counters = Counters(store, max_records=10_000, denial_cache=0)
        self._circuit = CircuitBreaker(clock, DEFAULT_DEADLINE, BreakerState())
        self._compiled = CompiledPolicy(policy)
        self._clock = clock

    async def check(self, user: str, action: str) -> Decision:
        now = self._clock.now()
        try:
            with self._circuit.call():
                return await self._counters.spend_one(self._compiled, Key(user, action), now, 1)
        except StoreUnavailable:
            return Decision(
                allowed=False, policy=action, cost=1, quotas=(), retry_after=1.0, reason="unavailable", at_us=now
            )

    async def close(self) -> None:
        """Nothing is held."""


# Who asks, and when: Poisson arrivals, on one hot key or on many by Zipf's law, spread evenly over the processes.

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


# What came of the checks of one run, counted as they are answered.

# A user, and the index of the window.
Share: TypeAlias = tuple[str, int]


class AdmissionTally:
    """Counts decisions against one quota."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.latencies = array("d")
        """Seconds, of every check."""
        self.asked: Counter[Share] = Counter()
        self.admitted: Counter[Share] = Counter()
        self.unavailable = 0
        self.early = 0
        """Refused by the quota at a moment when fewer than its limit had been granted to anybody."""
        self._span = quota.window.span(0)

    def count(self, user: str, decision: Decision, latency: float) -> None:
        """One answer. It counts into the window of the moment it was decided in."""
        if not self._span.start <= decision.at_us < self._span.end:
            self._span = self.quota.window.span(decision.at_us)
        share = (user, self._span.index)
        self.latencies.append(latency)
        self.asked[share] += 1
        if decision.allowed:
            self.admitted[share] += 1
        elif decision.reason == "unavailable":
            self.unavailable += 1
        elif self.admitted[share] < self.quota.limit:
            self.early += 1

    @property
    def checks(self) -> int:
        return len(self.latencies)

    @property
    def over_admission(self) -> int:
        """Units admitted beyond a quota. Must be 0."""
        return sum(max(0, admitted - self.quota.limit) for admitted in self.admitted.values())

    @property
    def under_admission(self) -> float:
        """Of the units that were asked for and within the quota, the share that nobody got."""
        due = {share: min(asked, self.quota.limit) for share, asked in self.asked.items()}
        missed = sum(max(0, units - self.admitted[share]) for share, units in due.items())
        return missed / sum(due.values()) if due else 0.0

    def quantiles(self, *shares: float) -> list[float]:
        """Latencies in seconds that these shares of the checks stayed within."""
        ordered = sorted(self.latencies)
        return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0 for share in shares]


_STOPS: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is simulated. `limit` is a quota for each user (`800000/day`)."""

    processes: int
    rate: float
    seconds: float
    limit: str
    keys: Keys = "hot"
    ramp: float = 0.0
    """Seconds over which the rate rises from 0; without, every process starts from nothing under full load."""
    seed: int = 1
    regions: int = 1
    """Regions that the processes are spread over, each user at home in one of them (`mode = "home"`)."""
    crossing_ms: float = 80.0
    """What the way to another region and back takes."""

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= 100_000:
            raise ConfigError("processes", f"must be between 1 and 100,000, not {self.processes}")
        for name in ("rate", "seconds"):
            if not 0 < getattr(self, name) <= 1e9:
                raise ConfigError(name, f"must be more than 0, not {getattr(self, name)!r}")
        if not 0 <= self.ramp <= self.seconds:
            raise ConfigError("ramp", f"must be between 0 and the {self.seconds:g} seconds, not {self.ramp!r}")
        if self.keys not in ("hot", "zipf"):
            raise ConfigError("keys", f"use hot or zipf, not {self.keys!r}")
        if not 1 <= self.regions <= self.processes:
            raise ConfigError("regions", f"must be between 1 and the {self.processes} processes, not {self.regions}")
        Quota.parse(self.limit)


class Result(msgspec.Struct, frozen=True):
    """The figures of one mode. Latencies in milliseconds of virtual time, shares between 0 and 1."""

    mode: str
    checks: int
    p50: float
    p99: float
    p999: float
    units_per_check: float
    attempted_first: float
    """Writes that reached the hottest item in the first second, in which every process starts from nothing."""
    attempted_peak: float
    """Writes that reached it in the busiest second after that, throttled ones included."""
    taken_peak: float
    """Writes that this item took in its busiest second: never above its capacity, but for the burst."""
    throttles: int
    unavailable: float
    """Share of the checks that the store gave no answer to."""
    over_admission: int
    under_admission: float
    early: float
    """Share of the checks refused while another process still held units."""
    held: int
    """Units taken ahead and not granted when the demand ended."""
    lost: int
    """Units counted and granted to nobody after all processes shut down: what throttled returns, and writes whose
    answer came too late, leave behind."""
    attempted: list[int]
    """Writes that reached the hottest item, second by second."""
    wall_seconds: float
    crossings: int = 0
    """Writes to another region."""


def simulate(case: Case, mode: Mode) -> Result:
    """Run one mode. Takes real time only for what is computed."""
    gc.collect()
    gc.freeze()
    started = perf_counter()
    with _silence():
        result = virtual_time.run(_simulate(case, mode))
    return msgspec.structs.replace(result, wall_seconds=perf_counter() - started)


@contextmanager
def _silence() -> Iterator[None]:
    """A thousand breakers have a lot to say; whoever called is not to be silent afterwards."""
    logger = logging.getLogger("ratelimit")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


async def _simulate(case: Case, mode: Mode) -> Result:
    loop = asyncio.get_running_loop()
    clock = virtual_time.VirtualClock(loop)
    demand, service = Random(case.seed), Random(case.seed + 1)
    table = Table(loop, service)
    tally = AdmissionTally(Quota.parse(case.limit))
    processes = [
        mode.process(_store(case, table, service, number), case.limit, clock) for number in range(case.processes)
    ]

    async def ask(user: str, process: int) -> None:
        began = loop.time()
        decision = await processes[process].check(user, _ACTION)
        tally.count(user, decision, loop.time() - began)

    users = Users(case.keys, demand)
    await Demand(ask, users, demand, processes=case.processes).put(case.rate, case.seconds, ramp=case.ramp)
    duration, held = loop.time(), _counted(table) - sum(tally.admitted.values())
    result = _result(mode, table, tally, duration, held)
    await _shut_down(processes)
    return msgspec.structs.replace(result, lost=_counted(table) - sum(tally.admitted.values()))


def _store(case: Case, table: Table, random: Random, process: int) -> SimulatedStore:
    if case.regions == 1:
        return SimulatedStore(table, random)
    here, crossing_s = process % case.regions, case.crossing_ms / 1000
    return RegionalStore(table, random, here=here, regions=case.regions, crossing_s=crossing_s)


async def _shut_down(processes: list[Limiter | Plain]) -> None:
    """One after the other, `_STOPS` a second: a rolling restart. What they return are writes, too."""
    closing = []
    for process in processes:
        closing.append(asyncio.create_task(process.close()))
        await asyncio.sleep(1 / _STOPS)
    await asyncio.gather(*closing)


def _result(mode: Mode, table: Table, tally: AdmissionTally, duration: float, held: int) -> Result:
    attempted = max(table.attempted.values(), key=Counter.total, default=Counter[int]())
    taken = max(table.taken.values(), key=Counter.total, default=Counter[int]())
    # A run shorter than a second is told as what a second of it would be.
    length = min(1.0, duration)
    checks = max(1, tally.checks)
    p50, p99, p999 = (seconds * 1000 for seconds in tally.quantiles(0.5, 0.99, 0.999))
    return Result(
        mode=mode.name,
        checks=tally.checks,
        p50=p50,
        p99=p99,
        p999=p999,
        units_per_check=table.write_units / checks,
        attempted_first=attempted[0] / length,
        attempted_peak=max((count for second, count in attempted.items() if second), default=0),
        taken_peak=max(taken.values(), default=0) / length,
        throttles=table.throttles,
        unavailable=tally.unavailable / checks,
        over_admission=tally.over_admission,
        under_admission=tally.under_admission,
        early=tally.early / checks,
        held=held,
        lost=0,
        attempted=[attempted[second] for second in range(int(duration) + 1)],
        wall_seconds=0.0,
        crossings=table.crossings,
    )


def _counted(table: Table) -> int:
    """Units that the records say were used."""
    return sum(sum(totals_of(at_once(table.memory.read(key))).values()) for key in table.taken)
