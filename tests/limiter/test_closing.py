"""The end of a limiter: those under way get their answers, those who come later an error that names it."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

import pytest

from ratelimit import Limiter, LimiterClosed, MemoryStore, Policy
from ratelimit.clock import SystemClock
from ratelimit.names import Key
from tests.limiter.stores import CountingStore, FailingStore, hang

HINT = Policy("hint", "100/day")


class GatedStore(CountingStore):
    """Answers when told to; says whether it was asked after its close."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.asked_when_closed = False

    async def apply(self, *args: Any, **options: Any) -> Any:
        self.asked_when_closed |= self.closed
        await self.gate.wait()
        assert not self.closed
        return await super().apply(*args, **options)


@pytest.mark.parametrize("users", [1, 20])
async def test_close_waits_for_the_checks_under_way(users: int) -> None:
    store = GatedStore()
    one = Limiter(store, [HINT])
    waiting = [asyncio.ensure_future(one.check(f"user-{number % users}", "hint")) for number in range(40)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(one.close())
    await asyncio.sleep(0.01)
    assert not closing.done()
    store.gate.set()
    await closing
    decisions = await asyncio.gather(*waiting)
    assert [decision.reason for decision in decisions] == [None] * 40
    assert sum((await store.used_today()).values()) == 40
    assert store.closed


@pytest.mark.parametrize("verb", ["peek", "charge", "refund", "reset", "totals"])
async def test_close_waits_for_the_other_verbs_too(verb: str) -> None:
    store = GatedStore()
    one = Limiter(store, [HINT])
    store.gate.set()
    await one.check("alice", "hint", cost=2)
    store.gate.clear()
    arguments = {"charge": ("alice", "hint", 1), "totals": ("alice",)}.get(verb, ("alice", "hint"))
    waiting = asyncio.ensure_future(getattr(one, verb)(*arguments))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(one.close())
    await asyncio.sleep(0.01)
    store.gate.set()
    await asyncio.gather(waiting, closing)
    assert not store.asked_when_closed


async def test_a_store_that_never_answers_keeps_nobody_beyond_the_deadline() -> None:
    store = FailingStore()
    store.fault = hang
    one = Limiter(store, [HINT], deadline=0.05)
    waiting = asyncio.ensure_future(one.check("alice", "hint"))
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await one.close()
    assert (await waiting).reason == "unavailable"


@pytest.mark.parametrize("memory", [True, False])
async def test_after_close_every_verb_says_so_and_asks_nobody(memory: bool) -> None:
    store = CountingStore()
    one = Limiter(MemoryStore() if memory else store, [HINT])
    decision = await one.check("alice", "hint")
    await one.close()
    await one.close()
    store.taken()
    for call in (
        one.check("alice", "hint"),
        one.check("alice", "hint", quotas="5/day"),
        one.peek("alice", "hint"),
        one.charge("alice", "hint", 1),
        one.refund("alice", "hint"),
        one.refund(decision),
        one.reset("alice", "hint"),
        one.totals("alice"),
    ):
        with pytest.raises(LimiterClosed, match=r"limiter\.open\(\)"):
            await call
    assert store.taken() == {}


async def test_a_check_that_was_still_looking_for_its_plan_does_not_reach_a_closed_store() -> None:
    found = asyncio.Event()

    class LatePlans:
        async def quotas_for(self, user: str, action: str) -> None:
            await found.wait()

    store = CountingStore()
    one = Limiter(store, [HINT], directory=LatePlans())
    waiting = asyncio.ensure_future(one.check("alice", "hint"))
    await asyncio.sleep(0)
    await one.close()
    found.set()
    with pytest.raises(LimiterClosed):
        await waiting
    assert store.taken() == {}


@pytest.mark.parametrize("memory", [True, False])
async def test_opened_again_it_goes_on(memory: bool) -> None:
    one = Limiter(MemoryStore() if memory else CountingStore(), [HINT])
    async with one:
        await one.check("alice", "hint")
    async with one:
        assert (await one.check("alice", "hint")).used == 2


# --- another event loop -------------------------------------------------------------------------------------------


def test_a_loop_that_ended_in_the_middle_of_checks_holds_up_no_other() -> None:
    store = FailingStore()
    store.fault = hang
    one = Limiter(store, [HINT, Policy("free", "unlimited")])

    async def cut_short() -> None:
        for _ in range(5):
            asyncio.ensure_future(one.check("alice", "hint"))  # noqa: RUF006
        await one.check("alice", "free")
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(cut_short())
    left = asyncio.all_tasks(loop)  # as a loop that just stops has it: nobody tells them
    store.fault = None

    async def again() -> None:
        for _ in range(3):
            decisions = await asyncio.gather(*(one.check("alice", "hint") for _ in range(4)))
            assert [decision.reason for decision in decisions] == [None] * 4
        assert sum((await one.totals("alice"))["hint"].values()) == 12
        await one.close()

    asyncio.run(again())
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_grants_nothing_that_the_other_one_holds(caplog: pytest.LogCaptureFixture) -> None:
    one = Limiter(CountingStore(), [Policy("hint", "100/day", lease=50)], clock=SystemClock())
    asyncio.run(_spend(one, 1))
    held = one._checker.leases.held(one._resolver.named["hint"], Key("alice", "hint"), one.clock.now())
    assert held > 0
    read, write = os.pipe()
    with caplog.at_level(logging.WARNING, "ratelimit"):
        child = os.fork()
        if child == 0:
            left = one._checker.leases.held(one._resolver.named["hint"], Key("alice", "hint"), one.clock.now())
            os.write(write, f"{left} {[record.getMessage() for record in caplog.records]}".encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read()
    assert told.startswith("0 ")
    assert f"process {child} was forked" in told


async def _spend(one: Limiter, cost: int) -> None:
    await one.check("alice", "hint", cost=cost)
