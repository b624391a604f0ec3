"""One simulation: a mode, a number of processes, a demand. The same seed gives the same figures."""

from __future__ import annotations

import asyncio
import gc
import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from time import perf_counter
from typing import Final, TypeAlias

import msgspec

from ratelimit.algorithms.totals import totals_of
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError
from ratelimit.quota import Quota
from ratelimit.testing import virtual_time

from .clients import ACTION, Mode, Process
from .demand import Demand, Keys, Users
from .table import RegionalStore, SimulatedStore, Table, at_once

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
        decision = await processes[process].check(user, ACTION)
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


async def _shut_down(processes: list[Process]) -> None:
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
