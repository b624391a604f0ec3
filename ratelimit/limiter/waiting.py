"""`WaitQueues`: those who wait until they may, in their order. Per key only the first asks, and again when it was told.

Nobody else has to look at the time: whenever the first is refused, all who could not have their turn in time before it
asks again are refused with it; and when it leaves, those whose time is over.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol, TypeAlias, runtime_checkable

import msgspec

from ratelimit.blocking import Deferred, Signal, is_blocking
from ratelimit.clock import SECOND, Clock, real_clock, seconds
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, LimiterClosed, QuotaExceeded
from ratelimit.limiter.deadline import closed
from ratelimit.tasks import Tasks

DEFAULT_TIMEOUT: Final = 60.0
_MIN_PAUSE_US: Final = SECOND // 100

Ask: TypeAlias = Callable[[], Awaitable[Decision]]
GiveBack: TypeAlias = Callable[[Decision], Awaitable[None]]


@runtime_checkable
class PausingClock(Protocol):
    """A clock that somebody else turns: who waits by it cannot wait by that of the machine."""

    async def pause(self, seconds: float, signal: Signal) -> None:
        """Return when so many seconds have passed, or the signal is set."""


def check_timeout(timeout: object) -> None:
    if not isinstance(timeout, int | float) or not 0 <= timeout < inf:
        raise ConfigError("timeout", f"expected a number of seconds, 0 or more, not {timeout!r}")


@dataclass(slots=True, eq=False)
class _Waiter:
    cost: int
    due: int
    error: QuotaExceeded | LimiterClosed | None = None
    """Set where it has to leave with it."""
    signal: Signal = field(default_factory=Signal)
    """Set when it is its turn, or has to leave."""
    asking: asyncio.Future[Decision] | None = None
    """What it is asking; goes on if it leaves meanwhile."""

    def fail(self, error: QuotaExceeded | LimiterClosed) -> None:
        if self.error is None:
            self.error = error
        self.signal.set()


@dataclass(slots=True, eq=False)
class _Queue:
    """Those who wait for one key. The first is the one that asks."""

    waiters: OrderedDict[_Waiter, None] = field(default_factory=OrderedDict)
    next_at: int = 0
    """When the first will ask again, if it waits."""
    last: Decision | None = None
    """What was answered last."""
    changed: bool = False
    """Whether an answer that is under way may be out of date."""

    @property
    def first(self) -> _Waiter | None:
        return next(iter(self.waiters), None)

    def refuse(self, waiter: _Waiter, decision: Decision, retry_after: float) -> None:
        """Have one leave with this refusal of the first; nothing was spent for it."""
        refusal = msgspec.structs.replace(
            decision,
            allowed=False,
            reason=decision.reason or "quota",
            cost=waiter.cost,
            spent=0,
            refunded=0,
            retry_after=retry_after,
        )
        waiter.fail(QuotaExceeded(refusal))

    def refuse_before(self, next_at: int, decision: Decision, retry_after: float) -> None:
        """Have all leave who cannot wait until then."""
        self.next_at = next_at
        for waiter in self.waiters:
            if waiter.due < next_at:
                self.refuse(waiter, decision, retry_after)

    def leave(self, waiter: _Waiter, now: int) -> None:
        """Let one go, and give the turn to the next; one whose time is over only leaves as well."""
        was_first = self.first is waiter
        self.waiters.pop(waiter, None)
        if was_first and (first := self.first) is not None:
            self.next_at = 0
            if first.due < now and self.last is not None:
                self.refuse(first, self.last, 0.0)
            first.signal.set()


class WaitQueues:
    """The queues of a limiter, or of whoever else gives decisions."""

    def __init__(self, clock: Clock, tasks: Tasks | Deferred) -> None:
        self._clock = clock
        self._tasks = tasks
        self._closed = False
        self._queues: dict[Hashable, _Queue] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._queues

    def open(self) -> None:
        self._closed = False

    async def close(self) -> None:
        """Have all leave with `LimiterClosed`, and see to it that what they gave up is given back."""
        self._closed = True
        for queue in self._queues.values():
            for waiter in queue.waiters:
                waiter.fail(closed())
        await self.drain()

    async def drain(self) -> None:
        await self._tasks.drain()

    def forget(self) -> None:
        self._queues.clear()
        self._tasks.forget(None)

    def ask_now(self, key: Hashable) -> None:
        """Have the first ask at once: what it was told does not hold any more."""
        if (queue := self._queues.get(key)) is not None and (first := queue.first) is not None:
            queue.changed = True
            first.signal.set()

    async def wait(self, key: Hashable, ask: Ask, give_back: GiveBack, *, cost: int, timeout: float) -> Decision:
        """Return the decision that allows it. `give_back` undoes one that nobody waits for any more.

        Raises `QuotaExceeded`, `LimiterClosed`, and what `ask` raises.
        """
        if self._closed:
            raise closed()
        waiter = _Waiter(cost, self._clock.now() + round(timeout * SECOND))
        queue = self._queues.setdefault(key, _Queue())
        queue.waiters[waiter] = None
        try:
            if queue.first is not waiter:
                if queue.last is not None and waiter.due < queue.next_at:
                    queue.refuse(waiter, queue.last, seconds(queue.next_at - self._clock.now()))
                await waiter.signal.wait()
            return await self._take_turn(queue, waiter, ask)
        finally:
            asking = waiter.asking
            if asking is None or (asking.done() and not _took(asking)):
                self._leave(key, queue, waiter)
            else:
                self._tasks.start(self._undo(asking, give_back, key, queue, waiter))

    async def _take_turn(self, queue: _Queue, waiter: _Waiter, ask: Ask) -> Decision:
        while waiter.error is None:
            queue.changed = False
            if is_blocking():
                decision = await ask()
            else:
                waiter.asking = asyncio.ensure_future(ask())
                decision = await asyncio.shield(waiter.asking)
                waiter.asking = None
            queue.last = decision
            if decision.allowed:
                return decision
            if not queue.changed:
                await self._pause(queue, waiter, decision)
        raise waiter.error

    async def _pause(self, queue: _Queue, waiter: _Waiter, refusal: Decision) -> None:
        """Wait until the first may ask again. Refuse those who cannot wait so long."""
        now = self._clock.now()
        if refusal.retry_after is None:
            raise QuotaExceeded(refusal)
        next_at = max(refusal.at_us + round(refusal.retry_after * SECOND), now)
        if refusal.reason == "concurrency":  # a slot may come back at any moment: nobody leaves before his time is over
            queue.refuse_before(now + 1, refusal, refusal.retry_after)
            next_at = min(next_at, waiter.due)
        else:
            queue.refuse_before(next_at, refusal, seconds(next_at - now))
        if waiter.error is not None:
            return
        pause = seconds(max(next_at - now, _MIN_PAUSE_US))
        waiter.signal = Signal()
        clock = real_clock(self._clock)
        if isinstance(clock, PausingClock):
            if not refusal.at_us < next_at <= now:  # turned on since it was refused: the moment is there already
                await clock.pause(pause, waiter.signal)
        else:
            await waiter.signal.wait(pause)

    async def _undo(
        self, asking: asyncio.Future[Decision], give_back: GiveBack, key: Hashable, queue: _Queue, waiter: _Waiter
    ) -> None:
        """See through what was asked for one who has left since. Who comes next finds the units there."""
        try:
            await asyncio.wait({asking})
            if _took(asking):
                await give_back(asking.result())
        finally:
            self._leave(key, queue, waiter)

    def _leave(self, key: Hashable, queue: _Queue, waiter: _Waiter) -> None:
        queue.leave(waiter, self._clock.now())
        if not queue.waiters and self._queues.get(key) is queue:
            del self._queues[key]


def _took(asking: asyncio.Future[Decision]) -> bool:
    return not asking.cancelled() and asking.exception() is None and asking.result().allowed
