"""Checks of one key while its write is under way: they leave together, exactly, in order, and none harms another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit.errors import StoreUnavailable
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.testing import FakeClock
from tests.limiter.histories import ALGORITHMS
from tests.limiter.stores import FailingStore, failing


class GatedStore(FailingStore):
    """Holds every call back until told to let it through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.fault = self.gate.wait  # type: ignore[assignment]


def gated(quotas: str, algorithm: AlgorithmName = "fixed_window", *, deadline: float = 5) -> tuple[Limiter, GatedStore]:
    store = GatedStore()
    policy = Policy("hint", quotas, algorithm=algorithm, on_unavailable="deny")
    return Limiter(store, [policy], clock=FakeClock(), deadline=deadline), store


async def turn(times: int = 5) -> None:
    """Let whatever can run, run."""
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_waits_leaves_as_one_write(algorithm: AlgorithmName) -> None:
    one, store = gated("1000/day", algorithm)
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(100)]
    await turn()
    assert store.taken() == {"apply": 1}
    store.gate.set()
    assert all(decision.allowed for decision in await asyncio.gather(*checks))
    assert store.taken() == {"apply": 1}
    assert (await one.peek("alice", "hint")).used == 100


async def test_other_keys_do_not_wait() -> None:
    one, store = gated("5/day")
    checks = [asyncio.create_task(one.check(user, "hint")) for user in ("alice", "bob", "carol")]
    await turn()
    assert store.taken() == {"apply": 3}
    store.gate.set()
    await asyncio.gather(*checks)


async def test_a_lone_check_needs_no_task() -> None:
    one, store = gated("5/day")
    store.gate.set()
    before = asyncio.all_tasks()
    await one.check("alice", "hint")
    assert asyncio.all_tasks() == before


async def test_many_who_wait_do_not_wait_for_what_those_before_them_do_with_their_answers() -> None:
    one, store = gated("1000/day")
    store.gate.set()
    told: list[str] = []

    async def write() -> None:
        told.append("write")
        await turn()

    async def ask(name: str) -> None:
        await one.check("alice", "hint")
        told.append(name)

    store.fault = write
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(ask("first"))
        tasks.create_task(ask("second"))
        while told.count("write") < 2:
            await asyncio.sleep(0)
        tasks.create_task(ask("third"))
    assert told == ["write", "first", "write", "write", "second", "third"]


async def test_who_waited_alone_has_its_answer_and_a_free_course_at_once() -> None:
    one, store = gated("1000/day")
    coalescer = one.checks.coalescer
    assert coalescer is not None
    taken: list[int] = []

    async def ask() -> None:
        await one.check("alice", "hint")
        taken.append(len(coalescer))

    checks = [asyncio.create_task(ask()) for _ in range(2)]
    await turn()
    store.gate.set()
    await asyncio.gather(*checks)
    assert taken == [1, 0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_first_come_first_served(algorithm: AlgorithmName) -> None:
    one, store = gated("10/day", algorithm)
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(16)]
    await turn()
    store.gate.set()
    allowed = [decision.allowed for decision in await asyncio.gather(*checks)]
    assert allowed == [True] * 10 + [False] * 6


async def test_a_dear_check_that_does_not_fit_lets_cheaper_ones_behind_it_pass() -> None:
    one, store = gated("10/day")
    checks = [asyncio.create_task(one.check("alice", "hint", cost=cost)) for cost in (4, 5, 3, 1, 1)]
    await turn()
    store.gate.set()
    assert [decision.allowed for decision in await asyncio.gather(*checks)] == [True, True, False, True, False]


@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 40), st.sampled_from(ALGORITHMS))
@settings(deadline=None, max_examples=60)
def test_what_was_granted_is_what_was_written(costs: list[int], limit: int, algorithm: AlgorithmName) -> None:
    async def run() -> None:
        one, store = gated(f"{limit}/day", algorithm)
        checks = [asyncio.create_task(one.check("alice", "hint", cost=cost)) for cost in costs]
        await turn()
        store.gate.set()
        decisions = await asyncio.gather(*checks)
        granted = sum(decision.cost for decision in decisions if decision.allowed)
        assert granted <= limit
        totals = await one.totals("alice")
        assert sum(totals["hint"].values()) == granted
        left = limit - granted
        assert not any(not decision.allowed and decision.cost <= left for decision in decisions)

    asyncio.run(run())


async def test_a_cancelled_waiter_spends_nothing_and_harms_nobody() -> None:
    one, store = gated("10/day")
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(5)]
    await turn()
    checks[2].cancel()
    store.gate.set()
    decisions = await asyncio.gather(*checks, return_exceptions=True)
    assert isinstance(decisions[2], asyncio.CancelledError)
    assert (await one.peek("alice", "hint")).used == 4


async def test_a_cancelled_first_check_lets_the_others_go() -> None:
    one, store = gated("10/day")
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(5)]
    await turn()
    checks[0].cancel()
    await turn()
    store.gate.set()
    decisions = await asyncio.gather(*checks[1:])
    assert all(decision.allowed for decision in decisions)
    assert (await one.peek("alice", "hint")).used == 4


async def test_a_failed_write_fails_those_who_left_with_it_and_nobody_else() -> None:
    one, store = gated("10/day")
    first = asyncio.create_task(one.check("alice", "hint"))
    await turn()
    others = [asyncio.create_task(one.check("alice", "hint")) for _ in range(4)]
    await turn()
    answers: list[Callable[[], Awaitable[None]]] = [failing(StoreUnavailable("lost"))]
    gate = store.gate.wait

    async def once() -> None:
        await gate()
        if answers:
            await answers.pop()()

    store.fault = once
    store.gate.set()
    assert (await first).reason is None
    assert {decision.reason for decision in await asyncio.gather(*others)} == {"unavailable"}
    assert (await one.check("alice", "hint")).used == 2


async def test_waiting_ends_at_the_deadline() -> None:
    one, _ = gated("10/day", deadline=0.05)
    async with asyncio.timeout(5):
        decisions = await asyncio.gather(*(one.check("alice", "hint") for _ in range(20)))
    assert {decision.reason for decision in decisions} == {"unavailable"}


async def test_a_bug_reaches_everyone_who_waited() -> None:
    one, store = gated("10/day")
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(3)]
    await turn()
    store.fault = failing(ZeroDivisionError())
    store.gate.set()
    results = await asyncio.gather(*checks, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Decision", "ZeroDivisionError", "ZeroDivisionError"]


async def test_nothing_is_left_behind() -> None:
    one, store = gated("10/day")
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(30)]
    await turn()
    checks[3].cancel()
    store.gate.set()
    await asyncio.gather(*checks, return_exceptions=True)
    await turn()
    assert len(asyncio.all_tasks()) == 1
    assert one.checks.coalescer is not None
    assert len(one.checks.coalescer) == 0


async def test_usage_without_a_limit_is_answered_at_once_and_counted_all_the_same() -> None:
    one, store = gated("unlimited")
    for _ in range(50):
        assert (await one.check("alice", "hint")).allowed
    await turn()
    assert store.taken() == {"apply": 1}
    store.gate.set()
    await one.close()
    record = await store.memory.read(Key("alice", "hint"))
    assert set(record.values()) == {50}


async def test_usage_without_a_limit_that_could_not_be_counted_is_known() -> None:
    one, store = gated("unlimited")
    store.fault = failing(StoreUnavailable("down"))
    for _ in range(3):
        assert (await one.check("alice", "hint", cost=2)).allowed
    await one.close()
    assert one.background.lost == {"uncounted": 6}
