"""Checks of one key while its write is under way: they leave together, exactly, in order, and none harms another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import Limiter, Policy, StoreUnavailable
from ratelimit.limiter.batching import MAX_QUEUED_CHECKS
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.testing import FakeClock, virtual_time
from tests.limiter.histories import ALGORITHMS
from tests.limiter.stores import CountingStore, FailingStore, failing
from tests.profiles import examples


class GatedStore(FailingStore):
    """Holds every call back until told to let it through."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.fault = self.gate.wait  # type: ignore[assignment]


def gated(quotas: str, algorithm: AlgorithmName = "fixed_window", **options: Any) -> tuple[Limiter, GatedStore]:
    store = GatedStore()
    policy = Policy("hint", quotas, algorithm=algorithm, on_unavailable="deny")
    return Limiter(store, [policy], clock=FakeClock(), **options), store


@pytest.fixture
async def made() -> AsyncIterator[list[str]]:
    """The names of the tasks that are made from now on."""
    loop = asyncio.get_running_loop()
    names: list[str] = []

    def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        names.append(task.get_name())
        return task

    loop.set_task_factory(make)
    yield names
    loop.set_task_factory(None)


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
    assert one.stats.coalesced == 99


async def test_those_who_ask_again_at_once_leave_together() -> None:
    one, store = gated("1000/day")
    store.fault = turn

    async def ask() -> None:
        for _ in range(5):
            await one.check("alice", "hint")

    await asyncio.gather(*(ask() for _ in range(8)))
    assert store.taken()["apply"] <= 7


async def test_other_keys_do_not_wait() -> None:
    one, store = gated("5/day")
    checks = [asyncio.create_task(one.check(user, "hint")) for user in ("alice", "bob", "carol")]
    await turn()
    assert store.taken() == {"apply": 3}
    store.gate.set()
    await asyncio.gather(*checks)


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
    coalescer = one._checker.coalescer
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
@settings(deadline=None, max_examples=examples(60))
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


def test_waiting_ends_at_the_deadline() -> None:
    """Of who waits for another's write as of who waits for its own, which that makes later."""

    async def run() -> None:
        one, store = gated("10/day", deadline=5)
        loop = asyncio.get_running_loop()
        store.fault = lambda: asyncio.sleep(3.5)

        async def ask(at: float) -> tuple[str | None, float]:
            await asyncio.sleep(at)
            decision = await one.check("alice", "hint")
            return decision.reason, loop.time()

        asked = [asyncio.create_task(ask(at)) for at in (0, 1, 3)]
        assert await asyncio.gather(*asked) == [(None, 3.5), ("unavailable", 6), (None, 7)]

    virtual_time.run(run())


async def test_a_check_that_was_given_up_under_way_harms_nobody_who_left_with_it() -> None:
    one, store = gated("10/day")
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(4)]
    await turn()
    store.gate.set()
    await checks[0]
    store.gate.clear()
    await turn()
    checks[1].cancel()
    store.gate.set()
    decisions = await asyncio.gather(*checks[2:])
    assert [decision.reason for decision in decisions] == [None, None]


@pytest.mark.heavy
async def test_too_many_do_not_wait_for_one_record() -> None:
    one, store = gated("20000/day")
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(MAX_QUEUED_CHECKS + 2)]
    await turn()
    assert [check.done() for check in checks] == [False] * (MAX_QUEUED_CHECKS + 1) + [True]
    store.gate.set()
    assert [(await check).reason for check in checks] == [None] * (MAX_QUEUED_CHECKS + 1) + ["unavailable"]


async def test_a_crowd_takes_one_write_however_small_the_quota() -> None:
    """Beside that of who came first: for those who may pass. What the others are told is in its answer."""
    store = GatedStore()
    policy = Policy("hint", "5/day", on_unavailable="deny")
    one = Limiter(store, [policy], clock=FakeClock(), denial_cache=0)
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(500)]
    await turn()
    store.gate.set()
    decisions = await asyncio.gather(*checks)
    assert [decision.allowed for decision in decisions] == [True] * 5 + [False] * 495
    assert {decision.reason for decision in decisions[5:]} == {"quota"}
    assert store.taken() == {"apply": 2, "read": 1}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_was_left_out_of_a_write_is_not_admitted_unpaid(algorithm: AlgorithmName) -> None:
    """Where somebody gives back while those of a batch that fit are being written, the others fit as well by now."""
    one, store = gated("10/day", algorithm)
    other = Limiter(CountingStore(store.memory), [Policy("hint", "10/day", algorithm=algorithm)], clock=one.clock)
    await other.check("alice", "hint", cost=8)
    calls = 0

    async def give_back() -> None:
        nonlocal calls
        calls += 1
        await store.gate.wait()
        if calls == 3:  # the first check's, the batch's, and now that of what fits of it
            await other.refund("alice", "hint", 6)

    store.fault = give_back
    checks = [asyncio.create_task(one.check("alice", "hint", cost=cost)) for cost in (1, 5, 1)]
    await turn()
    store.gate.set()
    decisions = [await check for check in checks]
    assert [decision.allowed for decision in decisions] == [True, True, True]
    assert sum((await other.totals("alice"))["hint"].values()) == 8 - 6 + 7


async def test_closing_waits_for_those_who_wait() -> None:
    one, store = gated("10/day")
    gates = asyncio.Event(), asyncio.Event()
    opening = iter(gates)

    async def wait() -> None:
        await next(opening).wait()

    store.fault = wait
    checks = [asyncio.create_task(one.check("alice", "hint")) for _ in range(3)]
    await turn()
    closing = asyncio.create_task(one.close())
    for gate in gates:
        await turn(50)
        assert not store.closed
        gate.set()
    await closing
    assert [(await check).reason for check in checks] == [None] * 3


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
    assert one._checker.coalescer is not None
    assert len(one._checker.coalescer) == 0


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


async def test_when_too_many_counts_are_under_way_the_next_one_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.limiter.limiter.MAX_BACKGROUND_WRITES", 2)
    one, store = gated("unlimited")
    checks = [asyncio.create_task(one.check(user, "hint")) for user in ("alice", "bob", "carol")]
    await turn()
    assert [check.done() for check in checks] == [True, True, False]
    store.gate.set()
    assert (await checks[2]).allowed
    await one.close()


async def test_totals_do_not_wait_for_what_comes_after_them() -> None:
    one, store = gated("unlimited")
    await one.check("alice", "hint")
    asked = asyncio.create_task(one.totals("alice"))
    await turn()
    await one.check("bob", "hint")
    waited, store.gate = store.gate, asyncio.Event()
    store.fault = store.gate.wait  # type: ignore[assignment]
    await one.check("carol", "hint")
    store.fault = None
    waited.set()
    assert list((await asked)["hint"].values()) == [1]
    store.gate.set()
    await one.close()


async def test_usage_without_a_limit_that_could_not_be_counted_is_known() -> None:
    one, store = gated("unlimited")
    store.fault = failing(StoreUnavailable("down"))
    for _ in range(3):
        assert (await one.check("alice", "hint", cost=2)).allowed
    await one.close()
    assert one.stats.lost == {"uncounted": 6}
