"""What is the embedded store's own: its bounds. Everything else it shares with the other stores' suite."""

from __future__ import annotations

import pytest

from ratelimit import InvalidInput, Limiter, MemoryStore, Policy
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.store import Add, Write
from ratelimit.testing import FakeClock
from tests.limiter.histories import ALGORITHMS


async def test_the_number_of_keys_is_bounded_and_what_gave_way_is_counted() -> None:
    store = MemoryStore(max_keys=10)
    one = Limiter(store, [Policy("hint", "5/day")], clock=FakeClock())
    for number in range(25):
        await one.check(f"user-{number}", "hint")
    assert (len(store), store.evicted) == (10, 15)


async def test_the_longest_unwritten_gives_way() -> None:
    store = MemoryStore(max_keys=2)
    one = Limiter(store, [Policy("hint", "5/day")], clock=FakeClock())
    for user in ("alice", "bob", "alice", "carol"):
        await one.check(user, "hint")
    assert await store.read(Key("alice", "hint"))
    assert not await store.read(Key("bob", "hint"))


@pytest.mark.heavy
@pytest.mark.parametrize("quotas", ["5/day", "5/day; 100/month", "5/second; 5/week"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("spent", [5, 4])
async def test_a_spent_quota_outlives_any_number_of_unspent_ones(
    quotas: str, algorithm: AlgorithmName, spent: int
) -> None:
    store, clock = MemoryStore(max_keys=100), FakeClock()
    one = Limiter(store, [Policy("hint", quotas, algorithm=algorithm)], clock=clock)
    victims = [f"limited-{number}" for number in range(10)]
    for user in victims:
        for _ in range(spent):
            assert await one.check(user, "hint")
    clock.advance(2)
    for number in range(1000):
        assert await one.check(f"invented-{number}", "hint")
    for user in victims:
        assert [bool(await one.check(user, "hint")) for _ in range(3)] == [True] * (5 - spent) + [False] * (spent - 2)
    assert len(store) == 100


async def test_spent_at_once_by_a_cost_is_spent_too() -> None:
    for algorithm in ALGORITHMS:
        store, clock = MemoryStore(max_keys=50), FakeClock()
        one = Limiter(store, [Policy("hint", "5/day", algorithm=algorithm)], clock=clock)
        await one.check("limited", "hint", cost=5)
        await one.refund("limited", "hint", 1)
        for number in range(500):
            await one.check(f"invented-{number}", "hint")
        assert (await one.peek("limited", "hint")).used == 4


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_was_spent_in_windows_that_are_over_keeps_out_nobody(algorithm: AlgorithmName) -> None:
    store, clock = MemoryStore(max_keys=100), FakeClock()
    one = Limiter(store, [Policy("hint", "5/minute", algorithm=algorithm)], clock=clock)
    for number in range(300):
        await one.check(f"before-{number}", "hint", cost=5)
    clock.advance(200)
    for number in range(90):
        await one.check(f"after-{number}", "hint", cost=1)
    assert [(await one.peek(f"after-{number}", "hint")).used for number in range(90)] == [1] * 90


async def test_among_all_that_is_spent_a_newcomer_is_remembered_for_a_while() -> None:
    store, clock = MemoryStore(max_keys=100), FakeClock()
    one = Limiter(store, [Policy("hint", "5/day")], clock=clock)
    for number in range(200):
        await one.check(f"full-{number}", "hint", cost=5)
    for number in range(20):
        await one.check(f"new-{number}", "hint")
    assert [(await one.peek(f"new-{number}", "hint")).used for number in range(20)] == [1] * 20


async def test_ranked_or_not_a_record_is_read_changed_and_deleted_alike() -> None:
    store, clock = MemoryStore(max_keys=40), FakeClock()
    one = Limiter(store, [Policy("hint", "5/day")], clock=clock)
    await one.check("alice", "hint", cost=4)
    for number in range(200):
        await one.check(f"user-{number}", "hint")
    assert [key.user for key, _ in store.records.items()].count("alice") == 1
    assert (await one.check("alice", "hint")).used == 5
    assert len(dict(store.records.items())) == len(store) == 40
    for number in range(200, 400):
        await one.check(f"user-{number}", "hint")
    await store.delete(Key("alice", "hint"))
    assert not await store.read(Key("alice", "hint"))
    assert len(dict(store.records.items())) == len(store) == 39


async def test_expired_keys_go_as_new_ones_come() -> None:
    store = MemoryStore()
    for number in range(10):
        await store.apply(Key(f"user-{number}", "hint"), Write((Add("d1", 1),), expires_at=100), now=0)
    for number in range(5):
        await store.apply(Key(f"new-{number}", "hint"), Write((Add("d1", 1),), expires_at=300), now=200_000_000)
    assert len(store) == 5
    assert store.evicted == 0


@pytest.mark.parametrize("max_keys", [0, -1, 1.5])
def test_the_bound_must_be_a_number(max_keys: float) -> None:
    with pytest.raises(InvalidInput):
        MemoryStore(max_keys=max_keys)  # type: ignore[arg-type]
