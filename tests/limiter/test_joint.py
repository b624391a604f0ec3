"""`check_all`: several keys of one request are admitted together, or spend nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import InvalidCost, InvalidInput, Limiter, Policy, Spend, StoreThrottled, StoreUnavailable, UnknownAction
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.store import MemoryStore
from ratelimit.testing import FakeClock
from tests.limiter.histories import ALGORITHMS, QUOTAS, JointHistory, joint_steps
from tests.limiter.stores import CountingStore, FailingStore, YieldingStore, failing, hang

POLICIES = [Policy("user", "5/day"), Policy("org", "8/day"), Policy("address", "100/day")]


def limiter(store: Any, policies: list[Policy] | None = None, **options: Any) -> Limiter:
    return Limiter(store, policies or POLICIES, clock=options.pop("clock", FakeClock()), **options)


async def used(store: Any, *keys: tuple[str, str]) -> list[int]:
    """By the totals, which are counted in the same write."""
    records = [await store.read(Key(*key)) for key in keys]
    return [next((value for field, value in record.items() if len(field) == 7), 0) for record in records]


KEYS = ("alice", "user"), ("acme", "org"), ("::1", "address")


@pytest.mark.parametrize("store", [MemoryStore, CountingStore])
async def test_all_spend_or_none(store: type[Any]) -> None:
    store = store()
    one = limiter(store)
    answer = await one.check_all([("alice", "user", 3), ("acme", "org", 3), Spend("::1", "address")])
    assert answer
    assert [(each.policy, each.used, each.remaining, each.spent) for each in answer] == [
        ("user", 3, 2, 3),
        ("org", 3, 5, 3),
        ("address", 1, 99, 1),
    ]
    answer = await one.check_all([("alice", "user", 3), ("acme", "org", 3), ("::1", "address")])
    assert not answer
    assert answer.refused is not None
    assert answer.refused.policy == "user"
    assert answer.retry_after == answer.refused.retry_after == 43_200
    assert [(each.allowed, each.spent) for each in answer] == [(False, 0), (True, 0), (True, 0)]
    assert await used(store, *KEYS) == [3, 3, 1]


async def test_calls() -> None:
    """What is not known is looked at first; what is known to be refused asks nobody."""
    store = CountingStore()
    clock = FakeClock()
    one = limiter(store, clock=clock)
    group = [("alice", "user"), ("acme", "org")]
    await one.check_all(group)
    assert store.taken() == {"read_all": 1, "apply_all": 1}
    await one.check_all(group)
    assert store.taken() == {"apply_all": 1}
    clock.advance(1)
    await one.check_all([("alice", "user", 3), ("acme", "org")])
    assert store.taken() == {"read_all": 1, "apply_all": 1}
    clock.advance(1)
    assert not await one.check_all(group)
    assert store.taken() == {"read_all": 1}
    assert not await one.check_all(group)
    assert store.taken() == {}


async def test_another_process_is_seen_by_its_refusal() -> None:
    store = CountingStore()
    clock = FakeClock()
    one, other = limiter(store, clock=clock), limiter(store, clock=clock)
    await one.check_all([("alice", "user"), ("acme", "org")])
    for user in "bcdefgh":
        assert await other.check(user, "user")
        assert await other.check("acme", "org")
    store.taken()
    assert not await one.check_all([("alice", "user"), ("acme", "org")])
    assert store.taken() == {"apply_all": 1}
    assert await used(store, *KEYS) == [1, 8, 0]


async def test_what_has_no_limit_takes_no_part_in_the_write() -> None:
    store = CountingStore()
    one = limiter(store, [Policy("user", "2/day"), Policy("org", "unlimited")])
    group = [("alice", "user"), ("acme", "org")]
    for _ in range(2):
        assert await one.check_all(group)
    await one._checker.background.tasks.drain()
    assert store.taken() == {"apply": 4}, "a single limit is a single write, and what has none is counted behind"
    answer = await one.check_all(group)
    assert [(each.allowed, each.spent) for each in answer] == [(False, 0), (True, 0)]
    await one._checker.background.tasks.drain()
    assert await used(store, ("alice", "user"), ("acme", "org")) == [2, 2]


async def test_shadow_never_refuses() -> None:
    store = CountingStore()
    one = limiter(store, [Policy("user", "3/day"), Policy("org", "1/day", mode="shadow")])
    answers = [await one.check_all([("alice", "user"), ("acme", "org")]) for _ in range(4)]
    assert [bool(answer) for answer in answers] == [True, True, True, False]
    shadows = [answer.decisions[1] for answer in answers]
    assert [(each.spent, each.shadow_denied) for each in shadows] == [(1, False), (0, True), (0, True), (0, True)]
    assert await used(store, ("alice", "user"), ("acme", "org")) == [3, 1]


async def test_those_that_share_the_last_leave_together() -> None:
    store = YieldingStore()
    one = limiter(store, [Policy("user", "1/day"), Policy("org", "30/day")])
    asked = [one.check_all([(f"user-{number % 25}", "user"), ("acme", "org")]) for number in range(50)]
    answers = await asyncio.gather(*asked)
    assert sum(map(bool, answers)) == 25
    assert store.calls["apply_all"] <= 4
    assert await used(store, ("acme", "org"), ("user-7", "user")) == [25, 1]
    asked = [one.check_all([(f"late-{number}", "user"), ("acme", "org")]) for number in range(130)]
    assert [bool(answer) for answer in await asyncio.gather(*asked)] == [True] * 5 + [False] * 125, "in order"
    assert await used(store, ("acme", "org")) == [30]


async def test_what_has_a_lease_is_taken_from_what_is_held() -> None:
    """One single write for the user; what he is refused is held again, and goes back when the process ends."""
    store = CountingStore()
    policies = [Policy("user", "5/day"), Policy("org", "100/day", lease=20)]
    one = limiter(store, policies)
    group = [("alice", "user"), ("acme", "org")]
    answers = [await one.check_all(group) for _ in range(8)]
    assert [bool(answer) for answer in answers] == [True] * 5 + [False] * 3
    assert [decision.spent for decision in answers[-1]] == [0, 0]
    assert store.calls["apply_all"] == 0
    assert store.taken()["apply"] <= 7, "five of the user, his refusal, and one that took units ahead"
    await one.close()
    assert await used(store, ("alice", "user"), ("acme", "org")) == [5, 5]


async def test_the_last_units_of_a_lease_are_not_lost() -> None:
    store = CountingStore()
    one = limiter(store, [Policy("user", "1/day"), Policy("org", "8/day", lease=4)])
    assert await one.check("acme", "org")  # and takes some ahead
    assert await one.check_all([("alice", "user"), ("acme", "org")])
    assert not any([await one.check_all([("alice", "user"), ("acme", "org")]) for _ in range(9)])
    answers = [await one.check_all([(f"user-{number}", "user"), ("acme", "org")]) for number in range(8)]
    assert [bool(answer) for answer in answers] == [True] * 6 + [False] * 2
    await one.close()
    assert await used(store, ("acme", "org"), ("user-6", "user")) == [8, 0]


async def test_who_gives_up_leaves_what_is_leased() -> None:
    store = FailingStore()
    one = limiter(store, [Policy("user", "5/day"), Policy("org", "8/day", lease=4)])
    assert await one.check("acme", "org")
    store.fault = hang
    asking = asyncio.create_task(one.check_all([("alice", "user"), ("acme", "org")]))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait([asking])
    store.fault = None
    await one.close()
    assert await used(store, ("acme", "org")) == [1]


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "gcra"])
async def test_a_member_can_be_given_back(algorithm: Any) -> None:
    one = limiter(CountingStore(), [Policy("user", "1/hour", algorithm=algorithm), Policy("org", "9/day")])
    group = [("alice", "user"), ("acme", "org")]
    answer = await one.check_all(group)
    assert not await one.check_all(group)
    for decision in answer:
        await one.refund(decision)
    assert await one.check_all(group)


@pytest.mark.parametrize(
    ("user", "org", "expected"),
    [
        ("local", "local", [(True, 1), (True, 1)]),
        ("local", "allow", [(True, 1), (True, 0)]),
        ("local", "deny", [(True, 0), (False, 0)]),
    ],
)
async def test_without_a_store_each_policy_has_its_say(user: Any, org: Any, expected: list[tuple[bool, int]]) -> None:
    store = FailingStore()
    store.fault = failing(StoreThrottled("no"))
    policies = [Policy("user", "2/day", on_unavailable=user), Policy("org", "9/day", on_unavailable=org)]
    one = limiter(store, policies)
    answer = await one.check_all([("alice", "user"), ("acme", "org")])
    assert [(each.allowed, each.spent) for each in answer] == expected
    assert {each.reason for each in answer if not each.spent or each.allowed} == {"unavailable"}
    if answer:
        assert await one.check_all([("alice", "user"), ("acme", "org")])
        assert not await one.check_all([("alice", "user"), ("acme", "org")]), "counted in this process"


async def test_what_is_leased_is_not_counted_without_a_store_where_another_refuses() -> None:
    store = FailingStore()
    store.fault = failing(StoreThrottled("no"))
    leased = Policy("user", "5/day", lease=2, on_unavailable="local")
    one = limiter(store, [leased, Policy("org", "1/day", on_unavailable="local")])
    group = [("alice", "user"), ("acme", "org")]
    assert [bool(await one.check_all(group)) for _ in range(5)] == [True, False, False, False, False]
    assert (await one.check_all([("alice", "user", 4), ("other", "org")])).allowed


async def test_those_that_were_written_are_told_so_though_the_store_fails_with_the_next() -> None:
    """Those that leave together are too many for one write."""
    store = YieldingStore()

    async def fault() -> None:
        await asyncio.sleep(0)
        if store.calls["apply_all"] == 3:
            raise StoreUnavailable("down")

    store.fault = fault  # type: ignore[method-assign]
    policies = [Policy("user", "9/day", on_unavailable="deny"), Policy("org", "1000/day", on_unavailable="deny")]
    one = limiter(store, policies)
    asked = [one.check_all([(f"user-{number}", "user"), ("acme", "org")]) for number in range(121)]
    answers = await asyncio.gather(*asked)
    assert [bool(answer) for answer in answers] == [True] * 100 + [False] * 21
    assert {each.reason for answer in answers[100:] for each in answer} == {"unavailable"}
    assert await used(store.memory, ("user-99", "user"), ("user-100", "user"), ("acme", "org")) == [1, 0, 100]


@pytest.mark.parametrize(
    ("spends", "error"),
    [
        ([], InvalidInput),
        ([("alice", "user"), ("alice", "user")], InvalidInput),
        ([(f"{number}", "user") for number in range(101)], InvalidInput),
        ([("alice", "user"), ("acme", "org", 0)], InvalidCost),
        ([("alice", "user"), ("acme", "nobody")], UnknownAction),
        ("alice", InvalidInput),
        ([("alice",)], InvalidInput),
        ([("alice", "user", 1, "5/day")], InvalidInput),
        ([["alice", "user"]], InvalidInput),
    ],
)
async def test_bad_input_spends_nothing(spends: Any, error: type[Exception]) -> None:
    store = CountingStore()
    with pytest.raises(error):
        await limiter(store).check_all(spends)
    assert not store.calls


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(user=st.sampled_from(QUOTAS), org=st.sampled_from(QUOTAS), history=joint_steps, embedded=st.booleans())
def test_the_promises_hold_in_any_history(
    algorithm: AlgorithmName, user: str, org: str, history: list[tuple[float, str, int]], embedded: bool
) -> None:
    async def run() -> None:
        store: Any = MemoryStore() if embedded else CountingStore()
        policies = Policy("user", user, algorithm=algorithm), Policy("org", org)
        joint = JointHistory(store, *policies)
        for advance, name, cost in history:
            await joint.step(advance, name, cost)

    asyncio.run(run())


async def test_tasks_of_one_mind_in_memory() -> None:
    """Eight limiters with fifty tasks each on one store, in which each call lets the others go first. Those of three
    are cancelled in the middle: each admission is one unit of a user's and one of the shared key's, theirs too."""
    store = YieldingStore()
    policies = [Policy("user", "7/day"), Policy("org", "200/day")]
    admitted = 0

    async def ask(limiter: Limiter, first: int) -> None:
        nonlocal admitted
        for turn in range(2):
            answer = await limiter.check_all([(f"user-{(first + 17 * turn) % 64}", "user"), ("acme", "org")])
            admitted += bool(answer)

    limiters = [Limiter(store, policies, denial_cache=0) for _ in range(8)]
    tasks = [asyncio.create_task(ask(limiter, 3 * n)) for limiter in limiters for n in range(50)]
    while admitted < 50:
        await asyncio.sleep(0)
    for task in tasks[:150]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    used = [(await limiters[0].peek(f"user-{n}", "user")).used for n in range(64)]
    assert max(used) <= 7
    assert sum(used) == (await limiters[0].peek("acme", "org")).used == 200
    assert 50 <= admitted <= 200


async def test_too_large_is_never() -> None:
    answer = await limiter(CountingStore()).check_all([("alice", "user", 6), ("acme", "org", 6)])
    assert answer.retry_after is None
    assert answer.refused is not None
    assert answer.refused.reason == "too_large"
