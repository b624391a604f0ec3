"""How long anybody waits for the store: one timer for all, where a timer each costs as much as the rest of the check.

`asyncio.timeout` takes 4 µs, and 8 with what its timers and their garbage cost elsewhere: a fifth of a warm check.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic
from types import TracebackType
from typing import Final, Generic, Protocol, Self, TypeVar

from ratelimit.blocking import sleep
from ratelimit.blocking_wait import ThreadState, this_thread
from ratelimit.breaker import BreakerState
from ratelimit.clock import Clock, seconds
from ratelimit.errors import LimiterClosed, StoreThrottled, StoreUnavailable

logger = logging.getLogger("ratelimit")


# A timer that comes so late says that the loop stood still: what arrived meanwhile has so long to be read.
_LATE_S: Final = 0.05
_GRACE_S: Final = 0.01


class Waiting(Protocol):
    """What may run out of time."""

    def done(self) -> bool:
        """Return whether it needs no more watching."""
        ...


W = TypeVar("W", bound=Waiting)


class SharedTimer(Generic[W]):
    """Call `expire` with what is not done `deadline` seconds after it was watched.

    All wait equally long, so the first to come is the first to be due.
    """

    __slots__ = ("_expire", "_loop", "_watched", "deadline")

    def __init__(self, deadline: float, expire: Callable[[W], None]) -> None:
        self.deadline = deadline
        self._expire = expire
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop that has a timer set for the first of them; None while there is none."""
        self._watched: deque[tuple[float, W]] = deque()

    def watch(self, waiting: W, loop: asyncio.AbstractEventLoop) -> None:
        """Watch it from now on, on the loop that runs. (To ask for it is a system call: a check does that once.)"""
        watched = self._watched
        while watched and watched[0][1].done():  # keeps what is kept to those who do wait, by and large
            watched.popleft()
        due = loop.time() + self.deadline
        if self._loop is not loop:
            watched.clear()  # of a loop that is gone, if any
            self._loop = loop
            loop.call_at(due, self._end, loop, due)
        watched.append((due, waiting))

    def waiting(self) -> list[W]:
        return [one for _, one in self._watched if not one.done()]

    def _end(self, loop: asyncio.AbstractEventLoop, planned: float) -> None:
        """Expire those whose time has come; forget those who need none any more."""
        if self._loop is not loop:
            return
        now = loop.time()
        if now - planned > _LATE_S:
            loop.call_later(_GRACE_S, self._end, loop, now + _GRACE_S)
            return
        while self._watched:
            due, waiting = self._watched[0]
            if not waiting.done():
                if due > now:
                    loop.call_at(due, self._end, loop, due)
                    return
                self._expire(waiting)
            self._watched.popleft()
        self._loop = None


class Deadline:
    """A task in a block that it has to leave in time, or `TimeoutError` is raised there. Cancelled from outside, it
    stays cancelled: as `asyncio.Timeout` has it, whose rules these are."""

    __slots__ = ("_cancelling", "_expired", "_task", "ended")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        task = asyncio.current_task(loop)
        assert task is not None
        self._task: asyncio.Task[object] | None = task
        self._cancelling = task.cancelling()
        self._expired = False
        self.ended: asyncio.Future[None] | None = None
        """Done when the block is left, for whoever waits for that."""

    def done(self) -> bool:
        return self._task is None

    def expire(self) -> None:
        if self._task is not None:
            self._expired = True
            self._task.cancel()

    def leave(self) -> bool:
        """Note that the block is left. Return whether it was cancelled only because its time was over."""
        task, self._task = self._task, None
        assert task is not None
        if self.ended is not None and not self.ended.done():
            self.ended.set_result(None)
        return self._expired and task.uncancel() <= self._cancelling

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.leave() and kind is asyncio.CancelledError:
            raise TimeoutError from error


class CircuitBreaker:
    """A deadline and a circuit breaker around everything that is asked of a store that can fail.

    `with circuit.call(): await ...` gives the store `deadline` seconds to answer.
    Raises `StoreUnavailable` when they are over, and at once while the breaker is open; every other error passes as it
    is. A throttled call does not count as a failure of the store: one hot record must not shut out all others.
    """

    def __init__(self, clock: Clock, deadline: float, breaker: BreakerState) -> None:
        self.deadline = deadline
        self.breaker = breaker
        self.closed = False
        """Whether the store is to be left alone from now on: it would open itself again."""
        self._timer: SharedTimer[StoreCall] = SharedTimer(deadline, StoreCall.expire)
        self._clock = clock

    def call(self) -> AbstractContextManager[object]:
        """Begin a call. Raises `StoreUnavailable`, and `LimiterClosed`."""
        if self.closed or self.breaker.failed_calls:
            self._admit()
        loop = asyncio.get_running_loop()
        call = StoreCall(self, loop)
        self._timer.watch(call, loop)
        return call

    async def finish(self) -> None:
        """Return when the calls under way by now have ended, which the deadline sees to."""
        loop = asyncio.get_running_loop()
        calls = self._timer.waiting()
        for call in calls:
            call.ended = call.ended or loop.create_future()
        ended: list[asyncio.Future[None]] = [call.ended for call in calls if call.ended is not None]
        if ended:
            await asyncio.wait(ended, timeout=2 * self.deadline)

    def _admit(self) -> None:
        if self.closed:
            raise closed()
        now = self._clock.now()
        if not self.breaker.admits(now):
            wait = seconds(self.breaker.wait(now))
            raise StoreUnavailable(f"the store has failed repeatedly; it will be tried again in {wait:.1f} s")

    def forget(self) -> None:
        """Leave what is under way to the process that this one was forked from."""
        self.breaker.abandoned()

    def too_late(self) -> StoreUnavailable:
        """Count a call whose time is over, and return what to raise."""
        late = StoreUnavailable(f"no answer from the store within {self.deadline} s")
        self.settle(late)
        return late

    def settle(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, StoreThrottled):
            if self.breaker.succeeded():
                logger.warning("the store answers again")
        elif not isinstance(error, StoreUnavailable):
            self.breaker.abandoned()
        elif self.breaker.failed(self._clock.now()):
            logger.warning("the store keeps failing, checks no longer wait for it: %s", error)


def closed() -> LimiterClosed:
    """Return the error for a check that comes too late."""
    return LimiterClosed("the limiter is closed, and decides nothing any more; `limiter.open()` makes it ready again")


class StoreCall(Deadline):
    """A call of the store under way. Made by `CircuitBreaker.call`."""

    __slots__ = ("_circuit",)

    def __init__(self, circuit: CircuitBreaker, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._circuit = circuit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        circuit = self._circuit
        if self.leave() and kind is asyncio.CancelledError:
            raise circuit.too_late() from error
        if error is not None or circuit.breaker.failed_calls:
            circuit.settle(error)


# Seconds between looks for calls that other threads have under way.
_LOOK_S: Final = 0.005


class BlockingCircuit(CircuitBreaker):
    """The same without an event loop: whoever waits looks at the time, and nobody else ends a call."""

    def __init__(self, clock: Clock, deadline: float, breaker: BreakerState) -> None:
        super().__init__(clock, deadline, breaker)
        self.under_way = 0

    def call(self) -> BlockingStoreCall:
        return BlockingStoreCall(self)

    def begin(self) -> float:
        """Begin a call of this thread, and return the deadline until then, for `end`. Raises as `call` does."""
        if self.closed or self.breaker.failed_calls:
            self._admit()
        self.under_way += 1
        thread: ThreadState = this_thread.state
        before, due = thread.deadline, monotonic() + self.deadline
        if due < before:
            thread.deadline = due
        return before

    def end(self, before: float, error: BaseException | None = None) -> None:
        """End a call, with what was raised in it. Raises `StoreUnavailable` where its time is over."""
        self.under_way -= 1
        thread: ThreadState = this_thread.state
        due, thread.deadline = thread.deadline, before
        if error is not None and due < before and type(error) is asyncio.CancelledError:
            raise self.too_late() from error
        if error is not None or self.breaker.failed_calls:
            self.settle(error)

    def forget(self) -> None:
        """Leave to the parent what its other threads are at, as well."""
        super().forget()
        self.under_way = 0

    async def finish(self) -> None:
        """Return when the calls under way have ended, in whatever thread."""
        latest = monotonic() + 2 * self.deadline
        while self.under_way and monotonic() < latest:
            await sleep(_LOOK_S)


class BlockingStoreCall:
    """A call that this thread makes."""

    __slots__ = ("_before", "_circuit")

    def __init__(self, circuit: BlockingCircuit) -> None:
        self._circuit = circuit
        self._before = 0.0

    def __enter__(self) -> Self:
        self._before = self._circuit.begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._circuit.end(self._before, error)
