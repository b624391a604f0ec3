"""`Guard`: a deadline and a circuit breaker around everything that is asked of a store that can fail."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType

from ratelimit.breaker import Breaker
from ratelimit.clock import Clock, seconds
from ratelimit.errors import LimiterClosed, StoreThrottled, StoreUnavailable
from ratelimit.limiter.patience import Limited, Patience

logger = logging.getLogger("ratelimit")


class Guard:
    """`with guard.call(): await ...` gives the store `deadline` seconds to answer.

    Raises `StoreUnavailable` when they are over, and at once while the breaker is open; every other error passes as it
    is. A throttled call does not count as a failure of the store: one hot record must not shut out all others.
    """

    def __init__(self, clock: Clock, deadline: float, breaker: Breaker) -> None:
        self.deadline = deadline
        self.breaker = breaker
        self.closed = False
        """Whether the store is to be left alone from now on: it would open itself again."""
        self._patience: Patience[Call] = Patience(deadline, Call.expire)
        self._clock = clock

    def call(self) -> Call:
        """A call that begins now. Raises `StoreUnavailable`."""
        if self.closed:
            raise closed()
        now = self._clock.now()
        if not self.breaker.admits(now):
            wait = seconds(self.breaker.wait(now))
            raise StoreUnavailable(f"the store has failed repeatedly; it will be tried again in {wait:.1f} s")
        loop = asyncio.get_running_loop()
        call = Call(self, loop)
        self._patience.watch(call, loop)
        return call

    async def finish(self) -> None:
        """Return when the calls under way by now have ended, which the deadline sees to."""
        loop = asyncio.get_running_loop()
        calls = self._patience.waiting()
        for call in calls:
            call.ended = call.ended or loop.create_future()
        ended: list[asyncio.Future[None]] = [call.ended for call in calls if call.ended is not None]
        if ended:
            await asyncio.wait(ended, timeout=2 * self.deadline)

    def settle(self, error: BaseException | None) -> None:
        """A call has ended so."""
        if error is None or isinstance(error, StoreThrottled):
            if self.breaker.succeeded():
                logger.warning("the store answers again")
        elif not isinstance(error, StoreUnavailable):
            self.breaker.abandoned()
        elif self.breaker.failed(self._clock.now()):
            logger.warning("the store keeps failing, checks no longer wait for it: %s", error)


def closed() -> LimiterClosed:
    """What becomes of a check that comes too late."""
    return LimiterClosed("the limiter is closed, and decides nothing any more; `await limiter.open()` opens it again")


class Call(Limited):
    """A call under way. Made by `Guard.call`."""

    __slots__ = ("_guard",)

    def __init__(self, guard: Guard, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._guard = guard

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `Guard`."""
        try:
            super().__exit__(kind, error, trace)
        except TimeoutError:
            late = StoreUnavailable(f"no answer from the store within {self._guard.deadline} s")
            self._guard.settle(late)
            raise late from error
        self._guard.settle(error)
