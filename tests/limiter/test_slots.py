"""Slots and reservations: never more than there are, each given back once, and those of the dead in the stated time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ratelimit import (
    HoldExpired,
    InvalidCost,
    InvalidInput,
    LimiterClosed,
    NotHeld,
    Policy,
    QuotaExceeded,
    SlotNeeded,
    StoreThrottled,
    StoreUnavailable,
    UnknownAction,
    sync,
)
from ratelimit.clock import Clock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.limiter import Limiter, Reservation
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.store import MemoryStore, Store
from ratelimit.testing import FakeClock, virtual_time
from tests.limiter.holds import COMES_BACK_S, Holders, steps
from tests.limiter.stores import CountingStore, FailingStore, YieldingStore, failing, hang

ALGORITHMS: tuple[AlgorithmName, ...] = ("fixed_window", "sliding_window", "gcra")
EXPORT = Policy("export", "2 concurrent; 100/hour", on_unavailable="deny")
TOKENS = Policy("tokens", "2000/day", on_unavailable="deny")


def limiter_of(store: Store | None = None, clock: Clock | None = None, **options: Any) -> Limiter:
    store = CountingStore() if store is None else store
    return Limiter(store, [EXPORT, TOKENS], clock=clock or FakeClock(), **{"denial_cache": 0, **options})


async def record(limiter: Limiter, action: str) -> dict[str, int]:
    return {field: value for field, value in (await limiter.store.read(Key("alice", action))).items() if value}


# Slots.


async def test_at_most_so_many_at_the_same_time() -> None:
    store = CountingStore()
    limiter = limiter_of(store)
    async with limiter.slot("alice", "export") as first, limiter.slot("alice", "export"):
        assert first.is_held
        assert first.decision is not None
        assert first.decision.remaining == 1
        with pytest.raises(QuotaExceeded) as refused:
            async with limiter.slot("alice", "export"):
                pytest.fail("there is no third one")
        decision = refused.value.decision
        assert (decision.reason, decision.retry_after, decision.spent) == ("concurrency", 1.0, 0)
        assert (await limiter.slot("bob", "export").take()).allowed
    async with limiter.slot("alice", "export"):
        assert (await record(limiter, "export"))["h491004"] == 3, "what was spent of the other quotas stays spent"
    assert not first.is_held


async def test_one_write_to_take_and_one_to_give_back() -> None:
    store = CountingStore()
    limiter = limiter_of(store)
    for _ in range(3):
        async with limiter.slot("alice", "export"):
            assert store.taken() == {"apply": 1}
        assert store.taken() == {"apply": 1}
    async with limiter.slot("alice", "export"), limiter.slot("alice", "export"):
        store.taken()
        await limiter.slot("alice", "export").take()
        assert store.taken() == {"apply": 1}, "what comes and goes is asked for by the write itself"


async def test_a_refusal_of_a_moment_ago_is_repeated_until_a_slot_is_given_back_here() -> None:
    store, clock = CountingStore(), FakeClock()
    limiter = limiter_of(store, clock, denial_cache=1)
    slots = [limiter.slot("alice", "export") for _ in range(3)]
    assert [(await slot.take()).allowed for slot in slots] == [True, True, False]
    store.taken()
    assert not await limiter.slot("alice", "export").take()
    assert store.taken() == {}
    await slots[0].release()
    assert await limiter.slot("alice", "export").take()
    assert not await limiter.slot("alice", "export").take()
    clock.advance(0.1)
    store.taken()
    assert not await limiter.slot("alice", "export").take()
    assert store.taken() == {"apply": 1}


async def test_a_slot_that_is_renewed_lasts_and_one_of_the_dead_comes_back() -> None:
    clock, store = FakeClock(), MemoryStore()
    alive, dead, other = (limiter_of(store, clock) for _ in range(3))
    kept, lost = alive.slot("alice", "export"), dead.slot("alice", "export")
    assert await kept.take()
    assert await lost.take()
    for _ in range(3):
        clock.advance(10)
        await alive._holds.renew_due()
        assert not await other.slot("alice", "export").take(), "not before its time is over"
    clock.advance(COMES_BACK_S - 30)
    await alive._holds.renew_due()
    assert await other.slot("alice", "export").take()
    assert not await other.slot("alice", "export").take()
    await lost.release()  # too late: it is somebody else's by now
    assert not lost.is_held
    assert not await other.slot("alice", "export").take()
    await kept.release()
    assert await other.slot("alice", "export").take()


def test_renewing_goes_on_by_itself() -> None:
    async def run() -> None:
        limiter = limiter_of(MemoryStore(), virtual_time.VirtualClock(asyncio.get_running_loop()))
        async with limiter.slot("alice", "export") as slot:
            before = await record(limiter, "export")
            await asyncio.sleep(20)
            after = await record(limiter, "export")
            assert slot.is_held
            assert before.keys() != after.keys()
            assert after["c"] == 1

    virtual_time.run(run())


async def test_one_that_was_not_renewed_in_time_is_known_to_be_lost(caplog: pytest.LogCaptureFixture) -> None:
    clock, store = FakeClock(), MemoryStore()
    frozen, other = limiter_of(store, clock), limiter_of(store, clock)
    slot = frozen.slot("alice", "export")
    await slot.take()
    clock.advance(COMES_BACK_S)
    assert [(await other.slot("alice", "export").take()).allowed for _ in range(3)] == [True, True, False]
    await frozen._holds.renew_due()
    assert not slot.is_held
    assert "was not renewed in time" in caplog.text


async def test_one_that_is_given_back_late_while_others_take_it_back() -> None:
    """Both do it by what they have seen; only one of them may."""
    clock, store = FakeClock(), YieldingStore()
    first, second = limiter_of(store, clock), limiter_of(store, clock)
    late, dead = first.slot("alice", "export"), first.slot("alice", "export")
    assert await late.take()
    assert await dead.take()
    clock.advance(COMES_BACK_S)
    refused = store.calls["apply"] + 1

    async def fault() -> None:
        if store.calls["apply"] == refused + 1 and late._hold is not None:  # the write that takes both back
            await late.release()

    store.fault = fault  # type: ignore[method-assign]
    assert await second.slot("alice", "export").take()
    assert (await record(first, "export"))["c"] == 1
    assert await second.slot("alice", "export").take()
    assert not await second.slot("alice", "export").take()


async def test_whoever_is_cancelled_leaves_nothing_behind() -> None:
    store = YieldingStore()
    limiter = limiter_of(store)

    async def work() -> None:
        async with limiter.slot("alice", "export"):
            await asyncio.Event().wait()

    for turns in range(12):
        task = asyncio.create_task(work())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        await limiter._holds._tasks.drain()
        await limiter._holds._tasks.drain()
        assert (await record(limiter, "export")).get("c", 0) == 0, turns


async def test_given_back_twice_or_never_taken() -> None:
    limiter = limiter_of()
    slot = limiter.slot("alice", "export")
    with pytest.raises(NotHeld, match="was not taken"):
        await slot.release()
    await slot.take()
    with pytest.raises(NotHeld, match="make another"):
        await slot.take()
    async with limiter.slot("alice", "export"):
        await slot.release()
        with pytest.raises(NotHeld, match="given back before"):
            await slot.release()
        assert (await record(limiter, "export"))["c"] == 1, "nothing of anybody else's"


async def test_one_that_is_asked_for_twice_at_once_is_taken_once() -> None:
    limiter = limiter_of(YieldingStore())
    for slot in (limiter.slot("alice", "export"), limiter.reserve("alice", "tokens", 5)):
        taken, error = await asyncio.gather(slot.take(), slot.take(), return_exceptions=True)
        assert taken
        assert isinstance(error, NotHeld)
        await slot.release()
        assert not {"c", "r"} & (await record(limiter, slot.decision.policy if slot.decision else "")).keys()
    unknown = limiter.slot("alice", "unheard-of")
    for _ in range(2):
        with pytest.raises(UnknownAction):
            await unknown.take()


class Step:
    """Holds up the next write of a store, when it is made, until it may go on."""

    def __init__(self, store: FailingStore) -> None:
        self.made, self.go_on = asyncio.Event(), asyncio.Event()
        self._apply, self._memory = store.memory.apply, store.memory
        self._memory.apply = self  # type: ignore[method-assign]

    async def __call__(self, *args: Any, **options: Any) -> Any:
        self._memory.apply = self._apply  # type: ignore[method-assign]
        outcome = await self._apply(*args, **options)
        self.made.set()
        await self.go_on.wait()
        return outcome


@pytest.mark.parametrize("ends", ["given back", "cancelled"])
async def test_a_renewal_under_way_takes_nobody_elses(ends: str, caplog: pytest.LogCaptureFixture) -> None:
    """Two hold some units until the same moment. One is renewed, and before the answer is there given back."""
    store, clock = FailingStore(), FakeClock()
    limiter, other = limiter_of(store, clock), limiter_of(store, clock)
    reservation, others = limiter.reserve("alice", "tokens", 10), other.reserve("alice", "tokens", 200)
    await reservation.take()
    await others.take()
    clock.advance(11)
    step = Step(store)
    renewing = asyncio.create_task(reservation.renew() if ends == "cancelled" else limiter._holds.renew_due())
    await step.made.wait()
    if ends == "cancelled":
        renewing.cancel()
        await asyncio.wait([renewing])
    releasing = asyncio.create_task(reservation.release())
    await asyncio.sleep(0)
    step.go_on.set()
    await releasing
    others.settle(150)
    await others.release()
    await asyncio.wait([renewing])
    assert await record(limiter, "tokens") == {"d20458": 150, "u260105": 150, "u2601": 150}
    assert not caplog.records, "nothing was lost"


async def test_cancelled_at_any_moment_nothing_is_left() -> None:
    """Those who take, renew and settle share two processes, and are cancelled wherever they are."""
    random = Random(1)
    for algorithm in ALGORITHMS * 15:
        store, clock = YieldingStore(), FakeClock()
        policy = Policy("export", "3 concurrent; 1000/day", algorithm=algorithm, on_unavailable="deny")
        limiters = [Limiter(store, [policy], clock=clock, denial_cache=0) for _ in range(2)]

        async def work(limiter: Limiter, used: int) -> None:
            with suppress(QuotaExceeded):
                async with limiter.reserve("alice", "export", 9) as reservation:
                    await reservation.renew()
                    reservation.settle(used)

        tasks = [asyncio.create_task(work(random.choice(limiters), random.randrange(9))) for _ in range(12)]
        while left := [task for task in tasks if not task.done()]:
            await asyncio.sleep(0)
            assert (await store.memory.read(Key("alice", "export"))).get("c", 0) <= 3
            if random.random() < 0.4:
                random.choice(left).cancel()
            if random.random() < 0.1:
                clock.advance(11)
                limiters[0]._holds._look(asyncio.get_running_loop())
        for limiter in limiters:
            await limiter._holds._tasks.drain()
        assert not {"c", "r"} & (await record(limiters[0], "export")).keys()


async def test_a_check_says_what_to_use_instead() -> None:
    limiter = limiter_of()
    with pytest.raises(SlotNeeded, match=r"async with limiter\.slot\('alice', 'export'\)"):
        await limiter.check("alice", "export")
    with pytest.raises(SlotNeeded):
        await limiter.check("alice", "other", quotas="1 concurrent")
    with pytest.raises(SlotNeeded):
        await limiter.check_all([("alice", "tokens"), ("alice", "export")])
    with pytest.raises(InvalidInput, match="has no slots"):
        await limiter.slot("alice", "tokens").take()
    with pytest.raises(InvalidCost):
        limiter.slot("alice", "export", cost=0)
    assert await record(limiter, "export") == {}
    assert (await limiter.peek("alice", "export")).remaining == 2


@pytest.mark.parametrize("what", ["slot", "reserve"])
async def test_nothing_is_held_of_a_policy_that_is_decided_with_others(what: str) -> None:
    """Or it would be had without the others."""
    store = MemoryStore()
    limiter = Limiter(store, [Policy("api", "5/day", together="org"), Policy("org", "1/day")], clock=FakeClock())
    with pytest.raises(InvalidInput, match="'api' is decided together with others, and slots and reservations are"):
        await getattr(limiter, what)("alice", "api", cost=2).take()
    assert await store.read(Key("alice", "api")) == {}


async def test_no_slot_at_all() -> None:
    slot = limiter_of().slot("alice", "other", quotas="0 concurrent")
    decision = await slot.take()
    assert (decision.allowed, decision.retry_after) == (False, None)


async def test_reset_leaves_what_somebody_holds() -> None:
    limiter = limiter_of()
    async with limiter.slot("alice", "export"):
        await limiter.reset("alice", "export")
        assert (await record(limiter, "export"))["c"] == 1
    assert "c" not in await record(limiter, "export")
    assert (await limiter.peek("alice", "export")).quotas[0].used == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dies", [False, True])
async def test_units_that_are_reserved_over_a_reset_go_back_once(algorithm: AlgorithmName, dies: bool) -> None:
    clock = FakeClock()
    limiter = Limiter(MemoryStore(), [Policy("run", "10/day", algorithm=algorithm)], clock=clock)
    await limiter.check("alice", "run", cost=3)
    reservation = limiter.reserve("alice", "run", 4)
    assert await reservation.take()
    await limiter.reset("alice", "run")
    assert (await limiter.peek("alice", "run")).remaining == 6
    assert await limiter.check("alice", "run", cost=6)
    assert not await limiter.check("alice", "run")
    if dies:
        del reservation
        clock.advance(COMES_BACK_S)
    else:
        reservation.settle(0)
        await reservation.release()
    assert await limiter.check("alice", "run", cost=3), "of the four, a bucket may have somewhat less"
    assert not await limiter.check("alice", "run", cost=2)


async def test_in_shadow_nobody_is_held_up() -> None:
    policy = Policy("export", "1 concurrent", mode="shadow")
    limiter = Limiter(MemoryStore(), [policy], clock=FakeClock())
    async with limiter.slot("alice", "export"), limiter.slot("alice", "export") as second:
        assert second.decision is not None
        assert second.decision.shadow_denied
        assert not second.is_held
        assert (await record(limiter, "export"))["c"] == 1


@pytest.mark.parametrize("answer", ["allow", "deny", "local"])
async def test_a_store_that_fails(answer: Any) -> None:
    store = FailingStore()
    policy = Policy("export", "1 concurrent", on_unavailable=answer)
    limiter = Limiter(store, [policy], clock=FakeClock())
    store.fault = failing(StoreUnavailable("gone"))
    decisions = [await limiter.slot("alice", "export").take() for _ in range(2)]
    assert [decision.allowed for decision in decisions] == {
        "allow": [True, True],
        "deny": [False, False],
        "local": [True, False],
    }[answer]


async def test_a_store_that_fails_in_between_is_none_of_the_apps_business(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore()
    limiter = limiter_of(store, deadline=0.5)
    async with limiter.slot("alice", "export"):
        store.fault = hang
    assert limiter.stats.lost["unreturned"] == 1
    assert "comes back by itself" in caplog.text
    assert (await store.memory.read(Key("alice", "export")))["c"] == 1


async def test_answers_of_renewals_that_are_lost() -> None:
    """Whether it was renewed or not, one slot is given back, and nobody else's."""
    for applied in (True, False):
        store, clock = CountingStore(), FakeClock()
        limiter, other = limiter_of(store, clock), limiter_of(store, clock)
        slot = limiter.slot("alice", "export")
        await slot.take()
        clock.advance(10)
        memory_apply = store.memory.apply

        async def lose(*args: Any, applied: bool = applied, apply: Any = memory_apply, **options: Any) -> Any:
            if applied:
                await apply(*args, **options)
            raise StoreUnavailable("the answer is lost")

        store.memory.apply = lose  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            await slot.renew()
        store.memory.apply = memory_apply  # type: ignore[method-assign]
        async with other.slot("alice", "export"):
            await slot.release()
            assert (await record(limiter, "export"))["c"] == 1
        assert "c" not in await record(limiter, "export")


async def test_after_the_limiter_is_closed() -> None:
    limiter = limiter_of()
    slot = limiter.slot("alice", "export")
    await slot.take()
    await limiter.close()
    with pytest.raises(LimiterClosed):
        await limiter.slot("alice", "export").take()
    await slot.release()  # it comes back by itself
    assert limiter.stats.lost["unreturned"] == 1


# Reservations.


async def test_what_was_not_used_goes_back() -> None:
    store = CountingStore()
    limiter = limiter_of(store)
    async with limiter.reserve("alice", "tokens", 1200) as reservation:
        assert store.taken() == {"apply": 1}
        assert (await limiter.peek("alice", "tokens")).remaining == 800
        assert not await limiter.reserve("alice", "tokens", 801).take()
        store.taken()
        reservation.settle(873)
    assert store.taken() == {"apply": 1}
    assert (await limiter.peek("alice", "tokens")).remaining == 2000 - 873
    assert list((await limiter.totals("alice", actions=["tokens"]))["tokens"].values()) == [873]


async def test_leaving_by_an_exception_gives_all_back_and_without_settling_nothing() -> None:
    limiter = limiter_of()
    with pytest.raises(RuntimeError):
        async with limiter.reserve("alice", "tokens", 1200):
            raise RuntimeError
    assert (await limiter.peek("alice", "tokens")).remaining == 2000
    with pytest.raises(RuntimeError):
        await _settle_and_fail(limiter.reserve("alice", "tokens", 1200))
    assert (await limiter.peek("alice", "tokens")).remaining == 1500
    async with limiter.reserve("alice", "tokens", 1200):
        pass
    assert (await limiter.peek("alice", "tokens")).remaining == 300


async def _settle_and_fail(reservation: Reservation) -> None:
    async with reservation:
        reservation.settle(500)
        raise RuntimeError


async def test_checks_of_several_keys_find_what_has_come_back() -> None:
    clock, store = FakeClock(), MemoryStore()
    dead, other = limiter_of(store, clock), limiter_of(store, clock)
    await dead.reserve("alice", "tokens", 2000).take()
    clock.advance(COMES_BACK_S)
    assert (await other.check_all([("alice", "tokens", 1900), ("bob", "tokens")])).allowed


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_what_a_process_has_died_with_comes_back_to_whoever_asks(algorithm: AlgorithmName) -> None:
    clock, store = FakeClock(), MemoryStore()
    policies = [Policy("tokens", "1000/day", algorithm=algorithm), Policy("other", "5/day")]
    dead, other = (Limiter(store, policies, clock=clock, denial_cache=0) for _ in range(2))
    assert await dead.reserve("alice", "tokens", 900).take()
    clock.advance(30)
    assert not await other.check("alice", "tokens", cost=900), "not before its time is over"
    clock.advance(COMES_BACK_S - 30)
    assert await other.check("alice", "tokens", cost=950)
    totals = await other.totals("alice", actions=["tokens"])
    assert list(totals["tokens"].values()) == [950]


async def test_what_was_taken_by_other_quotas_goes_back_to_those() -> None:
    """A process that knows of other windows does not give back to them."""
    clock, store = FakeClock(), MemoryStore()
    dead, other = limiter_of(store, clock), limiter_of(store, clock)
    await dead.reserve("alice", "api", 5, quotas="10/day").take()
    await other.check("alice", "api", cost=6, quotas="8/hour")
    clock.advance(COMES_BACK_S)
    assert not await other.check("alice", "api", cost=3, quotas="8/hour")
    assert await other.check("alice", "api", cost=2, quotas="8/hour")
    assert (await other.peek("alice", "api", quotas="10/day")).remaining == 10


async def test_settlements_that_cannot_be() -> None:
    clock, store = FakeClock(), MemoryStore()
    limiter, other = limiter_of(store, clock), limiter_of(store, clock)
    with pytest.raises(NotHeld):
        limiter.reserve("alice", "tokens", 5).settle(1)
    with pytest.raises(QuotaExceeded) as never:
        async with limiter.reserve("alice", "tokens", 2001):
            pytest.fail("it can never fit")
    assert (never.value.decision.reason, never.value.decision.retry_after) == ("too_large", None)
    assert await record(limiter, "tokens") == {}
    async with limiter.reserve("alice", "tokens", 1000) as reservation:
        with pytest.raises(InvalidCost, match=r"charge the rest: limiter\.charge\(…, 300\)"):
            reservation.settle(1300)
        with pytest.raises(InvalidCost):
            reservation.settle(-1)
        reservation.settle(10)
        with pytest.raises(NotHeld, match="settled at 10 already"):
            reservation.settle(10)
    with pytest.raises(NotHeld):
        await reservation.release()
    late = limiter.reserve("alice", "tokens", 1000)
    await late.take()
    clock.advance(COMES_BACK_S)
    assert await other.check("alice", "tokens", cost=1990)
    late.settle(300)
    with pytest.raises(HoldExpired, match=r"limiter\.charge\(…, 300\)"):
        await late.release()
    assert (await other.peek("alice", "tokens")).remaining == 0, "nothing spent, nothing given back"


async def test_a_decision_that_was_refunded_is_not_given_back_again() -> None:
    """Neither before the reservation has ended nor after: what others have taken stays theirs."""
    limiter = limiter_of()
    await limiter.check("alice", "tokens", cost=300)
    reservation = limiter.reserve("alice", "tokens", 200)
    await limiter.refund(await reservation.take(), cost=150)
    await reservation.release()
    assert (await limiter.peek("alice", "tokens")).used == 300
    async with limiter.reserve("alice", "tokens", 200) as reservation:
        reservation.settle(50)
    assert reservation.decision is not None
    assert reservation.decision.refunded == 150
    for _ in range(2):
        await limiter.refund(reservation.decision)
        assert (await limiter.peek("alice", "tokens")).used == 300


@pytest.mark.parametrize("holder", ["dies", "is let go of", "closes", "settles late", "renews late"])
async def test_what_is_refunded_of_a_reservation_does_not_come_back_once_more(holder: str) -> None:
    """However its holder ends, what others have spent meanwhile stays spent."""
    clock, store = FakeClock(), MemoryStore()
    limiter, other = limiter_of(store, clock), limiter_of(store, clock)
    reservation = limiter.reserve("alice", "tokens", 1000)
    decision = await reservation.take()
    await limiter.refund(decision, cost=400)
    assert await other.check("alice", "tokens", cost=1400)
    assert not await other.check("alice", "tokens")
    if holder == "is let go of":
        del reservation
    elif holder == "closes":
        await limiter.close()
        await limiter.open()
    clock.advance(COMES_BACK_S / 2)
    if holder in ("is let go of", "closes"):
        await limiter._holds.renew_due()
    clock.advance(COMES_BACK_S / 2)
    assert await other.check("alice", "tokens", cost=600)
    if holder == "settles late":
        reservation.settle(1)
        with pytest.raises(HoldExpired):
            await reservation.release()
    elif holder == "renews late":
        assert not await reservation.renew()
    await limiter.refund(decision)
    assert (await other.peek("alice", "tokens")).used == 2000
    assert (decision.spent, decision.refunded) == (1000, 1000)


async def test_a_reservation_that_is_refunded_whole_ends_without_an_error() -> None:
    limiter = limiter_of()
    for settled in (None, 30):
        async with limiter.reserve("alice", "export", 50) as reservation:
            assert reservation.decision is not None
            await limiter.refund(reservation.decision)
            assert reservation.is_held, "the slot is"
            if settled is not None:
                reservation.settle(settled)
        assert {field[0] for field in await record(limiter, "export")} == set()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_a_refund_without_a_decision_leaves_what_is_reserved(algorithm: AlgorithmName) -> None:
    clock = FakeClock()
    limiter = Limiter(MemoryStore(), [Policy("tokens", "2000/day", algorithm=algorithm)], clock=clock)
    await limiter.check("alice", "tokens", cost=100)
    reservation = limiter.reserve("alice", "tokens", 1000)
    assert await reservation.take()
    await limiter.refund("alice", "tokens", 1000)
    assert (await limiter.peek("alice", "tokens")).used == 1000
    spent = await limiter.check("alice", "tokens", cost=500)
    await limiter.reset("alice", "tokens")
    await limiter.refund(spent)
    assert (await limiter.peek("alice", "tokens")).used == 1000
    await limiter.check("alice", "tokens", cost=1000)
    del reservation
    clock.advance(COMES_BACK_S)
    assert 1000 <= (await limiter.peek("alice", "tokens", cost=2000)).used <= 1001, "a bucket has flowed meanwhile"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
async def test_nor_does_one_by_a_process_that_has_not_heard_of_it(algorithm: AlgorithmName) -> None:
    clock, store = FakeClock(), MemoryStore()
    mine, theirs = (Limiter(store, [Policy("tokens", "2000/day", algorithm=algorithm)], clock=clock) for _ in range(2))
    ours = mine.reserve("alice", "tokens", 10)
    decision = await ours.take()
    clock.advance(10)
    other = theirs.reserve("alice", "tokens", 10)
    assert await other.take()
    await mine.refund(decision)
    await mine.refund("alice", "tokens", 10)
    assert (await theirs.peek("alice", "tokens")).used == 10


async def test_nor_by_one_that_has_heard_of_as_much_in_another_window() -> None:
    clock, store = FakeClock(), MemoryStore()
    mine, theirs = (Limiter(store, [Policy("tokens", "2000/minute", hold=30)], clock=clock) for _ in range(2))
    await mine.check("alice", "tokens", cost=20)
    clock.advance(45)
    former, latter = (theirs.reserve("alice", "tokens", 10) for _ in range(2))
    assert await former.take()
    await mine.peek("alice", "tokens")
    clock.advance(20)
    assert await latter.take()
    former.settle(0)
    await former.release()
    await mine.refund("alice", "tokens", 10)
    assert (await theirs.peek("alice", "tokens")).used == 10


@pytest.mark.parametrize("applied", [True, False])
@pytest.mark.parametrize("call", ["refund", "release"])
async def test_a_refund_of_which_the_answer_is_lost_is_none_of_what_comes_back_by_itself(
    call: str, applied: bool
) -> None:
    """Nor is it taken from another's reservation, which ends at the same second."""
    store, clock = CountingStore(), FakeClock()
    limiter, other = limiter_of(store, clock), limiter_of(store, clock)
    reservation, neighbour = (one.reserve("alice", "tokens", 1000) for one in (limiter, other))
    decision = await reservation.take()
    assert await neighbour.take()
    apply = store.memory.apply

    async def lose(*args: Any, **options: Any) -> Any:
        if applied:
            await apply(*args, **options)
        raise StoreUnavailable("the answer is lost")

    store.memory.apply = lose  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await (limiter.refund(decision, cost=1000) if call == "refund" else reservation.release())
    store.memory.apply = apply  # type: ignore[method-assign]
    if call == "refund":
        await reservation.release()
    left = await record(limiter, "tokens")
    assert left["r"] == left["d20458"] == (1000 if applied else 2000)
    await neighbour.release()
    clock.advance(COMES_BACK_S)
    assert await other.check("alice", "tokens", cost=2000)
    await limiter.refund(decision)
    assert (await other.peek("alice", "tokens")).used == 2000


async def test_a_refund_that_the_store_refuses_leaves_the_reservation_as_it_is() -> None:
    store = FailingStore()
    limiter = limiter_of(store)
    async with limiter.reserve("alice", "tokens", 1000) as reservation:
        assert reservation.decision is not None
        store.fault = failing(StoreThrottled("too much"))
        with pytest.raises(StoreThrottled):
            await limiter.refund(reservation.decision, cost=400)
        store.fault = None
        assert reservation.is_held
        await limiter.refund(reservation.decision, cost=400)
        reservation.settle(100)
    assert (await record(limiter, "tokens"))["d20458"] == 100


async def test_what_is_reserved_in_this_process_alone_is_refunded_once() -> None:
    store = FailingStore()
    store.fault = failing(StoreUnavailable("down"))
    limiter = Limiter(store, [Policy("tokens", "2000/day", on_unavailable="local")], clock=FakeClock())
    async with limiter.reserve("alice", "tokens", 1000) as reservation:
        assert reservation.decision is not None
        assert await limiter.check("alice", "tokens", cost=500)
        await limiter.refund(reservation.decision, cost=400)
        reservation.settle(100)
    assert (await limiter.peek("alice", "tokens")).used == 600
    for _ in range(2):
        await limiter.refund(reservation.decision)
        assert (await limiter.peek("alice", "tokens")).used == 500


async def test_a_refund_while_the_reservation_is_settled_gives_back_what_was_used() -> None:
    limiter = limiter_of(YieldingStore())
    reservation = limiter.reserve("alice", "tokens", 1000)
    decision = await reservation.take()
    reservation.settle(300)
    await asyncio.gather(reservation.release(), limiter.refund(decision), limiter.refund(decision))
    assert (await limiter.peek("alice", "tokens")).used == 0
    assert decision.refunded == 1000
    assert not any((await limiter.store.read(Key("alice", "tokens"))).values())


@pytest.mark.parametrize("end", ["release", "leave", "cancel"])
async def test_a_store_that_fails_at_the_end_is_told_once(end: str, caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore()
    limiter = limiter_of(store)
    reservation = limiter.reserve("alice", "tokens", 5)
    await reservation.take()
    store.fault = failing(StoreUnavailable("down"))
    if end == "release":
        with pytest.raises(StoreUnavailable):
            await reservation.release()
    elif end == "leave":
        await reservation.__aexit__(ValueError, ValueError(), None)
    else:
        releasing = asyncio.create_task(reservation.release())
        await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.wait([releasing])
        await limiter._holds._tasks.drain()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert limiter.stats.lost["unreturned"] == 5


# Threads.


def test_the_same_for_threads() -> None:
    clock = FakeClock()
    limiter = sync.Limiter(sync.open_store("memory://"), [EXPORT, TOKENS], clock=clock)
    with limiter.slot("alice", "export") as slot, limiter.slot("alice", "export"):
        assert slot.is_held
        with pytest.raises(QuotaExceeded), limiter.slot("alice", "export"):
            pytest.fail("there is no third one")
        assert slot.renew()
    with limiter.slot("alice", "export"):
        pass
    with limiter.reserve("alice", "tokens", 1200) as reservation:
        assert reservation.decision is not None
        limiter.refund(reservation.decision, cost=500)
        assert limiter.peek("alice", "tokens").used == 700
        reservation.settle(200)
    assert (reservation.units, reservation.used) == (1200, 200)
    assert limiter.peek("alice", "tokens").remaining == 1800
    with pytest.raises(NotHeld):
        slot.release()


# Random histories.

QUOTAS = ["2 concurrent", "3 concurrent; 9/minute", "6/minute", "2 concurrent; 5/10 seconds; 20/hour"]


async def run(holders: Holders, history: list[tuple[str, int, int, float]]) -> list[Any]:
    return [await holders.step(*step) for step in history]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(quotas=st.sampled_from(QUOTAS), reserves=st.booleans(), history=steps)
@settings(max_examples=60)
def test_whatever_happens_never_over_and_all_of_it_back_in_time(
    algorithm: AlgorithmName, quotas: str, reserves: bool, history: list[tuple[str, int, int, float]]
) -> None:
    async def check() -> None:
        holders = Holders(MemoryStore(), quotas, algorithm, reserves or "concurrent" not in quotas)
        await run(holders, history)
        left = await holders.end()
        assert not left.get("c"), left
        assert not left.get("r"), left

    asyncio.run(check())


@given(
    quotas=st.sampled_from(QUOTAS),
    algorithm=st.sampled_from(ALGORITHMS),
    reserves=st.booleans(),
    history=steps,
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_same_on_dynamodb(
    table: DynamoDBStore, quotas: str, algorithm: AlgorithmName, reserves: bool, history: list[Any]
) -> None:
    async def check() -> None:
        reserving = reserves or "concurrent" not in quotas
        in_memory = Holders(MemoryStore(), quotas, algorithm, reserving)
        async with table:
            in_dynamodb = Holders(table, quotas, algorithm, reserving, user=in_memory.user)
            assert await run(in_dynamodb, history) == await run(in_memory, history)
            assert await in_dynamodb.end() == await in_memory.end()

    asyncio.run(check())
