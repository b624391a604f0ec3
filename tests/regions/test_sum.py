"""`SumStore`: usage is exact in the end, and a quota is exceeded by no more than the formula says."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from ratelimit import Limiter, MemoryStore, Policy, StoreMisconfigured, StoreUnavailable
from ratelimit.algorithms.fields import day_field, utc_day
from ratelimit.clock import SECOND
from ratelimit.metrics import sum_metrics
from ratelimit.names import Key
from ratelimit.opening import store_from_url
from ratelimit.policy import AlgorithmName
from ratelimit.regions.sum import REFRESH_US, SumStore, item_of
from ratelimit.store import Add, Put, Store, Write
from ratelimit.testing import FakeClock
from ratelimit.usage.reports import Reports
from tests.dynamodb.tables import replicated
from tests.engines import Engine
from tests.profiles import examples
from tests.regions.replicator import MAX_LAG_S, REGIONS, GlobalTable
from tests.regions.test_histories import LIMIT, SEEDS, TODAY, USERS, World

HERE = REGIONS[0]
UNSEEN_US = round(MAX_LAG_S * SECOND) + REFRESH_US
"""What another region has admitted longer ago than this is seen: lag and refresh."""
FEW = examples(30)


def summing(table: GlobalTable, region: str) -> Store:
    return SumStore(table.stores(region), region, clock=table.clock)


class SumWorld(World):
    """It checks at each admission what may be admitted by the formula."""

    async def run(self, steps: int = 120, *, cuts: float = 0.05) -> None:
        self.over = 0
        await super().run(steps, cuts=cuts)

    def was_admitted(self, region: str, user: str, cost: int, *, cuts: float) -> None:
        now = self.clock.now()
        self.log.append((now, region, user, cost))
        seen = sum(
            units
            for at, where, whose, units in self.log
            if whose == user and (where == region or now - at >= UNSEEN_US)
        )
        assert cuts or seen <= LIMIT, "own, and of the others all that is older than lag and refresh"
        self.over += self.admitted[user] > LIMIT


@SEEDS
@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window"])
async def test_a_quota_is_exceeded_within_the_formula(algorithm: AlgorithmName, seeds: range) -> None:
    over = refused = 0
    for seed in seeds:
        world = SumWorld(seed, summing, algorithm=algorithm)
        await world.run(cuts=0)
        over, refused = over + world.over, refused + world.refused
        await assert_all_is_counted(world)
    assert over > len(seeds), "else the formula is not put to the test"
    assert refused > len(seeds)


@SEEDS
async def test_nothing_is_lost_where_regions_are_cut_off(seeds: range) -> None:
    for seed in seeds:
        world = SumWorld(seed, summing)
        await world.run()
        await assert_all_is_counted(world)


async def assert_all_is_counted(world: World) -> None:
    for region in REGIONS:
        limiter = Limiter(summing(world.table, region), [world.policy], clock=world.clock)
        for user in USERS:
            assert (await limiter.totals(user))["hint"].get(TODAY, 0) == world.admitted[user]


async def test_a_check_reads_the_others_once_a_refresh_and_crosses_never() -> None:
    table = GlobalTable(FakeClock(), Random(1))
    limiter = Limiter(summing(table, HERE), [Policy("hint", "1000/day")], clock=table.clock, denial_cache=0)
    for _ in range(100):
        await limiter.check("alice", "hint")
    assert table.asked == {pair: 102 * (pair == (HERE, HERE)) for pair in table.asked}, "two others' items, once"
    for _ in range(4):
        table.clock.advance(0.6)  # older than half a refresh: read behind the answer
        await limiter.check("alice", "hint")
        await asyncio.sleep(0)
    assert table.asked[HERE, HERE] == 102 + 4 * 3


async def test_what_the_others_have_counted_is_told_as_one_record() -> None:
    stores = {region: MemoryStore() for region in REGIONS}
    one = stores[HERE]  # as a replica that has all of it
    for amount, region in enumerate(REGIONS):
        for user in ("alice", "bob")[: 2 - (amount > 0)]:
            await one.apply(item_of(Key(user, "a@b"), region), Write((Add("u260105", amount + 1),), 2**40), now=0)
    store = SumStore(stores, HERE)
    assert await store.read(Key("alice", "a@b")) == {"u260105": 6}
    assert dict((await store.scans.records()).entries) == {
        Key("alice", "a@b"): {"u260105": 6},
        Key("bob", "a@b"): {"u260105": 1},
    }
    assert await Reports(store, (), FakeClock()).top(TODAY, "a@b") == [("alice", 6), ("bob", 1)]


async def test_resetting_reaches_each_regions_item() -> None:
    stores = {region: MemoryStore() for region in REGIONS}
    for region, one in stores.items():
        await one.apply(item_of(Key("alice", "hint"), region), Write((Add("n", 1),), 2**40), now=0)
    store = SumStore(stores, HERE)
    assert await store.read(Key("alice", "hint")) == {"n": 1}, "as no other item has been replicated here"
    await store.delete(Key("alice", "hint"))
    assert [len(one) for one in stores.values()] == [0, 0, 0]


async def test_what_is_decided_together_is_written_in_the_own_region() -> None:
    table = GlobalTable(FakeClock(), Random(1))
    here = summing(table, HERE)
    write = Write((Add("n", 1, at_most=3),), 2**40)
    other = table.stores("us-east-1")["us-east-1"]
    await other.apply(item_of(Key("org", "hint"), "us-east-1"), Write((Add("n", 2),), 2**40), now=0)
    table.settle()
    both = [(Key("alice", "hint"), write), (Key("org", "hint"), write)]
    assert [outcome.applied for outcome in await here.apply_all(both, now=0)] == [True, True]
    refused = await here.apply_all(both, now=0)
    assert [outcome.applied for outcome in refused] == [True, False]
    assert refused[1].record == {"n": 3}


async def test_a_bucket_is_no_sum() -> None:
    store = SumStore({region: MemoryStore() for region in REGIONS}, HERE)
    with pytest.raises(StoreMisconfigured, match="buckets, slots and reservations are no sums"):
        await store.apply(Key("alice", "hint"), Write((Put("gd", 1),), 2**40), now=0)


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window"])
async def test_where_all_is_replicated_it_decides_as_one_region_does(algorithm: AlgorithmName) -> None:
    policy = Policy("hint", "10/minute; 30/hour", algorithm=algorithm)
    for seed in range(10):
        random, clock = Random(seed), FakeClock()
        table = GlobalTable(clock, random)
        one = Limiter(MemoryStore(), [policy], clock=clock, denial_cache=0)
        regions = [
            Limiter(summing(table, region), [policy], clock=clock, denial_cache=0) for region in REGIONS for _ in "12"
        ]
        for _ in range(80):
            table.settle()  # ten seconds later
            there = random.choice(regions)
            wanted, found = await one.check("alice", "hint"), await there.check("alice", "hint")
            assert found == wanted
            if found.allowed and random.random() < 0.2:
                await there.refund("alice", "hint")
                await one.refund("alice", "hint")


async def test_on_a_real_engine_whose_replicas_are_level(engine: Engine) -> None:
    if engine.name != "ministack":
        pytest.skip("this engine has no replicas")
    async with replicated(engine, HERE, "us-east-1") as settings:
        url = f"{engine.store_url(settings.table)}&regions={HERE},us-east-1&mode=sum"
        one, other = (store_from_url(url.replace(f"region={HERE}", f"region={region}")) for region in settings.regions)
        policies = [Policy("hint", "5/day"), Policy("look", "3/minute", algorithm="sliding_window")]
        async with Limiter(one, policies, denial_cache=0) as here, Limiter(other, policies, denial_cache=0) as there:
            for name, limit in (("hint", 5), ("look", 3)):
                allowed = []
                for limiter in (here, there, there, here, here, there, there, here):
                    # Nothing that is believed is older than a moment.
                    limiter.store._beliefs.clear()  # type: ignore[attr-defined]
                    allowed.append((await limiter.check("alice", name)).allowed)
                assert allowed == [True] * limit + [False] * (8 - limit)
            assert sum((await there.totals("alice"))["hint"].values()) == 5
            await here.reset("alice", "hint")
            there.store._beliefs.clear()  # type: ignore[attr-defined]
            assert (await there.check("alice", "hint")).quotas[0].used == 1


async def test_a_reset_reaches_every_region_and_leaves_the_totals() -> None:
    table = GlobalTable(FakeClock(), Random(1))
    limiters = [
        Limiter(summing(table, region), [Policy("hint", "9/day; 50/month")], clock=table.clock, denial_cache=0)
        for region in REGIONS
    ]
    for limiter in limiters:
        await limiter.check("alice", "hint", cost=3)
    table.settle()
    asked = dict(table.asked)
    assert not (await limiters[0].check("alice", "hint")).allowed
    assert {pair for pair in asked if table.asked[pair] != asked[pair]} == {(HERE, HERE)}
    await limiters[0].reset("alice", "hint")
    table.settle()
    for limiter in limiters:
        assert [state.used for state in (await limiter.peek("alice", "hint")).quotas] == [0, 0]
        assert (await limiter.totals("alice"))["hint"] == {TODAY: 9}
    await limiters[1].check("alice", "hint")
    table.settle()
    table.cut(HERE, "us-east-1")
    with pytest.raises(StoreUnavailable, match="no way from eu-west-1 to us-east-1"):
        await limiters[0].reset("alice", "hint")


async def test_what_a_quota_may_be_exceeded_by_is_told() -> None:
    """Ten units a second are admitted elsewhere, and here somebody looks every second: two seconds are not seen."""
    clock = FakeClock()
    stores = {region: MemoryStore() for region in REGIONS}
    here, key = SumStore(stores, HERE, clock=clock), Key("alice", "hint")
    policy = Policy("hint", "1000/day")
    limiter = Limiter(here, [policy], clock=clock)
    await limiter.check("alice", "hint")
    assert (here.excess, here.found) == (0, 0)
    for seconds in range(1, 4):
        for _ in range(10):
            item = item_of(key, "us-east-1")
            await stores[HERE].apply(item, Write((Add(day_field(utc_day(clock.now())), 1),), 2**40), now=0)
        clock.advance(1)
        await limiter.check("alice", "hint")
        assert (here.excess, here.found) == (20, 10 * seconds)
    assert sum_metrics(here)[0].samples[0].value == 30
    assert sum_metrics(here)[1].samples[0].value == 20
    clock.advance(59)
    await limiter.check("alice", "hint")
    assert here.excess == 20, "the most of a minute"
    clock.advance(2)
    assert here.excess == 0


@SEEDS
async def test_what_is_told_is_no_less_than_what_happens_where_all_ask_all_the_time(seeds: range) -> None:
    """With a lag of at most 1 s, as it is taken to be, and many checks a second in each region."""
    over = 0
    for seed in seeds:
        random, clock = Random(seed), FakeClock()
        table = GlobalTable(clock, random, lag_s=(0.2, 1.0))
        policy = Policy("hint", "200/day")
        stores = [SumStore(table.stores(region), region, clock=clock) for region in REGIONS]
        limiters = [Limiter(store, [policy], clock=clock, denial_cache=0) for store in stores]
        admitted, told = 0, 0.0
        for _ in range(600):
            clock.advance(random.uniform(0.005, 0.015))
            admitted += (await random.choice(limiters).check("alice", "hint")).allowed
            told = max(told, *(store.excess for store in stores))
        assert admitted - 200 <= told, seed
        over += admitted > 200
    assert over > len(seeds) / 2
