"""A global table of the tests' own: regions, each with its replica, and what is between them.

By default it is as DynamoDB's is with eventual consistency: a condition sees the own replica, the others get the item
0.2 to 5 seconds later, and of two versions of an item the one written last stays. With `strong` there is one version,
and two regions that write it at the same moment are in conflict: one of them is refused. Time is the test's clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from random import Random

from ratelimit.clock import SECOND
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.names import Key
from ratelimit.store import MemoryStore, Outcome, Put, Record, Write
from ratelimit.store.records import Records
from ratelimit.testing import FakeClock

REGIONS = ("eu-west-1", "us-east-1", "ap-south-1")
MIN_LAG_S, MAX_LAG_S = 0.2, 5.0
CONFLICT_US = 100_000
KEPT = 2**40


class GlobalTable:
    def __init__(
        self,
        clock: FakeClock,
        random: Random,
        *,
        regions: Sequence[str] = REGIONS,
        strong: bool = False,
        lost_answers: float = 0.0,
        lag_s: tuple[float, float] = (MIN_LAG_S, MAX_LAG_S),
    ) -> None:
        self.clock, self.random, self.regions = clock, random, tuple(regions)
        self.strong, self.lost_answers, self.lag_s = strong, lost_answers, lag_s
        one = Records(10_000)
        self.records = {region: one if strong else Records(10_000) for region in regions}
        self.cuts: set[frozenset[str]] = set()
        self.asked = {(caller, region): 0 for caller in regions for region in regions}
        self.lost = 0
        """Writes that were executed, and whose answer never came."""
        self._stamps: dict[tuple[str, Key], tuple[int, int]] = {}
        self._waiting: list[tuple[int, int, str, str, Key, tuple[int, int], Record]] = []
        self._numbers = count()
        self._written: dict[Key, tuple[int, str]] = {}

    def stores(self, caller: str) -> dict[str, RegionStore]:
        """The table as a process in this region reaches it."""
        return {region: RegionStore(self, caller, region) for region in self.regions}

    def cut(self, one: str, other: str) -> None:
        self.cuts.add(frozenset((one, other)))

    def heal(self) -> None:
        self.cuts.clear()

    def settle(self) -> None:
        """Heal, and let time pass until all replicas have all."""
        self.heal()
        self.clock.advance(2 * MAX_LAG_S)
        self.replicate()

    def replicate(self) -> None:
        """Bring to the replicas what is due; over a cut it waits."""
        held = []
        while self._waiting and self._waiting[0][0] <= self.clock.now():
            entry = heappop(self._waiting)
            _, _, source, target, key, stamp, record = entry
            if frozenset((source, target)) in self.cuts:
                held.append(entry)
            elif stamp > self._stamps.get((target, key), (0, 0)):
                self._stamps[target, key] = stamp
                self.records[target].delete(key)
                if record:
                    puts = tuple(Put(field, value) for field, value in record.items())
                    self.records[target].apply(key, Write(puts, KEPT), self.clock.now())
        for entry in held:
            heappush(self._waiting, entry)

    def written(self, region: str, key: Key) -> None:
        """Send an item's new version on its way."""
        if self.strong:
            return
        stamp = self._stamps[region, key] = (self.clock.now(), next(self._numbers))
        record = self.records[region].read(key)
        for target in self.regions:
            if target != region:
                due = self.clock.now() + round(self.random.uniform(*self.lag_s) * SECOND)
                heappush(self._waiting, (due, next(self._numbers), region, target, key, stamp, record))

    def check(self, caller: str, region: str) -> None:
        """Raise where there is no way from here to there, or none from there to most of the others."""
        self.asked[caller, region] += 1
        if frozenset((caller, region)) in self.cuts and caller != region:
            raise StoreUnavailable(f"no way from {caller} to {region}")
        reached = sum(frozenset((region, other)) not in self.cuts or other == region for other in self.regions)
        if self.strong and 2 * reached <= len(self.regions):
            raise StoreUnavailable(f"{region} is alone")

    def check_conflict(self, region: str, key: Key) -> None:
        """Raise where another region writes the item just now."""
        at, writer = self._written.get(key, (0, region))
        if self.strong and writer != region and self.clock.now() - at < CONFLICT_US and self.random.random() < 0.5:
            raise StoreThrottled("ReplicatedWriteConflictException")
        self._written[key] = self.clock.now(), region

    def lose(self) -> None:
        if self.random.random() < self.lost_answers:
            self.lost += 1
            raise StoreUnavailable("the answer was lost")


class RegionStore(MemoryStore):
    """The replica of a region, asked from another one, or from the same."""

    def __init__(self, table: GlobalTable, caller: str, region: str) -> None:
        super().__init__()
        self.table, self.caller, self.region = table, caller, region
        self.records = table.records[region]

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        self.table.replicate()
        self.table.check(self.caller, self.region)
        self.table.check_conflict(self.region, key)
        outcome = self.records.apply(key, write, now)
        if outcome.applied:
            self.table.written(self.region, key)
            self.table.lose()
        return outcome

    async def read(self, key: Key) -> Record:
        self.table.replicate()
        self.table.check(self.caller, self.region)
        return self.records.read(key)

    async def read_all(self, keys: Sequence[Key]) -> Sequence[Record]:
        return [await self.read(key) for key in keys]

    async def delete(self, key: Key) -> None:
        self.table.replicate()
        self.table.check(self.caller, self.region)
        self.records.delete(key)
        self.table.written(self.region, key)
