"""`Slot` and `Reservation`, as an app holds them, and `Holds`, which renews all that a limiter's app holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeAlias, TypeVar

from ratelimit.blocking import Deferred, is_blocking, running_loop, sleep
from ratelimit.clock import SECOND, Clock
from ratelimit.decision import Decision
from ratelimit.errors import HoldExpired, InvalidCost, LimiterClosed, NotHeld, QuotaExceeded, StoreUnavailable
from ratelimit.limiter.checker import Checker, Fallback
from ratelimit.limiter.compiled_policy import CachedRecord
from ratelimit.limiter.counters import Counters
from ratelimit.limiter.holding import Hold, HoldCounters
from ratelimit.limiter.waiting import WaitQueues, check_timeout
from ratelimit.names import Key
from ratelimit.tasks import Tasks

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
        self._main = HoldCounters(counters, self._sweep_in_background)
        self._local = HoldCounters(fallback.counters)
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
        return _raised(await self._see_through(self._try_to_give_back(hold, used)))

    async def give_back_quietly(self, hold: Hold, used: int) -> bool:
        """Give it back, without an error. Return False where it was not held any more."""
        return await self._see_through(self._try_to_give_back(hold, used)) is not False

    async def refund(self, decision: Decision, cost: int) -> bool:
        """Give back so many of the units that are reserved by it. Return False where it holds none, or not any more.
        Raises `StoreUnavailable`: what is left of them comes back by itself then, unless nothing was written."""
        hold = self._held.get(id(decision))
        if hold is None or not hold.units:
            return False
        return _raised(await self._see_through(self._try_to_refund(hold, cost)))

    async def renew(self, hold: Hold) -> bool:
        return _raised(await self._see_through(self._try_to_renew(hold)))

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
            await self._counters.sweep(key, now, cached)
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
            was_held = await self._try(hold, lambda counters: counters.give_back(hold, self._clock.now(), used))
        finally:
            self._held.pop(id(hold.decision), None)
        if not isinstance(was_held, bool):
            hold.lose()
            self._checker.stats.lost["unreturned"] += max(1, hold.units - used)
            logger.warning("a slot or reservation of %r comes back by itself: %s", hold.key.action, was_held)
            return was_held
        self._waits.ask_now(hold.key)
        return was_held

    async def _try_to_refund(self, hold: Hold, cost: int) -> bool | _Failure:
        was_held = await self._try(hold, lambda counters: counters.refund(hold, self._clock.now(), cost))
        if isinstance(was_held, bool):
            self._waits.ask_now(hold.key)
        return was_held

    async def _try_to_renew(self, hold: Hold) -> bool | _Failure:
        return await self._try(hold, lambda counters: counters.renew(hold, self._clock.now()))

    async def _try(self, hold: Hold, call: Callable[[HoldCounters], Awaitable[bool]]) -> bool | _Failure:
        """Call the counters that it is held by, in the time that a check has; False where there are none. Return their
        error."""
        counters = hold.counters
        if counters is None:
            return False
        try:
            with self._checker.call() if counters is self._main else nullcontext():
                return await call(counters)
        except (StoreUnavailable, LimiterClosed) as error:
            return error

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


def _raised(answer: bool | _Failure) -> bool:
    if isinstance(answer, Exception):
        raise answer
    return answer


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
