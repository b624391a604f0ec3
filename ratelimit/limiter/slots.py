"""`Slot` and `Reservation`, as an app holds them, and `Holds`, which renews all that a limiter's app holds. `Holding`
takes, renews and gives back on one store, each by one conditional write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

import msgspec
from msgspec.structs import force_setattr

from ratelimit.algorithms import Taken
from ratelimit.algorithms.concurrency import Held
from ratelimit.algorithms.fields import RESERVED, HeldField, bucket_limit_field, held_fields
from ratelimit.blocking import Deferred, Signal, is_blocking, running_loop, sleep
from ratelimit.clock import SECOND, Clock
from ratelimit.decision import Decision
from ratelimit.errors import (
    HoldExpired,
    InvalidCost,
    LimiterClosed,
    NotHeld,
    QuotaExceeded,
    StoreThrottled,
    StoreUnavailable,
)
from ratelimit.limiter.checker import Checker
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import ATTEMPTS, CONTENDED, Counters, admit, changing, decide
from ratelimit.limiter.fallback import Fallback
from ratelimit.limiter.record_cache import NEVER, CachedRecord
from ratelimit.limiter.waiting import WaitQueues, check_timeout
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.quota import UNLIMITED, Quota
from ratelimit.store.base import Add, Drop, Expect, Record, Write
from ratelimit.tasks import Tasks

# For at most so many microseconds the refusal of a slot is repeated from memory: one may come back at any moment.
REFUSAL_CACHE_US: Final = SECOND // 10


@dataclass(slots=True, eq=False)
class Hold:
    """One slot, and the `units` reserved with it: none of those where what is taken is spent for good."""

    compiled: CompiledPolicy
    key: Key
    units: int
    due: int = 0
    """The epoch second at which it is to be renewed."""
    forgotten: bool = False
    """Whether it has been given back, or nobody is left who could: it is not renewed any more."""
    decision: Decision | None = None
    holding: Holding | None = None
    held: Held | None = None
    """None where nothing is held: not yet, or not any more."""
    later: Held | None = None
    """What it may have been renewed to: that is under way, or its answer was lost."""
    writing: Signal | None = None
    """Set when the write of it that is under way has ended."""

    async def begin(self) -> None:
        """Wait for the write of it that is under way: or the next would take another one's, where this one's is no
        more. Call `end` when this one has ended."""
        while self.writing is not None:
            await self.writing.wait()
        self.writing = Signal()

    def end(self) -> None:
        """Let the next write begin."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.set()

    def lose(self) -> None:
        """Take note that it comes back by itself, if it has not yet: what is left of its units is not refunded too."""
        self.held = None
        if self.units and self.decision is not None:
            force_setattr(self.decision, "refunded", self.decision.spent)


class Holding:
    """Takes and gives back on the store of its `counters`. Every method may raise `StoreUnavailable`: then it is not
    known whether it was done, and nothing is done a second time. What was taken comes back when its time is over."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        counters.sweep = self.sweep
        self.on_expired: Callable[[Key, int, CachedRecord], None] | None = None
        """Told of a record in which somebody's time is over: to call `sweep` behind the answer."""

    async def take(self, hold: Hold, now: int, cost: int) -> Decision:
        """Spend `cost` and take a slot if there is room for both, or nothing at all: one round trip.

        Three where somebody has died with what is wanted here.
        """
        compiled, key = hold.compiled, hold.key
        cached = self._counters.cached(key)
        if not compiled.is_concurrent or 0 <= now - cached.refused_at < REFUSAL_CACHE_US:
            refusal = self._counters.known_refusal(compiled, key, now, cost, cached)
            if refusal is not None:
                return _named(refusal)
        held = compiled.held(now, hold.units)
        for one in held.fields:  # of what comes and goes, the store knows better
            cached.record.pop(one.total, None)
        is_true = False
        for attempt in range(ATTEMPTS):
            write = compiled.hold(now, cost, cached, held, attempt >= CONTENDED)
            if write is None and not is_true:
                cached.learn_refusal(await self._counters.store.read(key), now)
                is_true = True
            elif write is None:
                if not await self.sweep(key, now, cached):
                    return _named(decide(compiled, key, now, cost, cached.record))
            elif await self._apply(key, write, now, cached):
                hold.holding, hold.held = self, held if held.fields else None
                hold.decision = admit(compiled, key, now, cost, cached.record)
                self._counters.announce(compiled, key, now, cost, cached.record)
                if self.on_expired is not None and _expired(cached.record, now):
                    self.on_expired(key, now, cached)
                return hold.decision
            else:
                is_true = True
        raise changing(key)

    async def give_back(self, hold: Hold, now: int, used: int) -> bool:
        """Give back the slot, and of the reserved units what was neither used nor refunded. Return whether they were
        still held."""
        await hold.begin()
        try:
            held, decision = hold.held, hold.decision
            if held is None or decision is None:
                return False
            back = max(0, hold.units - used - decision.refunded)
            return await self._take_out(hold, decision, held, now, back, None)
        finally:
            hold.end()

    async def refund(self, hold: Hold, now: int, cost: int) -> bool:
        """Give back so many of the units that are reserved; the others, and the slot, stay held. Return whether they
        were still held."""
        await hold.begin()
        try:
            held, decision = hold.held, hold.decision
            if held is None or decision is None:
                return False
            back = min(cost, hold.units - decision.refunded)
            return await self._take_out(hold, decision, held, now, back, back)
        except StoreThrottled:  # which is the store's word that nothing was written
            raise
        except StoreUnavailable:
            hold.lose()
            raise
        finally:
            hold.end()

    async def _take_out(
        self, hold: Hold, decision: Decision, held: Held, now: int, back: int, units: int | None
    ) -> bool:
        """Give back so many units, and hold so many of the reserved ones no longer: None stands for all, and the slot.
        Return whether they were still held."""
        cached = self._counters.cached(hold.key)
        taken = Taken(decision.at_us, hold.units - decision.refunded)
        taken.cached = cached.record
        record: Record | None = None
        positions = [state.position for state in decision.quotas]
        for attempt in range(ATTEMPTS):
            known = () if attempt >= CONTENDED else positions
            part, rest = held.split(units)
            write = hold.compiled.refund(now, back, record, taken, known, cached, part.give_back())
            outcome = None if write is None else await self._counters.store.apply(hold.key, write, now=now)
            if outcome is None or outcome.applied:
                if outcome is not None:
                    cached.record.update(outcome.record)
                    cached.refused_at = NEVER
                hold.held = rest
                force_setattr(decision, "refunded", decision.refunded + back)
                return True
            record = outcome.record
            cached.learn(record, now)
            if not part.is_in(record):
                if hold.later is None or now >= held.end * SECOND:
                    hold.lose()
                    return False
                held, hold.later = hold.later, None  # nobody else takes it out before its end
        raise changing(hold.key)

    async def renew(self, hold: Hold, now: int) -> bool:
        """Hold it a while longer. Return whether it is still held: what was given back when its time was over is not.

        Where that is not known, it is held as long as before.
        """
        await hold.begin()
        try:
            held = hold.held
            if held is not None and held.fields and not hold.forgotten:
                later = hold.compiled.renewed(now, held)
                if later.end > held.end and not await self._move(hold, held, later, now):
                    hold.lose()
        finally:
            hold.end()
        return hold.held is not None

    async def _move(self, hold: Hold, held: Held, later: Held, now: int) -> bool:
        """Hold it until later. Return whether it is still held."""
        cached = self._counters.cached(hold.key)
        renewed, hold.later = hold.later, later
        write = hold.compiled.refund(now, 0, None, Taken(now, 0), (), cached, held.move_to(later))
        assert write is not None
        write = Write(write.ops, write.expires_at, counts_until=later.end)
        outcome = await self._counters.store.apply(hold.key, write, now=now)
        hold.later = None
        if outcome.applied:
            cached.record.update(outcome.record)
            hold.held = later
            return True
        cached.learn(outcome.record, now)
        hold.held = renewed if now < held.end * SECOND else None
        return hold.held is not None

    async def sweep(self, key: Key, now: int, cached: CachedRecord) -> bool:
        """Give back what nobody has given back in time. Return whether there was any."""
        expired = _expired(cached.record, now)
        for one in expired:
            await self._sweep(key, now, one, cached)
        return bool(expired)

    async def _sweep(self, key: Key, now: int, field: HeldField, cached: CachedRecord) -> None:
        record: Record | None = None
        for _ in range(ATTEMPTS):
            units = (cached.record if record is None else record).get(field.name, 0)
            if units <= 0:
                return
            taken = Taken(field.start * SECOND, units)
            taken.cached = cached.record
            taken_back = (
                Expect(field.name, low=units, high=units),
                Drop(field.name),
                Add(field.total, -units),
            )
            compiled = _taken_from(key, field, cached.record)
            back = units if field.total == RESERVED else 0
            write = compiled.refund(now, back, record, taken, (), cached, taken_back)
            assert write is not None
            outcome = await self._counters.store.apply(key, write, now=now)
            if outcome.applied:
                cached.record.update(outcome.record)
                cached.record.pop(field.name, None)
                cached.refused_at = NEVER
                return
            record = outcome.record
            cached.learn(record, now)

    async def _apply(self, key: Key, write: Write, now: int, cached: CachedRecord) -> bool:
        outcome = await self._counters.store.apply(key, write, now=now)
        if outcome.applied:
            cached.learn(outcome.record, now)
        else:
            cached.learn_refusal(outcome.record, now)
        return outcome.applied


def _expired(record: Record, now: int) -> list[HeldField]:
    return [one for one in held_fields(record) if one.end * SECOND < now and record[one.name] > 0]


def _named(decision: Decision) -> Decision:
    """Return the refusal, and say so where it was for a slot alone."""
    full = [state.quota.is_concurrent for state in decision.quotas if state.retry_after]
    if decision.reason == "quota" and full and all(full):
        return msgspec.structs.replace(decision, reason="concurrency")
    return decision


def _taken_from(key: Key, field: HeldField, record: Record) -> CompiledPolicy:
    """Return the policy of windows from which units were reserved, whatever the action's quotas are by now."""
    quotas = tuple([Quota(record.get(bucket_limit_field(one), 1) or 1, one) for one in field.windows])
    algorithm: AlgorithmName = "gcra" if field.buckets else "fixed_window"
    return CompiledPolicy(Policy(key.action, quotas or UNLIMITED, algorithm=algorithm))


T = TypeVar("T")

MAX_RENEWALS: Final = 256
"""Renewals under way at the same time; the others wait for the next look."""
_LOOK_INTERVAL_S: Final = 0.5
_RENEWALS_PER_HOLD: Final = 3

logger = logging.getLogger("ratelimit")

_Failure: TypeAlias = StoreUnavailable | LimiterClosed


class Holds:
    """What a limiter's app holds at the moment: in the store, or in this process where that cannot be asked."""

    def __init__(
        self,
        checker: Checker,
        counters: Counters,
        fallback: Fallback,
        clock: Clock,
        tasks: Tasks | Deferred,
        run_aside: Callable[[Coroutine[Any, Any, None]], object] | None,
        waits: WaitQueues,
    ) -> None:
        self._checker = checker
        self._counters = counters
        self._fallback = fallback
        self._clock = clock
        self._tasks = tasks
        self._run_aside = run_aside
        """Runs what goes on without end beside threads; None where there is an event loop."""
        self._waits = waits
        self._main, self._local = Holding(counters), Holding(fallback.counters)
        self._main.on_expired = self._sweep_in_background
        self._looks: object = None
        """The event loop, or just something, in which looks are taken; None while there is nothing to renew."""
        self._held: dict[int, Hold] = {}
        """What is held, and so has to be renewed, by the identity of its decision."""

    async def take(self, hold: Hold, cost: int) -> Decision:
        """Take it, and renew it from now on. Whoever is cancelled meanwhile leaves nothing taken behind."""
        if is_blocking():
            decision = await self._decide(hold, cost)
        else:
            taking = asyncio.ensure_future(self._decide(hold, cost))
            try:
                await asyncio.wait([taking])
            except asyncio.CancelledError:
                self._tasks.start(self._undo(taking, hold))
                raise
            decision = taking.result()
        if hold.held is not None:
            hold.decision = decision
            self._keep(hold, decision)
        return decision

    async def wait(self, hold: Hold, cost: int, timeout: float) -> Decision:
        """Take it as soon as there is room, within `timeout` seconds, in the order of those who wait for that."""

        async def undo(_: Decision) -> None:
            await self._try_to_give_back(hold, 0)

        take = partial(self.take, hold, cost)
        most = hold.compiled.max_cost
        if most is not None and cost > most:
            return await take()
        try:
            return await self._waits.wait(hold.key, take, undo, cost=cost, timeout=timeout)
        except QuotaExceeded as refused:
            return refused.decision

    async def give_back(self, hold: Hold, used: int) -> bool:
        """Give it back. Return whether it was still held. Raises `StoreUnavailable` and `LimiterClosed`: it comes back
        by itself then, when its time is over."""
        was_held = await self._see_through(self._try_to_give_back(hold, used))
        if isinstance(was_held, Exception):
            raise was_held
        return was_held

    async def give_back_quietly(self, hold: Hold, used: int) -> bool:
        """Give it back, without an error. Return False where it was not held any more."""
        return await self._see_through(self._try_to_give_back(hold, used)) is not False

    async def refund(self, decision: Decision, cost: int) -> bool:
        """Give back so many of the units that are reserved by it. Return False where it holds none, or not any more.
        Raises `StoreUnavailable`: what is left of them comes back by itself then, unless nothing was written."""
        hold = self._held.get(id(decision))
        if hold is None or not hold.units:
            return False
        was_held = await self._see_through(self._try_to_refund(hold, cost))
        if isinstance(was_held, Exception):
            raise was_held
        return was_held

    async def renew(self, hold: Hold) -> bool:
        is_held = await self._see_through(self._try_to_renew(hold))
        if isinstance(is_held, Exception):
            raise is_held
        return is_held

    async def renew_due(self) -> None:
        for hold in self._due():
            await self._renew(hold)

    def forget(self) -> None:
        """Leave what is held to the process that this one is a copy of, which gives it back."""
        for hold in self._held.values():
            hold.lose()
            hold.decision = None
        self._held.clear()
        self._looks = None
        self._tasks.forget(None)

    async def close(self) -> None:
        """Renew no more: what is held comes back by itself, unless it is given back in time."""
        for hold in self._held.values():
            hold.forgotten = True
        self._looks = None
        await self._tasks.drain()

    async def _decide(self, hold: Hold, cost: int) -> Decision:
        compiled, key, now = hold.compiled, hold.key, self._clock.now()
        decision: Decision | None = None
        try:
            with self._checker.call():
                if compiled.max_cost is not None and cost > compiled.max_cost:
                    decision = await self._checker.refuse(compiled, key, now, cost)
                else:
                    decision = await self._main.take(hold, now, cost)
        except StoreUnavailable:
            decision = None
        if decision is None:
            take = lambda *_: self._local.take(hold, now, cost)  # noqa: E731
            decision = await self._fallback.answer(take, compiled, key, now, cost)
        return self._checker.tell(compiled, decision, now)

    def _sweep_in_background(self, key: Key, now: int, cached: CachedRecord) -> None:
        if not self._checker.background.tasks.is_full:
            self._checker.background.start(self._sweep(key, now, cached))

    async def _sweep(self, key: Key, now: int, cached: CachedRecord) -> None:
        with self._checker.call():
            await self._main.sweep(key, now, cached)
        self._waits.ask_now(key)

    async def _see_through(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end, also where whoever waits for that is cancelled."""
        if isinstance(self._tasks, Deferred):
            return await work
        task = self._tasks.start(work)
        await asyncio.wait([task])
        return task.result()

    async def _undo(self, taking: asyncio.Future[Decision], hold: Hold) -> None:
        await asyncio.wait([taking])
        if not taking.cancelled() and taking.exception() is None and hold.held is not None:
            await self._try_to_give_back(hold, 0)

    async def _try_to_give_back(self, hold: Hold, used: int) -> bool | _Failure:
        """Give it back; note and return the error where that is not known to be done."""
        hold.forgotten = True
        try:
            was_held = await self._give_back(hold, used)
        except (StoreUnavailable, LimiterClosed) as error:
            hold.lose()
            self._checker.stats.lost["unreturned"] += max(1, hold.units - used)
            logger.warning("a slot or reservation of %r comes back by itself: %s", hold.key.action, error)
            return error
        finally:
            self._held.pop(id(hold.decision), None)
        self._waits.ask_now(hold.key)
        return was_held

    async def _give_back(self, hold: Hold, used: int) -> bool:
        if hold.holding is None:
            return False
        with self._context(hold.holding):
            return await hold.holding.give_back(hold, self._clock.now(), used)

    async def _try_to_refund(self, hold: Hold, cost: int) -> bool | _Failure:
        if hold.holding is None:
            return False
        try:
            with self._context(hold.holding):
                was_held = await hold.holding.refund(hold, self._clock.now(), cost)
        except (StoreUnavailable, LimiterClosed) as error:
            return error
        self._waits.ask_now(hold.key)
        return was_held

    async def _try_to_renew(self, hold: Hold) -> bool | _Failure:
        if hold.holding is None:
            return False
        try:
            with self._context(hold.holding):
                return await hold.holding.renew(hold, self._clock.now())
        except (StoreUnavailable, LimiterClosed) as error:
            return error

    def _context(self, holding: Holding) -> AbstractContextManager[object]:
        return self._checker.call() if holding is self._main else nullcontext()

    def _keep(self, hold: Hold, decision: Decision) -> None:
        self._renew_later(hold)
        self._held[id(decision)] = hold
        loop = running_loop()
        if loop is not None and self._looks is not loop:
            self._looks = loop
            loop.call_later(_LOOK_INTERVAL_S, self._look, loop)
        elif loop is None and self._looks is None and self._run_aside is not None:
            self._looks = self
            self._run_aside(self._look_without_loop())

    def _renew_later(self, hold: Hold) -> None:
        hold.due = self._clock.now() // SECOND + hold.compiled.policy.hold // _RENEWALS_PER_HOLD

    def _due(self) -> list[Hold]:
        """Return what is to be renewed by now. Let go of what nobody can give back any more: of units once their time
        is over, as they may be refunded until then."""
        now = self._clock.now() // SECOND
        for place, hold in list(self._held.items()):
            if hold.forgotten and not hold.units:
                del self._held[place]
            elif hold.forgotten and hold.held is not None and hold.held.end < now:
                hold.lose()
                del self._held[place]
        return [hold for hold in self._held.values() if hold.due <= now and not hold.forgotten]

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._looks is not loop:
            return
        for hold in self._due():
            if self._tasks.is_full:
                break
            self._renew_later(hold)
            self._tasks.start(self._renew(hold))
        if self._held:
            loop.call_later(_LOOK_INTERVAL_S, self._look, loop)
        else:
            self._looks = None

    async def _look_without_loop(self) -> None:
        while self._held and self._looks is self:
            await sleep(_LOOK_INTERVAL_S)
            await self.renew_due()
        self._looks = None

    async def _renew(self, hold: Hold) -> None:
        is_held = await self._try_to_renew(hold)
        if isinstance(is_held, StoreUnavailable):  # it is held as long as before
            is_held = hold.held is not None and self._clock.now() < hold.held.end * SECOND
        if is_held or hold.forgotten:
            self._renew_later(hold)
        else:
            self._held.pop(id(hold.decision), None)
            logger.warning("a slot or reservation of %r was not renewed in time, and is back", hold.key.action)


class Slot:
    """One of those that a policy's `10 concurrent` has, and what its other quotas take. Made by `limiter.slot`.

        async with limiter.slot("alice", "export") as slot:

    raises `QuotaExceeded` where there is none. Or take it yourself, and see to it that it is given back:

        slot = limiter.slot("alice", "export")
        if await slot.take():
            try: ...
            finally: await slot.release()
    """

    _what = "slot"
    _call = "slot"

    def __init__(self, holds: Holds, hold: Callable[[], Awaitable[Hold]], cost: int, timeout: float | None) -> None:
        if timeout is not None:
            check_timeout(timeout)
        self._holds = holds
        self._new_hold = hold
        self._cost = cost
        self._timeout = timeout
        self._hold: Hold | None = None
        self._is_asked_for = False
        self.decision: Decision | None = None
        """What was decided; None before it was asked for."""

    @property
    def is_held(self) -> bool:
        """Return whether it is held: not where it was let pass unasked, is given back, or was not renewed in time."""
        return self._hold is not None and self._hold.held is not None

    async def take(self) -> Decision:
        """Take it if there is room, or as soon as there is, within its `timeout`. Raises what `limiter.check` raises,
        and `NotHeld` where it was taken before."""
        if self._is_asked_for:
            raise NotHeld(f"this {self._what} was asked for already; make another: limiter.{self._call}(…)")
        self._is_asked_for = True
        try:
            hold = await self._new_hold()
            if self._timeout is None:
                self.decision = await self._holds.take(hold, self._cost)
            else:
                self.decision = await self._holds.wait(hold, self._cost, self._timeout)
        except BaseException:
            self._is_asked_for = False
            raise
        if self.decision.allowed:
            self._hold = hold
        return self.decision

    async def release(self) -> None:
        """Give it back: once, or `NotHeld` is raised. Raises nothing for a store that fails: then it comes back by
        itself when its time is over."""
        await self._holds.give_back_quietly(self._pop(), 0)

    async def renew(self) -> bool:
        """Hold it a while longer, which goes on by itself all the while. Return whether it is still held.

        Raises `StoreUnavailable`."""
        return self._hold is not None and await self._holds.renew(self._hold)

    async def __aenter__(self) -> Self:
        decision = await self.take()
        if not decision.allowed:
            raise QuotaExceeded(decision)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold is not None:  # which the block may have given back
            await self.release()

    async def finish(self) -> bool:
        """Give back what is left, as the end of `async with` does, without an error of any kind. Return False where its
        time was over before."""
        return self._hold is None or await self._holds.give_back_quietly(self._pop(), self._used_at_end)

    @property
    def _used_at_end(self) -> int:
        return 0

    def __del__(self) -> None:
        """Renew no longer what nobody can give back any more, so that it comes back by itself."""
        if self._hold is not None:
            self._hold.forgotten = True

    def _pop(self) -> Hold:
        hold, self._hold = self._hold, None
        if hold is None:
            state = "was not taken" if self.decision is None or not self.decision.allowed else "was given back before"
            raise NotHeld(f"this {self._what} {state}: there is nothing to give back")
        return hold


class Reservation(Slot):
    """Units that are taken until it is known how many were used. Made by `limiter.reserve`.

        async with limiter.reserve("alice", "tokens", 1200) as reservation:
            reservation.settle(await complete())

    Leaving by an exception gives all of it back, unless it was settled; without `settle` all of it counts as used.
    """

    _what = "reservation"
    _call = "reserve"

    def __init__(self, holds: Holds, hold: Callable[[], Awaitable[Hold]], units: int, timeout: float | None) -> None:
        super().__init__(holds, hold, units, timeout)
        self.units = units
        self.used: int | None = None
        """What it was settled at."""

    def resettle(self, used: int) -> None:
        """Say how many of the units were used after all, whatever the app has said: for a surface, which knows how the
        answer ends."""
        self.used = used

    def settle(self, used: int) -> None:
        """Say how many units were used: what is left goes back when the block ends, or with `release`.

        Raises `InvalidCost` for more than are reserved, `NotHeld` where it is settled or given back, and `HoldExpired`
        where its time was over. Then nothing is spent.
        """
        if type(used) is not int or used < 0:
            raise InvalidCost(f"what was used must be a whole number of at least 0, not {used!r}")
        if used > self.units:
            raise InvalidCost(
                f"{used} is more than the {self.units} units reserved; settle those, and charge the rest:"
                f" limiter.charge(…, {used - self.units})"
            )
        if self.used is not None:
            raise NotHeld(f"this reservation is settled at {self.used} already")
        if self._hold is None:
            raise NotHeld("this reservation is not held: it was not taken, or has been given back")
        if self._hold.decision is not None and self._hold.held is None:
            raise self._expired(used)
        self.used = used

    async def release(self) -> None:
        """Give back what was not used: all of it where nothing was settled. Once, or `NotHeld` is raised.

        Raises `HoldExpired` where it was given back already because its time was over, and `StoreUnavailable`: whether
        it was settled is then not known, and if not, all of it comes back when its time is over.
        """
        await self._release(self.used or 0)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._hold is None:
            return
        if kind is None:
            await self._release(self._used_at_end)
        else:
            await self._holds.give_back_quietly(self._pop(), self.used or 0)

    @property
    def _used_at_end(self) -> int:
        return self.units if self.used is None else self.used

    async def _release(self, used: int) -> None:
        hold = self._pop()
        if hold.decision is not None and not await self._holds.give_back(hold, used) and used:
            raise self._expired(used)

    def _expired(self, used: int) -> HoldExpired:
        return HoldExpired(
            f"the time of this reservation was over before it was settled: its {self.units} units have gone back;"
            f" what was used is charged with limiter.charge(…, {used})"
        )
