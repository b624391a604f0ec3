"""`Homes`: an operator moves the users of a lost region, and no user is ever counted in two."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from ratelimit import ConfigError, Limiter, Policy, StoreUnavailable
from ratelimit.algorithms.fields import day_field, utc_day
from ratelimit.clock import SECOND
from ratelimit.names import Key
from ratelimit.opening import store_from_url
from ratelimit.policy import Lease
from ratelimit.regions.home import LEASE_S, MAX_SKEW_S, RENEW_S, SLACK_S, HomeStore
from ratelimit.regions.regions import home_of
from ratelimit.store import Store
from ratelimit.testing import FakeClock
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.dynamodb.tables import replicated
from tests.engines import Engine
from tests.regions.replicator import REGIONS, GlobalTable
from tests.regions.test_histories import LIMIT, SEEDS, USERS, World
from tests.regions.test_home import user_of

HERE, THERE, LOST = REGIONS
TAKES_S = LEASE_S + SLACK_S


def store_in(table: GlobalTable, region: str) -> HomeStore:
    return HomeStore(
        table.stores(region), region, failover=True, clock=table.clock, time=lambda: table.clock.now() / SECOND
    )


async def turn() -> None:
    """Let what goes on behind the answers end."""
    for _ in range(8):
        await asyncio.sleep(0)


async def move(table: GlobalTable, operator: str, *away: str) -> None:
    homes = store_in(table, operator).homes
    assert homes is not None
    await homes.move(away)


class Watched(GlobalTable):
    """It notes in which region each user is counted, and what the region before had counted that this one has not."""

    def __init__(self, clock: FakeClock, random: Random, **options: float | bool) -> None:
        super().__init__(clock, random, **options)  # type: ignore[arg-type]
        self.counted: dict[str, list[str]] = {}
        self.unseen: Counter[str] = Counter()

    def total(self, region: str, key: Key) -> int:
        return self.records[region].read(key).get(day_field(utc_day(self.clock.now())), 0)

    def check_conflict(self, region: str, key: Key) -> None:
        self._before = self.total(region, key)

    def written(self, region: str, key: Key) -> None:
        super().written(region, key)
        if key.user:
            regions = self.counted.setdefault(key.user, [])
            if not regions or regions[-1] != region:
                if regions:
                    self.unseen[key.user] += max(0, self.total(regions[-1], key) - self._before)
                regions.append(region)


class FailoverWorld(World):
    """An operator somewhere moves users, back and forth, whatever is cut."""

    def __init__(self, seed: int, *, lease: Lease = None, lost_answers: float = 0.0) -> None:
        super().__init__(seed, lambda table, region: store_in(table, region), lease=lease, lost_answers=lost_answers)
        self.epochs: list[tuple[str, ...]] = [REGIONS]

    def new_table(self, **options: float | bool) -> GlobalTable:
        return Watched(self.clock, self.random, **options)

    async def step(self) -> None:
        await turn()
        self.clock.advance(self.random.choice([0.0, 1.0]))
        if self.random.random() < 0.05:
            away = self.random.sample(REGIONS, self.random.choice([0, 1, 1, 1, 2]))
            with suppress(StoreUnavailable):  # too few were told, or their answers were lost
                await move(self.table, self.random.choice(REGIONS), *away)
            told = Counter(
                tuple(self.table.records[region].read(Key("", f"home@{region}")).items()) for region in REGIONS
            )
            what, count = told.most_common(1)[0]
            if what and count >= 2:
                self.epochs.append(tuple(region for region in REGIONS if not dict(what)[f"away {region}"]))


@SEEDS
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("lease", "lost_answers", "cuts"), [(None, 0.0, 0.05), (5, 0.1, 0.05), (None, 0.0, 0.0)])
async def test_no_user_is_ever_counted_in_two_regions(
    lease: Lease, lost_answers: float, cuts: float, seeds: range
) -> None:
    moved = refused = 0
    for seed in seeds:
        world = FailoverWorld(seed, lease=lease, lost_answers=lost_answers)
        await world.run(steps=150, cuts=cuts)
        table = world.table
        assert isinstance(table, Watched)
        for user in USERS:
            homes = [home_of(user, epoch) for epoch in world.epochs]
            for region in table.counted.get(user, ()):
                assert region in homes, (seed, user, "a region counts that is the user's home by no later epoch")
                homes = homes[homes.index(region) :]
            assert world.admitted[user] <= LIMIT + table.unseen[user], seed
            assert cuts or not table.unseen[user], "what is moved by plan is moved with its count"
            moved += len(table.counted.get(user, ())) > 1
        refused += world.refused
    assert moved > len(seeds) / 2
    assert refused > len(seeds) / 2


async def world_of_three() -> tuple[GlobalTable, dict[str, Limiter]]:
    table = GlobalTable(FakeClock(), Random(1))
    policy = Policy("hint", "5/day", on_unavailable="deny")
    limiters = {
        region: Limiter(store_in(table, region), [policy], clock=table.clock, denial_cache=0) for region in REGIONS
    }
    for limiter in limiters.values():
        await limiter.open()
    return table, limiters


async def pass_s(table: GlobalTable, limiters: dict[str, Limiter], seconds: float) -> None:
    """Let time pass in which all of them are asked."""
    for _ in range(round(seconds)):
        table.clock.advance(1)
        for limiter in limiters.values():
            await limiter.peek(user_of(HERE), "hint")
        await turn()


async def test_a_lost_region_s_users_are_counted_on_elsewhere_and_nobody_else_notices() -> None:
    table, limiters = await world_of_three()
    user, other = user_of(LOST), user_of(HERE)
    for limiter in (limiters[LOST], limiters[HERE]):
        assert (await limiter.check(user, "hint")).allowed
    await pass_s(table, limiters, 6)
    table.cut(LOST, HERE)
    table.cut(LOST, THERE)
    assert (await limiters[HERE].check(user, "hint")).reason == "unavailable"
    assert (await limiters[LOST].check(user, "hint")).allowed, "for as long as its lease lasts"
    await move(table, HERE, LOST)
    left, moved = [], []
    for second in range(round(TAKES_S + RENEW_S) + 2):
        await pass_s(table, limiters, 1)
        assert (await limiters[HERE].peek(other, "hint")).allowed
        left += [second] * ((await limiters[LOST].peek(user, "hint")).reason != "unavailable")
        moved += [second] * ((await limiters[THERE].peek(user, "hint")).reason != "unavailable")
    assert left
    assert moved
    assert left[-1] + SLACK_S <= moved[0], "never two truths"
    home = home_of(user, (HERE, THERE))
    allowed = [(await limiters[region].check(user, "hint")).allowed for region in (HERE, THERE) for _ in range(3)]
    assert allowed == [True] * 3 + [False] * 3, "two had been counted and replicated; the third was not"
    assert table.asked[THERE, home] + table.asked[HERE, home] > 6

    table.settle()
    await move(table, THERE)
    await pass_s(table, limiters, TAKES_S + RENEW_S + 1)
    found = await limiters[LOST].peek(user, "hint")
    assert (found.reason, found.quotas[0].used) == ("quota", 5), "it is at home again, with what was counted elsewhere"


async def test_a_region_that_is_cut_off_counts_nobody_until_it_is_back() -> None:
    table, limiters = await world_of_three()
    table.cut(LOST, HERE)
    table.cut(LOST, THERE)
    for second in range(1, 14):
        await pass_s(table, limiters, 1)
        decision = await limiters[LOST].peek(user_of(LOST), "hint")
        assert (decision.reason == "unavailable") == (second >= LEASE_S), second
    table.heal()
    await pass_s(table, limiters, RENEW_S + 1)
    assert (await limiters[LOST].check(user_of(LOST), "hint")).allowed


async def test_who_starts_after_a_move_waits_unless_it_is_long_over() -> None:
    table, _ = await world_of_three()
    await move(table, HERE, LOST)
    await move(table, HERE, LOST, THERE)
    for waits, passed in ((True, 1.0), (False, MAX_SKEW_S + TAKES_S)):
        table.clock.advance(passed)
        store = store_in(table, HERE)
        await store.open()
        limiter = Limiter(store, [Policy("hint", "5/day", on_unavailable="deny")], clock=table.clock)
        assert ((await limiter.check(user_of(LOST), "hint")).reason == "unavailable") is waits
        await limiter.close()


async def test_what_cannot_be_moved_is_said() -> None:
    table, _ = await world_of_three()
    table.cut(HERE, THERE)
    table.cut(HERE, LOST)
    with pytest.raises(StoreUnavailable, match=r"^1 of 3 regions say that they were told, and it takes 2: repeat it"):
        await move(table, HERE, LOST)
    with pytest.raises(ConfigError, match=r"^away: 'eu-west-9' is not in the list \(eu-west-1, us"):
        await move(table, THERE, "eu-west-9")
    with pytest.raises(ConfigError, match=r"^away: are all regions: one has to count"):
        await move(table, THERE, *REGIONS)


async def test_each_event_loop_asks_for_itself() -> None:
    table = GlobalTable(FakeClock(), Random(1))
    store: Store = store_in(table, HERE)
    assert await store.read(Key(user_of(HERE), "hint")) == {}
    table.clock.advance(60)
    assert await asyncio.to_thread(asyncio.run, store.read(Key(user_of(HERE), "hint"))) == {}


@pytest.mark.process
async def test_an_operator_moves_users_on_a_real_engine(
    engine: Engine, tmp_path: Path, ratelimit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.name != "ministack":
        pytest.skip("this engine has no replicas")
    config = tmp_path / "ratelimit.toml"
    async with replicated(engine, *REGIONS) as settings:
        url = engine.store_url(settings.table)
        regions = f'{{ mode = "home", all = {json.dumps(REGIONS)}, failover = true }}'
        config.write_text(f'store = "{url}"\nregions = {regions}\n[policies.hint]\nquotas = "5/day"\n')

        def said(*options: str) -> str:
            result = ratelimit("table", "regions", *options, "--config", str(config))
            assert result.status == 0, result.err
            return " ".join(result.out.split())

        counts = f"mode = 'home' over {','.join(REGIONS)}, with failover"
        assert await asyncio.to_thread(said) == f"{settings.table}: not recorded; configured is {counts}"
        assert (await asyncio.to_thread(said, "--away", LOST)).endswith(
            f"nobody is at home in {LOST}; who is moved is counted again in 17 seconds"
        )
        assert (await asyncio.to_thread(said)).endswith(f"configured is {counts}; nobody is at home in {LOST}")
        store = store_from_url(f"{url}&regions={','.join(REGIONS)}&mode=home&failover=true")
        async with Limiter(store, [Policy("hint", "5/day", on_unavailable="deny")]) as limiter:
            assert (await limiter.check(user_of(LOST), "hint")).reason == "unavailable", "it is being moved"
            assert (await limiter.check(user_of(HERE), "hint")).allowed
        assert "every region is a home again" in await asyncio.to_thread(said, "--away", "none")
        assert (await asyncio.to_thread(said)).endswith(counts)
        config.write_text(config.read_text().replace(", failover = true", ""))
        refused = await asyncio.to_thread(ratelimit, "table", "regions", "--away", LOST, "--config", str(config))
        assert "regions.failover: is off, and without it no process" in " ".join(refused.err.split())
        started = await asyncio.to_thread(ratelimit, "check", "alice", "hint", "--config", str(config))
        assert "with failover, and this process would by mode = 'home' over" in " ".join(started.err.split())
