"""The state of a circuit breaker: what keeps failing is left alone for a while, and costs microseconds, no deadline."""

from __future__ import annotations

from typing import Final, Literal

from ratelimit.clock import SECOND

MAX_FAILURES: Final = 5
COOLDOWN_US: Final = 1 * SECOND
MAX_COOLDOWN_US: Final = 30 * SECOND


class BreakerState:
    """Closed: every call goes out. After `failures` in a row it opens: none does, for `COOLDOWN_US`. Then one
    call tries; a success closes it, a failure doubles the cooldown, up to `MAX_COOLDOWN_US`.

    Time is an argument. A clock that steps back past the opening counts as time passed, so that it cannot stay open.
    """

    __slots__ = ("_cooldown", "_max_failures", "_opened_at", "_trying", "failed_calls")

    def __init__(self, *, failures: int = MAX_FAILURES) -> None:
        self._max_failures = failures
        self._cooldown = COOLDOWN_US
        self.failed_calls = 0
        """So many in a row. While it is 0, every call is admitted, and a success changes nothing."""
        self._opened_at: int | None = None
        self._trying = False

    @property
    def state(self) -> Literal["closed", "open", "half_open"]:
        """`half_open` while the one trying call is under way."""
        if self._opened_at is None:
            return "closed"
        return "half_open" if self._trying else "open"

    def admits(self, now: int) -> bool:
        """Return whether a call may go out now; a True must be followed by `succeeded`, `failed` or `abandoned`."""
        if self._opened_at is None:
            return True
        if self._trying or self.wait(now) > 0:
            return False
        self._trying = True
        return True

    def wait(self, now: int) -> int:
        """Return the microseconds until a call may try again; 0 when it may now."""
        if self._opened_at is None or now < self._opened_at:
            return 0
        return max(0, self._opened_at + self._cooldown - now)

    def succeeded(self) -> bool:
        """Note that the store answered. Return whether this closed the breaker."""
        closed = self._opened_at is not None
        self.failed_calls = 0
        self._cooldown = COOLDOWN_US
        self._opened_at = None
        self._trying = False
        return closed

    def failed(self, now: int) -> bool:
        """Note that the store did not answer. Return whether this opened the breaker."""
        self.failed_calls += 1
        if self._opened_at is not None:
            if self._trying:
                self._trying = False
                self._opened_at = now
                self._cooldown = min(2 * self._cooldown, MAX_COOLDOWN_US)
            return False
        if self.failed_calls < self._max_failures:
            return False
        self._opened_at = now
        return True

    def abandoned(self) -> None:
        """Note that the call was cancelled before it could tell: another may try."""
        self._trying = False
