"""`HomeStore`: a user is counted in one region, and only there; what crosses is counted, and what is away hurts nobody
else."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random
from statistics import median

import pytest

from ratelimit import Limiter, Policy
from ratelimit.directory import Directory
from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.names import Key
from ratelimit.regions.home import HomeStore
from ratelimit.regions.regions import home_of
from ratelimit.store import Add, MemoryStore, Outcome, Write
from ratelimit.store.directory import Plan, User
from ratelimit.testing import FakeClock, virtual_time
from ratelimit.testing.virtual_time import VirtualClock
from tests.limiter.stores import FailingStore, failing, hang
from tests.regions.replicator import REGIONS, GlobalTable

HERE = REGIONS[0]
CROSSING_S = 0.08


def user_of(region: str, number: int = 0) -> str:
    """Somebody who is counted there."""
    found = [user for user in map("user-{}".format, range(1000)) if home_of(user, REGIONS) == region]
    return found[number]


def test_homes_are_spread_and_stay_where_a_region_comes_or_goes() -> None:
    users = [f"user-{number}" for number in range(6000)]
    homes = {user: home_of(user, REGIONS) for user in users}
    assert all(1800 < count < 2200 for count in Counter(homes.values()).values())
    assert homes == {user: home_of(user, REGIONS[::-1]) for user in users}
    without = {user: home_of(user, REGIONS[:2]) for user in users}
    assert {user for user in users if without[user] != homes[user]} == {
        user for user in users if homes[user] == REGIONS[2]
    }


async def test_every_region_asks_the_home() -> None:
    table = GlobalTable(FakeClock(), Random(1))
    user = user_of("us-east-1")
    limiters = [
        Limiter(HomeStore(table.stores(region), region), [Policy("hint", "5/day")], clock=table.clock)
        for region in REGIONS
    ]
    allowed = [(await limiter.check(user, "hint")).allowed for limiter in limiters for _ in range(3)]
    assert allowed == [True] * 5 + [False] * 4
    assert {pair for pair, count in table.asked.items() if count} == {(region, "us-east-1") for region in REGIONS}
    assert (await limiters[0].peek(user, "hint")).used == 5
    await limiters[2].reset(user, "hint")
    assert (await limiters[0].peek(user, "hint")).used == 0


async def test_who_was_at_home_in_a_region_that_is_taken_out_of_the_list_is_counted_on_elsewhere() -> None:
    table, policy = GlobalTable(FakeClock(), Random(1)), Policy("hint", "5/day")
    users = [user_of(region) for region in REGIONS]
    for user in users:
        limiter = Limiter(HomeStore(table.stores(HERE), HERE), [policy], clock=table.clock)
        assert (await limiter.check(user, "hint", cost=4)).allowed
    table.settle()  # as whoever changes the list has to wait for
    left = {region: store for region, store in table.stores(HERE).items() if region != REGIONS[2]}
    limiter = Limiter(HomeStore(left, HERE), [policy], clock=table.clock, denial_cache=0)
    for user in users:
        assert [(await limiter.check(user, "hint")).allowed for _ in range(2)] == [True, False], user


class Far(MemoryStore):
    """A store that is a crossing away."""

    crossings = 0

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        self.crossings += 1
        await asyncio.sleep(CROSSING_S)
        return await super().apply(key, write, now=now)


def test_a_lease_crosses_once_for_all_of_its_units() -> None:
    async def main() -> tuple[int, int, list[float]]:
        loop = asyncio.get_running_loop()
        far = Far()
        store = HomeStore({HERE: MemoryStore(), REGIONS[1]: far}, HERE)
        user = next(f"user-{n}" for n in range(99) if home_of(f"user-{n}", (HERE, REGIONS[1])) == REGIONS[1])
        policy = Policy("hint", "10000/day", lease=49)
        took = []
        async with Limiter(store, [policy], clock=VirtualClock(loop), deadline=1) as limiter:
            for _ in range(1000):
                before = loop.time()
                assert (await limiter.check(user, "hint")).allowed
                took.append(loop.time() - before)
            return far.crossings, store.asked[REGIONS[1]], took

    crossings, asked, took = virtual_time.run(main())
    assert crossings == asked == 1000 / 50
    assert median(took) == 0
    assert sum(took) == pytest.approx(crossings * CROSSING_S)


def failing_home(clock: FakeClock) -> tuple[HomeStore, FailingStore]:
    away = FailingStore()
    away.fault = failing(StoreUnavailable("away"))
    stores = {region: MemoryStore() for region in REGIONS} | {"us-east-1": away}
    return HomeStore(stores, HERE, clock=clock), away  # type: ignore[arg-type]


async def test_a_home_that_is_away_shuts_out_nobody_else() -> None:
    clock = FakeClock()
    store, away = failing_home(clock)
    limiter = Limiter(store, [Policy("hint", "1000/day", on_unavailable="deny")], clock=clock)
    for _ in range(20):
        assert (await limiter.check(user_of("us-east-1"), "hint")).reason == "unavailable"
    assert away.calls["apply"] == 3
    for region in (HERE, "ap-south-1"):
        assert (await limiter.check(user_of(region), "hint")).reason is None
    away.fault = None
    clock.advance(1)
    assert (await limiter.check(user_of("us-east-1"), "hint")).allowed


async def test_a_home_that_never_answers_costs_three_deadlines() -> None:
    store, away = failing_home(FakeClock())
    away.fault = hang
    limiter = Limiter(store, [Policy("hint", "9/day", on_unavailable="deny")], clock=FakeClock(), deadline=0.02)
    for _ in range(9):
        assert (await limiter.check(user_of("us-east-1"), "hint")).reason == "unavailable"
    assert away.calls["apply"] == 3
    patient = Limiter(store, [Policy("hint", "9/day", on_unavailable="deny")], clock=FakeClock(), deadline=20)
    assert (await patient.check(user_of(HERE), "hint")).allowed


async def test_a_home_that_is_left_alone_has_written_nothing() -> None:
    store, _ = failing_home(FakeClock())
    write = Write((Add("n", 1),), 2**40)
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="away"):
            await store.apply(Key(user_of("us-east-1"), "hint"), write, now=0)
    with pytest.raises(StoreThrottled, match="us-east-1, where this user is counted, has failed repeatedly"):
        await store.apply(Key(user_of("us-east-1"), "hint"), write, now=0)


async def test_reads_of_many_come_back_in_their_order() -> None:
    store = HomeStore({region: MemoryStore() for region in REGIONS}, HERE)
    keys = [Key(user_of(region, number), "hint") for number in range(3) for region in REGIONS]
    for amount, key in enumerate(keys):
        await store.apply(key, Write((Add("n", amount + 1),), 2**40), now=0)
    assert [record["n"] for record in await store.read_all(keys)] == list(range(1, len(keys) + 1))


async def test_all_or_none_needs_one_home() -> None:
    store = HomeStore({region: MemoryStore() for region in REGIONS}, HERE)
    write = Write((Add("n", 1),), 2**40)
    one, other = (Key(user_of("us-east-1", number), "hint") for number in range(2))
    assert all(outcome.applied for outcome in await store.apply_all([(one, write), (other, write)], now=0))
    with pytest.raises(StoreMisconfigured, match=r"counted in ap-south-1 and us-east-1.*give them one user_from"):
        await store.apply_all([(one, write), (Key(user_of("ap-south-1"), "hint"), write)], now=0)


async def test_erasing_reaches_all_regions() -> None:
    stores = {region: MemoryStore() for region in REGIONS}
    store, user = HomeStore(stores, HERE), user_of("us-east-1")
    await store.apply(Key(user, "hint"), Write((Add("n", 1),), 2**40), now=0)
    await stores["ap-south-1"].apply(Key(user, "hint"), Write((Add("n", 1),), 2**40), now=0)
    assert (await store.erase([user]))["counters"] == 1
    assert [len(each) for each in stores.values()] == [0, 0, 0]


async def test_users_and_plans_are_changed_in_the_first_region_alone() -> None:
    stores = {region: MemoryStore() for region in REGIONS}
    directory = Directory(HomeStore(stores, "us-east-1").directory, clock=FakeClock())
    await directory.put_plan(Plan("gold", {"hint": "2/day"}))
    await directory.put_user(User("alice", plan="gold"))
    assert await stores[HERE].directory.read(User, "alice") is not None
    assert await stores["us-east-1"].directory.read(User, "alice") is None, "its replica has not got it yet"
    changed = await directory.change_user("alice", lambda old: User(old.id, plan=None) if old else User("nobody"))
    assert changed == User("alice"), "what was written there is read there"
    assert await directory.remove_user("alice")


async def test_a_region_out_of_reach_does_not_keep_from_opening_but_a_wrong_one_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Closed(MemoryStore):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        async def open(self) -> None:
            raise self.error

    await HomeStore({HERE: MemoryStore(), "us-east-1": Closed(StoreUnavailable("away"))}, HERE).open()
    assert "the replica in us-east-1 is out of reach for now: away" in caplog.text
    with pytest.raises(StoreMisconfigured, match="no table"):
        await HomeStore({HERE: MemoryStore(), "us-east-1": Closed(StoreMisconfigured("no table"))}, HERE).open()
