"""Decide by one store, write to both: the second ends as the first, is never felt, and never decides."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import date
from functools import partial
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import HoldExpired, Limiter, MemoryStore, Policy, SlotNeeded, StoreUnavailable, UsageLog
from ratelimit.clock import SystemClock
from ratelimit.config import load_config
from ratelimit.directory import Directory
from ratelimit.errors import ConfigError
from ratelimit.event import UsageEvent
from ratelimit.factory import build_store, load_checked
from ratelimit.limiter import Reservation
from ratelimit.metrics import table_store
from ratelimit.names import Key
from ratelimit.store import MirrorStore
from ratelimit.store.base import Add, Outcome, Write
from ratelimit.store.directory import Identity, Plan, User
from ratelimit.store.mirror import MirrorQueue
from ratelimit.testing import FakeClock
from tests.engines import Engine

POLICIES = (
    Policy("hint", "5/day; 3/minute"),
    Policy("run", "4/10 minutes", algorithm="sliding_window"),
    Policy("search", "6/hour", algorithm="gcra"),
    Policy("export", "2 concurrent; 9/day"),
    Policy("org", "9/hour", algorithm="gcra"),
)
ACTIONS = tuple(policy.name for policy in POLICIES)
DEEDS = st.lists(
    st.tuples(
        st.sampled_from(["check", "check_all", "charge", "refund", "reset", "reserve", "reserve", "settle"]),
        st.sampled_from(["alice", "bob"]),
        st.sampled_from(ACTIONS),
        st.integers(1, 3),
        st.sampled_from([0, 1, 90, 3_600, 86_400]),
    ),
    max_size=25,
)


@given(DEEDS)
async def test_the_mirror_ends_as_the_store_that_decides(deeds: list[tuple[str, str, str, int, int]]) -> None:
    clock, store = FakeClock(), MirrorStore(MemoryStore(), MemoryStore())
    async with Limiter(store, POLICIES, clock=clock) as limiter:
        held: list[Reservation] = []
        for verb, user, action, cost, later in deeds:
            clock.advance(later)
            with suppress(SlotNeeded, HoldExpired):
                await do(limiter, held, verb, user, action, cost)
        await limiter.drain()
        for user in ("alice", "bob", "acme"):
            for action in ACTIONS:
                assert await store.compare(Key(user, action)) == []
    assert (store.stats.different, store.stats.failed, store.stats.dropped) == (0, 0, 0)


async def do(limiter: Limiter, held: list[Reservation], verb: str, user: str, action: str, cost: int) -> None:
    if verb == "check_all":
        await limiter.check_all([(user, action, cost), ("acme", "org", cost)])
    elif verb == "reserve":
        reservation = limiter.reserve(user, action, cost)
        if await reservation.take():
            held.append(reservation)
    elif verb == "settle":
        if held:
            held[0].settle(min(cost, held[0].units))
            await held.pop(0).release()
    elif verb == "charge":
        await limiter.charge(user, action, cost)
    elif verb == "reset":
        await limiter.reset(user, action)
    else:
        await getattr(limiter, verb)(user, action, cost=cost)


@pytest.mark.parametrize("reserves", [False, True])
async def test_what_the_mirror_has_not_seen_taken_is_not_taken_out_of_it(reserves: bool) -> None:
    """A process dies with what it held when the mirror began. That is taken back, and the mirror becomes the store."""
    clock, primary, mirror = FakeClock(), MemoryStore(), MemoryStore()
    policy = Policy("export", "2 concurrent; 100/day")
    dead = Limiter(primary, [policy], clock=clock)
    await (dead.reserve("alice", "export", 30) if reserves else dead.slot("alice", "export")).take()
    async with Limiter(MirrorStore(primary, mirror), [policy], clock=clock) as limiter:
        clock.advance(60)
        assert await limiter.reserve("alice", "export", 5).take()
        await limiter.drain()
        assert (await limiter.peek("alice", "export")).quotas[1].used == (5 if reserves else 6)
    after = Limiter(mirror, [policy], clock=clock)
    assert [bool(await after.reserve("alice", "export", 1).take()) for _ in range(2)] == [True, False]
    assert (await after.peek("alice", "export")).quotas[1].used == 6
    assert min((await mirror.read(Key("alice", "export"))).values()) >= 0


async def test_a_bucket_is_the_same_also_where_the_mirror_began_later() -> None:
    clock, primary = FakeClock(), MemoryStore()
    async with Limiter(primary, POLICIES, clock=clock) as limiter:
        await limiter.check("alice", "search", cost=3)
    store = MirrorStore(primary, MemoryStore())
    async with Limiter(store, POLICIES, clock=clock) as limiter:
        await limiter.check("alice", "search")
        # Without its limit (`ghl`) a bucket counts by the quota's own, until it begins anew.
        assert [one.field for one in await store.compare(Key("alice", "search"))] == ["ghl", "u2601", "u260105"]


async def test_a_refusal_is_not_mirrored() -> None:
    mirror = WriteCounter()
    async with Limiter(MirrorStore(MemoryStore(), mirror), [Policy("hint", "1/day")]) as limiter:
        assert (await limiter.check("alice", "hint")).allowed
        assert not (await limiter.check("alice", "hint")).allowed
    assert mirror.writes == 1


async def test_the_first_store_decides_whatever_the_second_one_holds() -> None:
    mirror = MemoryStore()
    store = MirrorStore(MemoryStore(), mirror)
    async with Limiter(mirror, [Policy("hint", "1/day")], denial_cache=0) as other:
        assert (await other.check("alice", "hint")).allowed
        async with Limiter(store, [Policy("hint", "1/day")], denial_cache=0) as limiter:
            assert (await limiter.check("alice", "hint")).allowed
            assert not (await limiter.check("alice", "hint")).allowed
            (difference, *_) = [one for one in await store.compare(Key("alice", "hint")) if one.field[0] == "d"]
    assert (difference.decided, difference.mirrored) == (1, 2)
    assert store.stats.different == 1
    assert store.stats.differences[0].decided == 1


async def test_a_mirror_that_is_down_is_not_felt() -> None:
    store = MirrorStore(MemoryStore(), DeadMirror())
    async with Limiter(store, [Policy("hint", "3/day", on_unavailable="deny")]) as limiter, UsageLog(store) as usage:
        assert [(await limiter.check("alice", "hint")).allowed for _ in range(4)] == [True] * 3 + [False]
        await usage.record("alice", "hint")
        await usage.flush()
        await store.settle()
        assert len((await usage.events("alice")).events) == 1
        assert store.stats.failed == 5  # opening it, three checks, one batch of events
    assert store.stats.waiting == 0


async def test_a_mirror_that_never_answers_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.store.mirror.MAX_WAITING", 3)
    monkeypatch.setattr("ratelimit.store.mirror._DRAIN_TIMEOUT_S", 0)
    store = MirrorStore(MemoryStore(), Stuck())
    async with Limiter(store, [Policy("hint", "100/day")]) as limiter:
        for _ in range(10):
            assert (await limiter.check("alice", "hint")).allowed
        assert store.stats.waiting == 3
        assert store.stats.dropped == 8  # of ten checks and the opening
    assert store.stats.dropped == 11
    assert store.stats.waiting == 0


async def test_a_bug_in_the_mirror_loses_one_write_and_not_the_next(caplog: pytest.LogCaptureFixture) -> None:
    queue, done = MirrorQueue(), []

    async def bad() -> None:
        raise ZeroDivisionError

    async def good() -> None:
        done.append(1)

    queue.follow("a", bad)
    queue.follow("a", good)
    await queue.drain()
    assert done == [1]
    assert (queue.stats.failed, queue.stats.written) == (1, 1)
    assert "a bug lost a write" in caplog.text


async def test_writes_of_one_record_keep_their_order() -> None:
    queue, seen = MirrorQueue(), []

    async def note(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    for number in range(20):
        queue.follow("alice", partial(note, number))
    await queue.drain()
    assert seen == list(range(20))


async def test_events_go_to_both_once() -> None:
    primary, mirror = MemoryStore(), MemoryStore()
    store = MirrorStore(primary, mirror)
    events = [UsageEvent.of("alice", "hint", now=FakeClock().now(), cost=number) for number in range(3)]
    for _ in range(2):
        assert await store.events.put(events) == ()
    await store.settle()
    assert list(mirror.events) == list(primary.events)
    assert await store.events.erase("alice", events[0].at.date()) == 3
    assert len(mirror.events) == 0


async def test_erasing_fails_aloud_where_the_mirror_did_not() -> None:
    store = MirrorStore(MemoryStore(), DeadMirror())
    with pytest.raises(StoreUnavailable):
        await store.events.erase("alice", date(2026, 1, 5))


@pytest.mark.parametrize("call", ["delete", "replace", "erase", "actions", "forget", "all of it"])
async def test_an_erase_that_the_mirror_did_not_take_says_so_and_can_be_repeated(call: str) -> None:
    primary, mirror = MemoryStore(), MemoryStore()
    store = MirrorStore(primary, mirror)
    await Limiter(store, [Policy("hint", "5/day")]).check("alice", "hint")
    await Directory(store.directory).put_user(User("alice", identities=[Identity.email("alice@example.com")]))
    async with UsageLog(store) as usage:
        await usage.record("alice", "hint", id="order-17")
        await usage.flush()
        await store.settle()
        part: Any = {"delete": mirror, "replace": mirror.directory, "all of it": mirror}.get(call, mirror.events)
        quick, call = call != "all of it", call.replace("all of it", "erase")
        well = getattr(part, call)
        setattr(part, call, fail)
        with pytest.raises(StoreUnavailable):
            await usage.erase("alice", quick=quick)
        setattr(part, call, well)
        await usage.erase("alice", quick=quick)
    for one in (primary, mirror):
        assert await one.read(Key("alice", "hint")) == {}
        assert await one.directory.read(User, "alice") is None
        assert await one.directory.find(Identity.email("alice@example.com")) is None
        assert (len(one.events), await one.events.forget("alice")) == (0, 0)


async def test_counters_that_only_the_mirror_has_are_erased_as_well() -> None:
    primary, mirror = MemoryStore(), MemoryStore()
    await Limiter(mirror, [Policy("solve", "5/day")]).check("alice", "solve")
    await mirror.events.put([UsageEvent.of("alice", "solve", now=SystemClock().now())])
    await UsageLog(MirrorStore(primary, mirror)).erase("alice")
    assert await mirror.read(Key("alice", "solve")) == {}
    assert len(mirror.events) == 0


async def test_an_entry_that_somebody_has_changed_stays_in_both() -> None:
    primary, mirror = MemoryStore(), MemoryStore()
    store = MirrorStore(primary, mirror)
    await store.directory.replace(None, User("alice"), now=1)
    before = await store.directory.read(User, "alice")
    await store.directory.replace(before, User("alice", plan="pro"), now=2)
    assert not await store.directory.replace(before, None, now=3)
    await store.settle()
    assert await mirror.directory.read(User, "alice") == await primary.directory.read(User, "alice") != before


async def test_draining_does_not_wait_for_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.store.mirror._DRAIN_TIMEOUT_S", 0)
    queue, done = MirrorQueue(), []

    async def step(name: str) -> None:
        queue.follow(name, partial(step, name))  # and so there is always more
        await asyncio.sleep(0)
        done.append(name)

    for name in "abcdefgh":
        queue.follow(name, partial(step, name))
    async with asyncio.timeout(30):
        await queue.drain()
    assert {*done} == {*"abcdefgh"}
    assert queue.stats.waiting
    await queue.stop()


async def test_users_and_plans_go_to_both() -> None:
    primary, mirror = MemoryStore(), MemoryStore()
    store = MirrorStore(primary, mirror)
    await Directory(mirror.directory).put_user(User("alice", plan="old"))  # was there before, of another version
    directory = Directory(store.directory)
    await directory.put_plan(Plan("pro", {"hint": "50/day"}))
    await directory.put_user(User("alice", plan="pro", identities=[Identity.email("alice@example.com")]))
    await directory.put_user(User("bob"))
    await directory.remove_user("bob")
    await store.settle()
    other = Directory(mirror.directory)
    assert (await other.user("alice")) == (await directory.user("alice"))
    assert await other.find(Identity.email("alice@example.com")) == await other.user("alice")
    assert await other.plan("pro") == Plan("pro", {"hint": "50/day"})
    assert await other.user("bob") is None


async def test_a_cut_over_and_the_way_back_are_settings(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.store.mirror._DRAIN_TIMEOUT_S", 60.0)
    one, two = (engine.store_url(f"mirror-{uuid4().hex[:8]}", create="true") for _ in range(2))
    policies = {"hint": {"quotas": "6/day"}}
    allowed = 0
    for store, mirror in ((one, "off"), (one, two), (two, one), (one, "off")):
        config = load_config(env={}, store=store, mirror=mirror, policies=policies, deadline=20, denial_cache=0)
        opened = build_store(config)
        async with Limiter(opened, config.policies) as limiter:
            if mirror == two:  # what was there before the mirror is brought over once; here there is none
                await limiter.reset("alice", "hint")
            for _ in range(2):
                allowed += (await limiter.check("alice", "hint")).allowed
        if isinstance(opened, MirrorStore):
            assert (opened.stats.failed, opened.stats.dropped) == (0, 0)
    assert allowed == 8  # two before the reset, six after it: each store counts on where the other was


def test_the_setting() -> None:
    config = load_checked(env={"RATELIMIT_MIRROR": "memory://?max_keys=7"})
    store = build_store(config)
    assert isinstance(store, MirrorStore)
    assert isinstance(store.mirror, MemoryStore)
    assert store.mirror.max_keys == 7
    assert table_store(store) is None
    assert isinstance(build_store(load_config(env={})), MemoryStore)


@pytest.mark.parametrize(
    ("mirror", "told"),
    [("memory", "expected a URL"), ("dynamdb://t", "did you mean dynamodb://"), ("memory://", "is the store itself")],
)
def test_a_mirror_that_is_none(mirror: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as error:
        load_checked(env={}, mirror=mirror)
    assert "mirror" in str(error.value)


TABLE = "dynamodb://limits?region=eu-west-1&endpoint=http://localhost:4566"


@pytest.mark.parametrize(
    ("store", "mirror"),
    [
        (TABLE, "dynamodb://limits?endpoint=http://localhost:4566&region=eu-west-1"),
        (TABLE, f"{TABLE}&create=true&pool=8"),
        (TABLE, "dynamodb://limits?region=eu-west-1&endpoint=http%3A%2F%2F127.0.0.1:4566/"),
        (TABLE, "dynamodb://limits"),
        ("dynamodb://limits", f"{TABLE}&consumed=yes"),
        (
            "dynamodb://limits?endpoint=https://dynamodb.eu-west-1.amazonaws.com",
            "dynamodb://limits?endpoint=https://dynamodb-fips.eu-west-1.amazonaws.com",
        ),
    ],
)
def test_a_table_spelled_otherwise_is_no_mirror(store: str, mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://LOCALHOST:4566")
    with pytest.raises(ConfigError, match=r"^mirror: is the store itself"):
        load_checked(env={}, store=store, mirror=mirror)


@pytest.mark.parametrize("other", ["limits2", "limits?region=eu-west-2", "limits?endpoint=http://localhost:4567"])
def test_another_table_is_a_mirror(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    store = build_store(load_checked(env={}, store="dynamodb://limits", mirror=f"dynamodb://{other}"))
    assert isinstance(store, MirrorStore)


def test_a_broken_aws_set_up_is_told_when_the_tables_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "nobody-has-this-profile")
    store = build_store(load_checked(env={}, store="dynamodb://limits", mirror="dynamodb://limits2"))
    assert isinstance(store, MirrorStore)


async def fail(*_: object, **__: object) -> Any:
    raise StoreUnavailable("down")


class WriteCounter(MemoryStore):
    writes = 0

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        self.writes += 1
        assert not any(type(op) is Add and op.at_most is not None for op in write.ops)
        return await super().apply(key, write, now=now)


class DeadMirror(MemoryStore):
    def __init__(self) -> None:
        super().__init__()
        self.events.put = self.events.erase = self.apply = fail  # type: ignore[method-assign]

    async def open(self) -> None:
        await fail()


class Stuck(MemoryStore):
    async def open(self) -> None:
        await asyncio.Event().wait()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        await asyncio.Event().wait()
        raise AssertionError
