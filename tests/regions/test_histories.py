"""Random histories over three regions, with cuts between them: what a mode promises, and what is lost without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import date
from random import Random

import pytest

from ratelimit import Limiter, Policy
from ratelimit.algorithms.fields import day_field, utc_day
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Lease
from ratelimit.regions.home import HomeStore
from ratelimit.regions.regions import home_of
from ratelimit.store import Store
from ratelimit.testing import FakeClock
from tests.profiles import examples
from tests.regions.replicator import REGIONS, GlobalTable

LIMIT = 20
TODAY = date(2026, 1, 5)
USERS = ("alice", "bob", "carol")
FEW = examples(30)
SEEDS = pytest.mark.parametrize("seeds", [range(FEW), pytest.param(range(FEW, 300), marks=pytest.mark.slow)])

View = Callable[[GlobalTable, str], Store]
"""What a process in a region counts on."""


def naive(table: GlobalTable, region: str) -> Store:
    return table.stores(region)[region]


def home(table: GlobalTable, region: str) -> Store:
    return HomeStore(table.stores(region), region, clock=table.clock)


class World:
    """Two processes in each region, and what they have admitted."""

    def __init__(
        self,
        seed: int,
        view: View,
        *,
        lease: Lease = None,
        algorithm: AlgorithmName = "fixed_window",
        **table: float | bool,
    ) -> None:
        self.random, self.clock = Random(seed), FakeClock()
        self.table = self.new_table(**table)
        self.policy = Policy("hint", f"{LIMIT}/day", lease=lease, algorithm=algorithm, on_unavailable="deny")
        self.limiters = [
            (region, Limiter(view(self.table, region), [self.policy], clock=self.clock, denial_cache=0))
            for region in REGIONS
            for _ in range(2)
        ]
        self.log: list[tuple[int, str, str, int]] = []
        self.admitted: Counter[str] = Counter()
        self.refused = 0

    def new_table(self, **options: float | bool) -> GlobalTable:
        return GlobalTable(self.clock, self.random, **options)  # type: ignore[arg-type]

    async def step(self) -> None:
        """For what happens between checks."""

    async def run(self, steps: int = 120, *, cuts: float = 0.05) -> None:
        for _ in range(steps):
            self.clock.advance(self.random.choice([0.0, 0.0, 0.01, 0.1, 1.0, 3.0]))
            await self.step()
            if self.random.random() < cuts:
                self.table.cut(*self.random.sample(REGIONS, 2))
            if self.random.random() < cuts:
                self.table.heal()
            user, cost = self.random.choice(USERS), self.random.choice([1, 1, 2])
            region, limiter = self.random.choice(self.limiters)
            decision = await limiter.check(user, "hint", cost=cost)
            if decision.allowed:
                self.admitted[user] += cost
                self.was_admitted(region, user, cost, cuts=cuts)
            self.refused += not decision.allowed and decision.reason == "quota"
        self.table.heal()
        for _, limiter in self.limiters:
            await limiter.close()
        self.table.settle()

    def was_admitted(self, region: str, user: str, cost: int, *, cuts: float) -> None:
        """For those who look at each admission."""

    def counted(self, region: str, user: str) -> int:
        """What the usage of today is there."""
        return self.table.records[region].read(Key(user, "hint")).get(day_field(utc_day(self.clock.now())), 0)


@pytest.mark.heavy
async def test_naive_regions_admit_too_much_and_lose_usage() -> None:
    """The fault: each region counts in the same item, sees only its own version, and the last writer wins."""
    over = lost = worst = 0
    for seed in range(10):
        world = World(seed, naive)
        await world.run(steps=400, cuts=0)
        for user in USERS:
            over += world.admitted[user] > LIMIT
            lost += world.counted(REGIONS[0], user) < world.admitted[user]
            worst = max(worst, world.admitted[user])
    assert over > 15
    assert lost > 15
    assert LIMIT < worst <= len(REGIONS) * LIMIT


@pytest.mark.heavy
async def test_naive_regions_that_are_cut_off_admit_the_quota_each() -> None:
    world = World(1, naive)
    for one, other in zip(REGIONS, (*REGIONS[1:], REGIONS[0]), strict=True):
        world.table.cut(one, other)
    await world.run(steps=1000, cuts=0)
    assert world.admitted["alice"] == len(REGIONS) * LIMIT
    assert {world.counted(region, "alice") for region in REGIONS} == {LIMIT}


@SEEDS
@pytest.mark.parametrize("lease", [None, 5, "auto"])
async def test_home_never_admits_too_much_and_loses_nothing(lease: Lease, seeds: range) -> None:
    refused = 0
    for seed in seeds:
        world = World(seed, home, lease=lease)
        await world.run()
        for user in USERS:
            counted = world.counted(home_of(user, REGIONS), user)
            assert world.admitted[user] <= counted <= LIMIT, seed
            assert lease or world.admitted[user] == counted, "only units of a lease may be counted and not used"
            assert len({world.counted(region, user) for region in REGIONS}) == 1, "all replicas agree"
        refused += world.refused
    assert refused > len(seeds)


@SEEDS
async def test_home_never_counts_too_little_where_answers_are_lost(seeds: range) -> None:
    lost = 0
    for seed in seeds:
        world = World(seed, home, lost_answers=0.1)
        await world.run()
        lost += world.table.lost
        for user in USERS:
            assert world.admitted[user] <= world.counted(home_of(user, REGIONS), user) <= LIMIT, seed
    assert lost > len(seeds)


@SEEDS
@pytest.mark.parametrize("lost_answers", [0.0, 0.1])
async def test_strong_never_admits_too_much_and_loses_nothing(lost_answers: float, seeds: range) -> None:
    for seed in seeds:
        world = World(seed, naive, strong=True, lost_answers=lost_answers)
        await world.run()
        for user in USERS:
            assert world.admitted[user] <= world.counted(REGIONS[0], user) <= LIMIT, seed
            assert lost_answers or world.admitted[user] == world.counted(REGIONS[0], user), seed
