"""Round trips, counted: one for a warm check, at most one more where this process knew too little."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ratelimit import Decision, Limiter, MemoryStore, Policy, StoreUnavailable, Window
from ratelimit.algorithms.fields import window_field
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.quota import UNITS
from ratelimit.store import Outcome, Write
from ratelimit.store.base import Drop, Put
from ratelimit.testing import FakeClock
from tests.limiter.histories import ALGORITHMS
from tests.limiter.stores import CountingStore, FailingStore, failing


class LateStore(CountingStore):
    """Applies at once, and answers later."""

    late: asyncio.Event | None = None

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        late = self.late
        outcome = await super().apply(key, write, now=now)
        if late is not None:
            await late.wait()
        return outcome


MIXES = ["1000/day", "100/hour; 1000/day", "50/minute; 100/hour; 1000/day"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("quotas", MIXES)
async def test_warm_checks_are_one_write(algorithm: AlgorithmName, quotas: str) -> None:
    store, clock = CountingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", quotas, algorithm=algorithm)], clock=clock)
    await one.check("alice", "hint")
    store.taken()
    for _ in range(5):
        assert (await one.check("alice", "hint")).allowed
        clock.advance(0.01)
        assert store.taken() == {"apply": 1}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("quotas", MIXES)
@pytest.mark.parametrize("pause", [0, 61, 3_700, 90_000, 200_000])
async def test_cold_and_stale_checks_are_at_most_two_calls(algorithm: AlgorithmName, quotas: str, pause: float) -> None:
    store, clock = CountingStore(), FakeClock()
    policy = Policy("hint", quotas, algorithm=algorithm)
    one, other = (Limiter(store, [policy], clock=clock) for _ in range(2))
    for limiter in (one, other, one, other, other, one):
        assert (await limiter.check("alice", "hint")).allowed
        assert sum(store.taken().values()) <= 2
        clock.advance(pause)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_refusal_is_one_call(algorithm: AlgorithmName) -> None:
    store, clock = CountingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", "2/day; 9/month", algorithm=algorithm)], clock=clock)
    for _ in range(2):
        await one.check("alice", "hint")
    store.taken()
    assert not (await one.check("alice", "hint")).allowed
    assert sum(store.taken().values()) == 1


async def test_a_refusal_that_is_already_believed_costs_no_write() -> None:
    """A refused conditional write costs a write unit; a read costs a fifth of that."""
    store = CountingStore()
    one = Limiter(store, [Policy("hint", "1/day")], clock=FakeClock())
    await one.check("alice", "hint")
    store.taken()
    await one.check("alice", "hint")
    assert store.taken() == {"read": 1}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_repeated_refusal_is_no_call_for_as_long_as_the_denial_cache_says(algorithm: AlgorithmName) -> None:
    store, clock = CountingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", "2/day", algorithm=algorithm)], clock=clock, denial_cache=1)
    for _ in range(3):
        refused = await one.check("alice", "hint")
    store.taken()
    for _ in range(3):
        clock.advance(0.3)
        again = await one.check("alice", "hint")
        assert not again.allowed
        assert again.retry_after == pytest.approx((refused.retry_after or 0) - (again.at - refused.at).total_seconds())
    assert store.taken() == {}
    clock.advance(0.3)
    assert not (await one.check("alice", "hint")).allowed
    assert store.taken() == {"read": 1}


async def test_the_denial_cache_ends_when_the_refusal_could_change() -> None:
    store, clock = CountingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", "2/second; 3/minute")], clock=clock, denial_cache=60)
    for _ in range(3):
        await one.check("alice", "hint")
    clock.advance(1)
    assert (await one.check("alice", "hint")).allowed
    assert not (await one.check("alice", "hint")).allowed


async def test_a_cheaper_check_is_not_refused_by_a_dearer_ones_refusal() -> None:
    store = CountingStore()
    one = Limiter(store, [Policy("hint", "5/day")], clock=FakeClock())
    await one.check("alice", "hint", cost=3)
    assert not (await one.check("alice", "hint", cost=3)).allowed
    assert (await one.check("alice", "hint", cost=2)).allowed


async def test_what_this_process_gives_back_is_seen_at_once() -> None:
    one = Limiter(CountingStore(), [Policy("hint", "1/day")], clock=FakeClock())
    for _ in range(3):
        await one.check("alice", "hint")
    await one.refund("alice", "hint")
    assert (await one.check("alice", "hint")).allowed
    assert not (await one.check("alice", "hint")).allowed
    await one.reset("alice", "hint")
    assert (await one.check("alice", "hint")).allowed


async def test_an_older_answer_does_not_hide_what_this_process_gave_back() -> None:
    """Two connections: the answer to a spending comes after that to a refund that followed it."""
    store = LateStore()
    one = Limiter(store, [Policy("hint", "5/day")], clock=FakeClock())
    for _ in range(6):
        await one.check("alice", "hint")
    await one.refund("alice", "hint")
    store.late = asyncio.Event()
    spending = asyncio.create_task(one.check("alice", "hint"))
    await asyncio.sleep(0)
    late, store.late = store.late, None
    await one.refund("alice", "hint")
    late.set()
    assert (await spending).allowed
    assert (await one.check("alice", "hint")).allowed


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("verb", ["check", "slot", "reserve"])
async def test_a_refusal_of_too_large_a_cost_tells_what_others_have_spent(embedded: bool, verb: str) -> None:
    memory, clock = MemoryStore(), FakeClock()
    store = memory if embedded else CountingStore(memory)
    one, other = (Limiter(each, [Policy("run", "9 concurrent; 5/day")], clock=clock) for each in (store, memory))

    async def refused() -> Decision:
        if verb == "check":
            return await one.check("alice", "run", cost=6, quotas="5/day")
        asked = one.slot("alice", "run", cost=6) if verb == "slot" else one.reserve("alice", "run", 6)
        return await asked.take()

    for used in (3, 4):
        await other.charge("alice", "run", 3 if used == 3 else 1)
        decision = await refused()
        assert (decision.reason, decision.spent, decision.quotas[-1].used) == ("too_large", 0, used)
        clock.advance(1)


async def test_too_large_a_cost_is_one_read_and_none_for_a_while() -> None:
    store, clock = CountingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", "5/day"), Policy("closed", "0/day")], clock=clock)
    for read in ({"read": 1}, {}):
        assert not await one.check("alice", "hint", cost=6)
        assert store.taken() == read
    clock.advance(1)
    assert not await one.check("alice", "hint", cost=6)
    assert not await one.check("alice", "closed")
    assert store.taken() == {"read": 1}, "of a quota of nothing there is nothing to ask"


@pytest.mark.parametrize("options", [{"on_unavailable": "allow"}, {"on_unavailable": "deny", "lease": "auto"}])
async def test_too_large_a_cost_is_refused_whatever_the_store_answers(options: Any) -> None:
    store = FailingStore()
    store.fault = failing(StoreUnavailable("down"))
    one = Limiter(store, [Policy("hint", "5/day", **options)], clock=FakeClock())
    for _ in range(20):
        assert (await one.check("alice", "hint", cost=6)).reason == "too_large"


async def test_the_same_window_is_the_same_write_whoever_the_user() -> None:
    """What lets a store keep the request it prepared."""
    store, clock = CountingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", "100/hour; 1000/day")], clock=clock)
    for user in ("alice", "bob", "alice", "bob", "alice", "bob"):
        await one.check(user, "hint")
    assert len({id(write) for write in store.writes[2:]}) == 1
    clock.advance(3600)
    await one.check("alice", "hint")
    assert store.writes[-1] is not store.writes[-2]


async def test_totals_are_one_read_an_action() -> None:
    store = CountingStore()
    one = Limiter(store, [Policy("hint", "5/day"), Policy("run", "5/day")], clock=FakeClock())
    await one.totals("alice")
    assert store.taken() == {"read": 2}


async def test_beliefs_are_bounded() -> None:
    one = Limiter(CountingStore(), [Policy("hint", "5/day")], clock=FakeClock(), max_beliefs=10)
    for number in range(50):
        await one.check(f"user-{number}", "hint")
    assert len(one._counters.cache) == 10


async def test_the_records_used_last_are_the_ones_remembered() -> None:
    store = CountingStore()
    one = Limiter(store, [Policy("hint", "5/day")], clock=FakeClock(), max_beliefs=2)
    for user in ("alice", "bob", "alice", "carol"):  # carol takes the place of bob
        await one.check(user, "hint")
    seen_whole = []
    for user in ("alice", "bob"):
        await one.check(user, "hint")
        seen_whole.append(store.writes[-1].whole)
    assert seen_whole == [False, True]


async def test_a_write_for_all_drops_what_is_past_its_use_in_one_record_and_keeps_the_debt_of_another() -> None:
    store, clock = CountingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", "100/hour")], clock=clock)
    for user in ("alice", "bob", "carol"):
        await one.check(user, "hint")
    await one.charge("carol", "hint", 1000, quotas="1/day", algorithm="gcra")
    clock.advance(3 * 3600)
    for user in ("alice", "alice", "bob", "bob", "carol", "carol"):
        await one.check(user, "hint")
    _, usual, cleaning, again, _, indebted = store.writes[-6:]
    assert again is usual
    assert any(type(op) is Drop for op in cleaning.ops)
    assert indebted.expires_at > usual.expires_at


async def test_a_day_begins_with_the_whole_record_also_where_that_failed_once() -> None:
    store, clock = FailingStore(), FakeClock()
    one = Limiter(store, [Policy("hint", "100/day")], clock=clock)
    for user in ("alice", "bob"):
        await one.check(user, "hint")
    clock.advance(86_400)
    await one.check("alice", "hint")
    await one.check("alice", "hint")
    store.fault = failing(StoreUnavailable("gone"))
    assert (await one.charge("bob", "hint", 1)).reason == "unavailable"
    store.fault = None
    await one.check("bob", "hint")
    assert [write.whole for write in store.writes[-4:]] == [True, False, True, True]


class HeldCleanUps(CountingStore):
    """Holds the writes that do nothing but drop fields, until `clean` is set."""

    def __init__(self, users: int, stale: int) -> None:
        super().__init__()
        self.clean = asyncio.Event()
        self.clean_ups: list[int] = []
        ops = tuple(Put(window_field(Window(1, UNITS[0]), number), 1) for number in range(stale))
        for number in range(users):
            self.memory.records.apply(Key(f"user-{number}", "hint"), Write(ops, 2**40), FakeClock().now())

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        if all(type(op) is Drop for op in write.ops):
            self.clean_ups.append(len(write.ops))
            await self.clean.wait()
        return await super().apply(key, write, now=now)

    async def stale_fields(self, user: str) -> int:
        return len([field for field in await self.memory.read(Key(user, "hint")) if field[0] != "u"]) - 1


async def test_a_record_full_of_what_is_past_its_use_is_cleaned_behind_the_answer() -> None:
    """The check that found it neither waits for that nor fails by it; one write drops no more than a check's may."""
    store = HeldCleanUps(users=1, stale=60)
    one = Limiter(store, [Policy("hint", "9/day", on_unavailable="deny")], clock=FakeClock())
    assert (await one.check("user-0", "hint")).reason is None
    await asyncio.sleep(0)
    assert store.clean_ups == [25]
    store.clean.set()
    await one.close()
    assert await store.stale_fields("user-0") == 35


async def test_a_clean_up_that_fails_is_nobodys_loss() -> None:
    store = HeldCleanUps(users=1, stale=60)
    one = Limiter(store, [Policy("hint", "9/day")], clock=FakeClock(), deadline=0.02)
    assert (await one.check("user-0", "hint")).allowed
    await one.close()  # the deadline ends it
    assert await store.stale_fields("user-0") == 60
    assert not one.stats.lost


async def test_clean_ups_under_way_are_bounded_as_all_background_writes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.limiter.limiter.MAX_BACKGROUND_WRITES", 2)
    store = HeldCleanUps(users=5, stale=20)
    one = Limiter(store, [Policy("hint", "9/day")], clock=FakeClock())
    for number in range(5):
        assert (await one.check(f"user-{number}", "hint")).reason is None
    await asyncio.sleep(0)
    assert store.clean_ups == [20, 20]
    store.clean.set()
    await one.close()
    assert [await store.stale_fields(f"user-{number}") for number in range(5)] == [0, 0, 20, 20, 20]
