"""`SplitStore`: each region has its share of every quota, whatever becomes of the others; totals are the sum."""

from __future__ import annotations

from collections import Counter
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import Limiter, Policy, Quota
from ratelimit.policy import AlgorithmName, Lease
from ratelimit.quota import CONCURRENT, INACTIVE, UNLIMITED, Quotas, to_quotas
from ratelimit.regions.sum import SplitStore
from ratelimit.store import MemoryStore, Store
from ratelimit.store.hashed import HashedUserStore
from ratelimit.testing import FakeClock
from tests.regions.replicator import REGIONS, GlobalTable
from tests.regions.test_histories import SEEDS, TODAY, USERS, World

SHARES = (3, 2, 1)
FALLS = dict(zip(REGIONS, (10, 7, 3), strict=True))
"""What of the 20 a day falls to each."""


def splitting(table: GlobalTable, region: str) -> Store:
    return SplitStore(table.stores(region), region, SHARES)


def parts(quotas: Quotas, shares: tuple[int, ...]) -> list[Quotas]:
    names = [f"region-{number}" for number in range(len(shares))]
    return [SplitStore({each: MemoryStore() for each in names}, name, shares).share(quotas) for name in names]


class SplitWorld(World):
    """It counts what each region admits."""

    async def run(self, steps: int = 200, *, cuts: float = 0.05) -> None:
        self.by_region: Counter[tuple[str, str]] = Counter()
        await super().run(steps, cuts=cuts)

    def was_admitted(self, region: str, user: str, cost: int, *, cuts: float) -> None:
        self.by_region[user, region] += cost


@SEEDS
@pytest.mark.parametrize(
    ("algorithm", "lease"), [("fixed_window", None), ("fixed_window", 4), ("sliding_window", None)]
)
async def test_a_region_never_admits_more_than_its_share(algorithm: AlgorithmName, lease: Lease, seeds: range) -> None:
    full = 0
    for seed in seeds:
        world = SplitWorld(seed, splitting, algorithm=algorithm, lease=lease)
        await world.run()
        for region, most in FALLS.items():
            limiter = Limiter(splitting(world.table, region), [world.policy], clock=world.clock)
            for user in USERS:
                assert world.by_region[user, region] <= most, seed
                full += world.by_region[user, region] == most
                total = (await limiter.totals(user))["hint"].get(TODAY, 0)
                assert lease or total == world.admitted[user], "totals are those of all regions"
                assert total >= world.admitted[user]
    assert full > len(seeds), "else no share is put to the test"


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**6), min_size=1, max_size=32).filter(any))
def test_the_shares_of_a_limit_add_up_to_it(limit: int, shares: list[int]) -> None:
    found = [share[0].limit for share in parts((Quota(limit, "day"),), tuple(shares))]
    assert sum(found) == limit
    for share, own in zip(shares, found, strict=True):
        assert abs(own - limit * share / sum(shares)) <= 1 + limit * 1e-12
        assert share or not own


def test_equal_shares_hand_the_remainder_to_the_first_and_what_has_no_limit_has_none() -> None:
    names = {each: MemoryStore() for each in REGIONS}
    stores = [SplitStore(names, region) for region in REGIONS]
    assert [store.share(to_quotas("20/day"))[0].limit for store in stores] == [7, 7, 6]
    assert [store.share(to_quotas("2 concurrent"))[0] for store in stores] == [
        Quota(limit, CONCURRENT) for limit in (1, 1, 0)
    ]
    assert [store.share(to_quotas("6/day burst 2"))[0] for store in stores] == [Quota(2, "day", 1)] * 3
    for quotas in (UNLIMITED, INACTIVE):
        assert all(store.share(quotas) is quotas for store in stores)


async def test_a_share_of_nothing_says_so_at_the_start_and_refuses(caplog: pytest.LogCaptureFixture) -> None:
    table = GlobalTable(FakeClock(), Random(1))
    policies = [Policy("export", "1/day"), Policy("hint", "9/day"), Policy("off", "0/day"), Policy("all", "unlimited")]
    limiter = Limiter(SplitStore(table.stores(REGIONS[2]), REGIONS[2]), policies, clock=table.clock)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("policies.export: of 1/day nothing falls to ap-south-1, which refuses everybody: give it a ")
    assert not (await limiter.check("alice", "export")).allowed
    assert (await limiter.check("alice", "hint")).quotas[0].quota == Quota(3, "day")
    assert (await limiter.check("alice", "all", cost=10**9)).allowed


async def test_quotas_of_a_plan_and_of_a_call_are_shared_too_and_under_hashed_users() -> None:
    async def quotas_for(user: str, action: str) -> Quotas | None:
        return {"bob": UNLIMITED, "eve": INACTIVE, "gold": to_quotas("30/day")}.get(user)

    table = GlobalTable(FakeClock(), Random(1))
    store = HashedUserStore(SplitStore(table.stores(REGIONS[1]), REGIONS[1], SHARES), "k" * 32)
    directory = SimpleNamespace(quotas_for=quotas_for)
    limiter = Limiter(store, [Policy("hint", "20/day")], clock=table.clock, directory=directory)
    assert [state.quota.limit for state in (await limiter.check("gold", "hint")).quotas] == [10]
    assert [state.quota.limit for state in (await limiter.check("alice", "hint")).quotas] == [7]
    assert [state.quota.limit for state in (await limiter.check("alice", "x", quotas="12/hour")).quotas] == [4]
    assert (await limiter.check("bob", "hint", cost=10**6)).allowed
    assert not (await limiter.check("eve", "hint")).allowed


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "gcra"])
async def test_a_region_decides_as_one_that_has_the_share_alone(algorithm: AlgorithmName) -> None:
    random, clock = Random(1), FakeClock()
    table = GlobalTable(clock, random)
    whole, own = (Policy("hint", quotas, algorithm=algorithm) for quotas in ("20/minute", "7/minute"))
    here = Limiter(splitting(table, REGIONS[1]), [whole], clock=clock, denial_cache=0)
    there = Limiter(splitting(table, REGIONS[0]), [whole], clock=clock, denial_cache=0)
    alone = Limiter(MemoryStore(), [own], clock=clock, denial_cache=0)
    for _ in range(100):
        clock.advance(random.choice([0.0, 1.0, 5.0]))
        await there.check("alice", "hint")
        decision = await here.check("alice", "hint")
        assert decision == await alone.check("alice", "hint")
        assert (await here.peek("alice", "hint")).quotas == (await alone.peek("alice", "hint")).quotas
        if decision.allowed and random.random() < 0.2:
            await here.refund(decision)
            await alone.refund("alice", "hint", 1)


async def test_slots_and_what_is_decided_together_are_the_own_regions() -> None:
    table = GlobalTable(FakeClock(), Random(1))
    policies = [Policy("export", "2 concurrent"), Policy("api", "20/day", together="org"), Policy("org", "2/day")]
    limiter = Limiter(SplitStore(table.stores(REGIONS[0]), REGIONS[0]), policies, clock=table.clock)
    async with limiter.slot("alice", "export"):
        assert (await limiter.peek("alice", "export")).quotas[0].remaining == 0, "one of two"
    both = [("alice", "api"), ("acme", "org")]
    assert [(await limiter.check_all(both)).allowed for _ in range(2)] == [True, False]
    await limiter.close()
    assert {pair for pair, count in table.asked.items() if count} == {(REGIONS[0], REGIONS[0])}
