"""Those who wait get what fits as soon as it does, in their order, and cost one write each time that one asks."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ratelimit import ConfigError, InvalidCost, LimiterClosed, Policy, QuotaExceeded, SlotNeeded, StoreUnavailable, sync
from ratelimit.blocking import Signal
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.store import MemoryStore, Outcome, Store, Write
from ratelimit.testing import FakeClock, virtual_time
from ratelimit.testing.virtual_time import VirtualClock
from tests.limiter.stores import CountingStore, FailingStore, YieldingStore, failing
from tests.sync.forks import forked
from tests.turns import settled, turn

API = Policy("api", "2/minute", on_unavailable="deny")


def limiter_of(clock: FakeClock, store: Store | None = None, *policies: Policy) -> Limiter:
    return Limiter(CountingStore() if store is None else store, policies or [API], clock=clock, denial_cache=0)


class LateStore(CountingStore):
    """Writes at once, and answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        may_answer = self.may_answer
        outcome = await super().apply(key, write, now=now)
        await may_answer.wait()
        return outcome


class Crowd:
    """Tasks that wait, by name, and the names in the order in which they were let pass."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.passed: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def add(self, *names: str, **options: Any) -> None:
        for name in names:
            self.tasks[name] = asyncio.create_task(self._wait(name, options))
        await settled(100)

    async def _wait(self, name: str, options: dict[str, Any]) -> None:
        await self.limiter.wait("alice", "api", **{"timeout": 600, **options})
        self.passed.append(name)

    async def refusal_of(self, name: str) -> QuotaExceeded:
        with pytest.raises(QuotaExceeded) as caught:
            await asyncio.wait_for(self.tasks[name], 30)
        return caught.value


async def used(limiter: Limiter) -> int:
    return (await limiter.peek("alice", "api")).used


async def test_in_their_order_and_only_the_first_asks() -> None:
    clock, store = FakeClock(), CountingStore()
    crowd = Crowd(limiter_of(clock, store))
    await crowd.add(*"abcdefg")
    assert crowd.passed == ["a", "b"]
    assert store.taken()["apply"] <= 3
    await turn(clock, 59.9)
    assert (crowd.passed, store.taken()) == (["a", "b"], {})
    for passed in ("abcd", "abcdef", "abcdefg"):
        await turn(clock, 0.1 if passed == "abcd" else 60)
        assert crowd.passed == list(passed)
        assert store.taken()["apply"] <= 3, "those who pass, and one who is refused"
    assert "alice" not in str(vars(crowd.limiter._waits)), "nothing is kept of those who have gone"


async def test_keys_do_not_wait_for_one_another() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock)
    crowd = Crowd(limiter)
    await crowd.add(*"abc")
    assert (await limiter.wait("bob", "api", timeout=0)).used == 1
    assert (crowd.passed, crowd.tasks["c"].done()) == (["a", "b"], False)


@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind others"])
async def test_what_can_never_fit_is_refused_at_once(behind: bool) -> None:
    clock = FakeClock()
    limiter = limiter_of(clock)
    crowd = Crowd(limiter)
    if behind:
        await crowd.add(*"abc")
    before = await used(limiter)
    with pytest.raises(QuotaExceeded) as caught:
        await asyncio.wait_for(limiter.wait("alice", "api", cost=3, timeout=600), 30)
    assert (caught.value.decision.reason, caught.value.decision.retry_after) == ("too_large", None)
    assert str(caught.value) == "api: a cost of 3 can never fit 2/minute: ask for less, or for a larger quota"
    assert await used(limiter) == before


async def test_what_comes_too_late_is_refused_at_once_also_further_back() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock)
    crowd = Crowd(limiter)
    await limiter.check("alice", "api", cost=2)
    await crowd.add("hasty", timeout=59)
    assert (await crowd.refusal_of("hasty")).decision.retry_after == 60
    await crowd.add("first")
    clock.advance(30)
    await crowd.add("late", timeout=29)
    decision = (await crowd.refusal_of("late")).decision
    assert (decision.allowed, decision.retry_after, decision.spent) == (False, 30, 0)
    await crowd.add("in time", timeout=31)
    await turn(clock, 30)
    assert crowd.passed == ["first", "in time"]


async def test_those_whose_time_ends_before_the_first_asks_again_leave_with_its_refusal() -> None:
    clock, store = FakeClock(), FailingStore()
    limiter = limiter_of(clock, store)
    await limiter.check("alice", "api", cost=2)
    go = asyncio.Event()

    async def slow() -> None:
        await go.wait()

    store.fault = slow
    crowd = Crowd(limiter)
    await crowd.add("first")
    await crowd.add("second", timeout=10)
    assert not crowd.tasks["second"].done(), "nobody knows yet"
    go.set()
    assert (await crowd.refusal_of("second")).decision.retry_after == 60


async def test_who_had_no_turn_in_time_is_refused_without_asking() -> None:
    clock, store = FakeClock(), FailingStore()
    limiter = limiter_of(clock, store)
    crowd = Crowd(limiter)

    async def takes_a_second() -> None:
        await asyncio.sleep(0)
        clock.advance(1)

    store.fault = takes_a_second
    await crowd.add("a", "b", timeout=0.5)
    assert (crowd.passed, store.calls["apply"]) == (["a"], 1)
    refused = (await crowd.refusal_of("b")).decision
    assert (refused.allowed, refused.reason, refused.spent) == (False, "quota", 0)
    await limiter.refund(refused)
    assert store.calls["apply"] == 1, "nothing to give back"


async def test_who_is_cancelled_while_waiting_makes_room_for_the_next() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock)
    crowd = Crowd(limiter)
    await limiter.check("alice", "api", cost=2)
    await crowd.add(*"abc")
    crowd.tasks["a"].cancel()
    crowd.tasks["b"].cancel()
    await settled(100)
    await turn(clock, 60)
    assert (crowd.passed, await used(limiter)) == (["c"], 1)


async def test_who_is_cancelled_in_the_middle_of_a_write_has_spent_nothing() -> None:
    clock, store = FakeClock(), LateStore()
    limiter = limiter_of(clock, store, Policy("api", "1/minute"))
    crowd = Crowd(limiter)
    await crowd.add("a", "b")
    crowd.tasks["a"].cancel()
    await settled(100)
    assert (crowd.tasks["a"].cancelled(), crowd.passed) == (True, [])
    store.may_answer.set()
    await settled(100)
    assert crowd.passed == ["b"], "who comes next finds the unit there, and waits for no minute"
    assert await used(limiter) == 1


async def test_what_is_given_up_goes_back_before_a_limiter_closes() -> None:
    clock, store = FakeClock(), LateStore()
    limiter = limiter_of(clock, store, Policy("api", "1/minute"))
    crowd = Crowd(limiter)
    await crowd.add("a", "b")
    crowd.tasks["a"].cancel()
    await settled(100)
    closing = asyncio.create_task(limiter.close())
    await settled(100)
    store.may_answer.set()
    await closing
    with pytest.raises(LimiterClosed):
        await crowd.tasks["b"]
    await limiter.open()
    assert await used(limiter) == 0


async def test_units_that_go_back_while_the_first_is_being_refused() -> None:
    clock, store = FakeClock(), LateStore()
    limiter = limiter_of(clock, store)
    await limiter_of(clock, store.memory).check("alice", "api", cost=2)
    late = store.may_answer
    crowd = Crowd(limiter)
    await crowd.add("a")
    store.may_answer = asyncio.Event()
    store.may_answer.set()
    await limiter.reset("alice", "api")
    late.set()
    await settled(100)
    assert crowd.passed == ["a"]


async def test_units_that_go_back_here_are_had_at_once() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock)
    crowd = Crowd(limiter)
    taken = await limiter.check("alice", "api", cost=2)
    await crowd.add(*"abc")
    await limiter.refund(taken, cost=1)
    await settled(100)
    assert crowd.passed == ["a"]
    await limiter.reset("alice", "api")
    await turn(clock, 0)
    assert crowd.passed == ["a", "b", "c"]


async def test_closing_ends_all_waits_and_opening_takes_new_ones() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock)
    crowd = Crowd(limiter)
    await limiter.check("alice", "api", cost=2)
    await crowd.add(*"abc")
    await limiter.close()
    for name in "abc":
        with pytest.raises(LimiterClosed):
            await asyncio.wait_for(crowd.tasks[name], 30)
    await limiter.open()
    await crowd.add("d")
    await turn(clock, 60)
    assert crowd.passed == ["d"]


async def test_closing_ends_a_wait_that_is_being_refused() -> None:
    clock, store = FakeClock(), LateStore()
    limiter = limiter_of(clock, store)
    await limiter_of(clock, store.memory).check("alice", "api", cost=2)
    crowd = Crowd(limiter)
    await crowd.add("a")
    closing = asyncio.create_task(limiter.close())
    await settled(100)
    store.may_answer.set()
    await closing
    with pytest.raises(LimiterClosed):
        await asyncio.wait_for(crowd.tasks["a"], 30)


async def test_opening_right_after_closing_brings_nobody_back() -> None:
    clock, store = FakeClock(), CountingStore()
    crowd = Crowd(limiter_of(clock, store))
    await crowd.limiter.check("alice", "api", cost=2)
    await crowd.add(*"abc")
    await crowd.limiter._waits.close()
    crowd.limiter._waits.open()
    await settled(100)
    for name in "abc":
        with pytest.raises(LimiterClosed):
            await asyncio.wait_for(crowd.tasks[name], 30)


async def test_those_who_come_together_and_cannot_wait_are_refused_by_one_answer() -> None:
    clock, store = FakeClock(), CountingStore()
    limiter = limiter_of(clock, store)
    await limiter.check("alice", "api", cost=2)
    store.taken()
    crowd = Crowd(limiter)
    waiting = [asyncio.create_task(limiter.wait("alice", "api", timeout=10)) for _ in range(20)]
    await crowd.add("patient")
    refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(error) for error in refused} == {QuotaExceeded}
    assert sum(store.taken().values()) <= 2, "of the first, and of the one that is left"
    await turn(clock, 60)
    assert crowd.passed == ["patient"]


async def test_a_store_that_is_away_is_waited_for() -> None:
    clock, store = FakeClock(), FailingStore()
    limiter = limiter_of(clock, store)
    crowd = Crowd(limiter)
    store.fault = failing(StoreUnavailable("gone"))
    await crowd.add("a")
    await turn(clock, 1)
    assert crowd.passed == []
    store.fault = None
    for _ in range(60):
        await turn(clock, 1)
    assert crowd.passed == ["a"]


@pytest.mark.parametrize("turns", range(8))
async def test_a_clock_that_is_turned_on_while_the_answer_is_on_its_way_is_not_waited_for(turns: int) -> None:
    clock = FakeClock()
    limiter = limiter_of(clock)
    while (await limiter.check("alice", "api")).allowed:
        pass
    waiting = asyncio.create_task(limiter.wait("alice", "api", timeout=3600))
    await settled(turns)
    clock.advance(3599)
    await settled(100)
    assert waiting.done()
    assert (await waiting).allowed


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), None])
async def test_bad_timeouts(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="timeout: expected a number of seconds"):
        await limiter_of(FakeClock()).wait("alice", "api", timeout=timeout)


async def test_bad_costs_do_not_wait() -> None:
    with pytest.raises(InvalidCost):
        await limiter_of(FakeClock()).wait("alice", "api", cost=0)


class SlotCrowd(Crowd):
    """Those that wait for a slot, and hold it until they are told to end."""

    def __init__(self, limiter: Limiter) -> None:
        super().__init__(limiter)
        self.may_end: dict[str, asyncio.Event] = {}

    async def _wait(self, name: str, options: dict[str, Any]) -> None:
        self.may_end[name] = asyncio.Event()
        async with self.limiter.slot("alice", "export", **{"timeout": 600, **options}):
            self.passed.append(name)
            await self.may_end[name].wait()

    async def end(self, name: str) -> None:
        self.may_end[name].set()
        await settled(100)


EXPORT = Policy("export", "1 concurrent; 100/day", on_unavailable="deny")


async def test_a_slot_is_waited_for_in_their_order_and_had_at_once() -> None:
    clock, store = FakeClock(), CountingStore()
    crowd = SlotCrowd(limiter_of(clock, store, EXPORT))
    await crowd.add(*"abc")
    assert crowd.passed == ["a"]
    store.taken()
    await turn(clock, 0.9)
    assert store.taken() == {}, "nobody asks before the second is over"
    await turn(clock, 0.1)
    assert store.taken()["apply"] == 1, "only the first of them"
    with pytest.raises(SlotNeeded):
        await asyncio.wait_for(crowd.limiter.wait("alice", "export"), 30)
    for name in "abc":
        assert crowd.passed[-1] == name
        await crowd.end(name)
    assert crowd.passed == ["a", "b", "c"]
    assert (await store.read(Key("alice", "export")))["c"] == 0


async def test_a_slot_of_another_process_is_had_within_a_second() -> None:
    clock, store = FakeClock(), CountingStore()
    others = limiter_of(clock, store, EXPORT).slot("alice", "export")
    await others.take()
    crowd = SlotCrowd(limiter_of(clock, store, EXPORT))
    await crowd.add("a")
    await others.release()
    await turn(clock, 1)
    assert crowd.passed == ["a"]


async def test_who_waits_for_a_slot_leaves_when_the_time_is_over_and_not_before() -> None:
    clock = FakeClock()
    limiter = limiter_of(clock, None, EXPORT)
    crowd = SlotCrowd(limiter)
    await crowd.add("a")
    await crowd.add("hasty", timeout=0.5)
    await crowd.add("b")
    assert not crowd.tasks["hasty"].done(), "a slot may come back at any moment"
    await turn(clock, 0.5)
    await turn(clock, 0.01)
    decision = (await crowd.refusal_of("hasty")).decision
    assert (decision.reason, decision.retry_after, decision.spent) == ("concurrency", 1, 0)
    never = await asyncio.wait_for(limiter.reserve("alice", "export", 101, timeout=600).take(), 30)
    assert (never.reason, never.retry_after) == ("too_large", None), "and does not wait for others to be told so"
    await crowd.end("a")
    assert crowd.passed == ["a", "b"]


async def test_who_gives_up_in_the_middle_of_taking_a_slot_leaves_none_taken() -> None:
    clock, store = FakeClock(), LateStore()
    store.may_answer.set()
    others = limiter_of(clock, store, EXPORT).slot("alice", "export")
    await others.take()
    crowd = SlotCrowd(limiter_of(clock, store, EXPORT))
    await crowd.add("a")
    await others.release()
    store.may_answer.clear()
    await turn(clock, 1)
    crowd.tasks["a"].cancel()
    store.may_answer.set()
    await crowd.add("b")
    assert crowd.passed == ["b"]


def test_by_a_clock_that_runs_by_itself() -> None:
    """Ten a second, of which forty are wanted at once, by two processes that know nothing of one another."""

    async def main() -> tuple[float, int]:
        loop = asyncio.get_running_loop()
        store = MemoryStore()
        one, other = (
            Limiter(store, [Policy("api", "10/second", algorithm="gcra")], clock=VirtualClock(loop)) for _ in "ab"
        )
        await asyncio.gather(*(limiter.wait("alice", "api") for _ in range(20) for limiter in (one, other)))
        return loop.time(), (await one.totals("alice"))["api"].popitem()[1]

    took, total = virtual_time.run(main())
    assert total == 40
    assert 3.0 <= took < 3.5


def test_processes_that_wait_for_slots_all_have_one() -> None:
    """Eight of fifty tasks, which know nothing of one another; one in ten gives up while it waits, asks or holds."""
    held = most = done = 0

    async def work(limiter: Limiter, draw: random.Random) -> None:
        nonlocal held, most, done
        async with limiter.slot("alice", "export", timeout=3_000):
            held += 1
            most = max(most, held)
            try:
                await asyncio.sleep(draw.random())
            finally:
                held -= 1
            done += 1

    async def main() -> int:
        loop, store = asyncio.get_running_loop(), YieldingStore()
        policy = Policy("export", "5 concurrent", on_unavailable="deny")
        limiters = [Limiter(store, [policy], clock=VirtualClock(loop)) for _ in range(8)]
        tasks = [asyncio.create_task(work(limiter, random.Random(n))) for limiter in limiters for n in range(50)]
        for task in tasks[::10]:
            await asyncio.sleep(0.7)
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(answer) for answer in answers if answer is not None} == {asyncio.CancelledError}
        for limiter in limiters:
            await limiter.drain()
        return (await store.read(Key("alice", "export")))["c"]

    assert virtual_time.run(main()) == 0
    assert most == 5
    assert done >= 360


class StandingClock(FakeClock):
    """Whoever waits, waits until he is told."""

    async def pause(self, seconds: float, signal: Signal) -> None:
        await signal.wait()


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        threading.Event().wait(0.001)


def waiting(limiter: sync.Limiter) -> int:
    return sum(len(queue.waiters) for queue in limiter._core._waits._queues.values())


@pytest.mark.parametrize("ending", ["refund", "close"])
def test_threads_in_their_order(ending: str) -> None:
    limiter = sync.Limiter(MemoryStore(), [API], clock=StandingClock())
    limiter.check("alice", "api", cost=2)
    ended: list[object] = []

    def wait(number: int) -> None:
        try:
            assert limiter.wait("alice", "api")
            ended.append(number)
        except LimiterClosed:
            ended.append("closed")

    threads = [threading.Thread(target=wait, args=[number]) for number in range(3)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda number=number: waiting(limiter) == number + 1)  # type: ignore[misc]
    with pytest.raises(QuotaExceeded):
        limiter.wait("alice", "api", timeout=59)
    for number in range(3 if ending == "refund" else 0):
        limiter.refund("alice", "api")
        threads[number].join(60)
        assert ended == list(range(number + 1))
    limiter.close()
    for thread in threads:
        thread.join(60)
    assert ended == ([0, 1, 2] if ending == "refund" else ["closed"] * 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not() -> None:
    limiter = sync.Limiter(MemoryStore(), [API], clock=StandingClock())
    limiter.check("alice", "api", cost=2)
    thread = threading.Thread(target=lambda: limiter.wait("alice", "api"))
    thread.start()
    until(lambda: waiting(limiter) == 1)

    def child() -> bool:
        limiter.reset("alice", "api")
        return limiter.wait("alice", "api").used == 1

    assert forked(child)
    limiter.refund("alice", "api")
    thread.join(60)
    assert not thread.is_alive()
