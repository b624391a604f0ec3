"""`Guard`: a deadline and a circuit breaker around everything that is asked of a store that can fail."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from ratelimit.breaker import Breaker
from ratelimit.clock import Clock, seconds
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.limiter.patience import Patience

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("ratelimit")


class Guard:
    """Runs calls within `deadline` seconds each; raises `StoreUnavailable` at once while the breaker is open.

    A throttled call does not count as a failure of the store: one hot record must not shut out all others.
    """

    def __init__(self, clock: Clock, deadline: float, breaker: Breaker) -> None:
        self.deadline = deadline
        self._patience = Patience(deadline)
        self.breaker = breaker
        self._clock = clock

    async def run(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """The call's result. Raises `StoreUnavailable`; every other error of the call passes as it is."""
        if not self.breaker.admits(self._clock.now()):
            wait = seconds(self.breaker.wait(self._clock.now()))
            raise StoreUnavailable(f"the store has failed repeatedly; it will be tried again in {wait:.1f} s")
        try:
            with self._patience.limit():
                result = await call(*args, **kwargs)
        except TimeoutError as error:
            late = StoreUnavailable(f"no answer from the store within {self.deadline} s")
            self._failed(late)
            raise late from error
        except StoreThrottled:
            self._succeeded()
            raise
        except StoreUnavailable as error:
            self._failed(error)
            raise
        except BaseException:
            self.breaker.abandoned()
            raise
        self._succeeded()
        return result

    def _failed(self, error: StoreUnavailable) -> None:
        if self.breaker.failed(self._clock.now()):
            logger.warning("the store keeps failing, checks no longer wait for it: %s", error)

    def _succeeded(self) -> None:
        if self.breaker.succeeded():
            logger.warning("the store answers again")
