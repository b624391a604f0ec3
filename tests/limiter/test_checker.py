"""A failing store is a decision: within the deadline, by the policy, and for microseconds once the breaker knows."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ratelimit import Limiter, Policy, StoreThrottled, StoreUnavailable
from ratelimit.policy import OnUnavailable
from ratelimit.testing import FakeClock
from tests.limiter.stores import FailingStore, failing, hang

DOWN = StoreUnavailable("the store is down")


def broken(
    on_unavailable: OnUnavailable = "local",
    *,
    fault: Any = None,
    quotas: str = "2/day",
    deadline: float = 20,
    **options: Any,
) -> tuple[Limiter, FailingStore, FakeClock]:
    store, clock = FailingStore(), FakeClock()
    store.fault = fault or failing(DOWN)
    policy = Policy("hint", quotas, on_unavailable=on_unavailable, **options)
    return Limiter(store, [policy], clock=clock, deadline=deadline), store, clock


async def test_allow() -> None:
    one, _, _ = broken("allow")
    for _ in range(20):
        decision = await one.check("alice", "hint")
        assert (decision.allowed, decision.reason, decision.quotas) == (True, "unavailable", ())


async def test_deny() -> None:
    one, _, _ = broken("deny")
    for _ in range(20):
        decision = await one.check("alice", "hint")
        assert (decision.allowed, decision.reason) == (False, "unavailable")
        assert decision.retry_after is not None
        assert decision.retry_after > 0


async def test_local_counts_in_this_process_until_the_store_is_back() -> None:
    one, store, clock = broken("local")
    decisions = [await one.check("alice", "hint") for _ in range(4)]
    assert [decision.allowed for decision in decisions] == [True, True, False, False]
    assert [decision.reason for decision in decisions] == ["unavailable", "unavailable", "quota", "quota"]
    store.fault = None
    clock.advance(60)
    assert [(await one.check("alice", "hint")).reason for _ in range(2)] == [None, None]


@pytest.mark.parametrize("on_unavailable", ["allow", "deny", "local"])
async def test_where_there_is_no_limit_there_is_nothing_to_refuse(on_unavailable: OnUnavailable) -> None:
    one, _, _ = broken(on_unavailable, quotas="unlimited")
    assert (await one.check("alice", "hint")).allowed


@pytest.mark.parametrize("on_unavailable", ["allow", "deny", "local"])
async def test_peek_and_charge_do_not_raise_either(on_unavailable: OnUnavailable) -> None:
    one, _, _ = broken(on_unavailable)
    assert (await one.peek("alice", "hint")).reason == "unavailable"
    charged = await one.charge("alice", "hint", 3)
    assert (charged.allowed, charged.reason) == (True, "unavailable")


async def test_what_gives_back_or_reports_does_raise() -> None:
    one, _, _ = broken()
    for call in (one.refund("alice", "hint"), one.reset("alice", "hint"), one.totals("alice")):
        with pytest.raises(StoreUnavailable):
            await call


async def test_shadow_never_blocks_even_then() -> None:
    one, _, _ = broken("deny", mode="shadow")
    assert (await one.check("alice", "hint")).allowed


async def test_a_store_that_never_answers_is_left_at_the_deadline() -> None:
    one, store, _ = broken("allow", fault=hang, deadline=0.02)
    async with asyncio.timeout(30):
        decisions = await asyncio.gather(*(one.check(f"user-{n}", "hint") for n in range(50)))
    assert {decision.reason for decision in decisions} == {"unavailable"}
    assert store.taken() == {"apply": 50}


async def test_a_bug_is_not_a_failing_store() -> None:
    one, _, _ = broken("allow", fault=failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        await one.check("alice", "hint")


async def test_the_breaker_spares_the_store_and_finds_it_again(caplog: pytest.LogCaptureFixture) -> None:
    one, store, clock = broken("allow")
    with caplog.at_level(logging.WARNING, logger="ratelimit"):
        for _ in range(30):
            await one.check("alice", "hint")
        assert store.taken() == {"apply": 5}
        assert one.breaker.state == "open"

        clock.advance(1)
        await one.check("alice", "hint")  # one call tries, and fails
        await one.check("alice", "hint")
        assert store.taken() == {"apply": 1}

        store.fault = None
        clock.advance(1.5)
        await one.check("alice", "hint")
        assert store.taken() == {}  # the second cooldown is twice as long
        clock.advance(0.5)
        assert (await one.check("alice", "hint")).reason is None
    assert one.breaker.state == "closed"
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the store keeps failing, checks no longer wait for it",
        "the store answers again",
    ]


async def test_only_one_call_tries_at_a_time() -> None:
    one, store, clock = broken("allow", deadline=0.02)
    for _ in range(5):
        await one.check("alice", "hint")
    clock.advance(1)
    store.taken()
    store.fault = hang
    await asyncio.gather(*(one.check("alice", "hint") for _ in range(20)))
    assert store.taken() == {"apply": 1}


async def test_a_trying_call_that_is_cancelled_lets_another_try() -> None:
    one, store, clock = broken("allow")
    for _ in range(5):
        await one.check("alice", "hint")
    clock.advance(1)
    store.fault = hang
    task = asyncio.create_task(one.check("alice", "hint"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.fault = None
    assert (await one.check("alice", "hint")).reason is None


async def test_a_throttled_record_does_not_shut_out_the_others() -> None:
    one, store, _ = broken("allow", fault=failing(StoreThrottled("slow down")))
    for _ in range(20):
        assert (await one.check("alice", "hint")).reason == "unavailable"
    assert one.breaker.state == "closed"
    store.fault = None
    assert (await one.check("bob", "hint")).reason is None
