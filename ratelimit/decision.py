"""`Decision`: the answer to a check, with the state of every quota that took part in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from ratelimit.clock import instant
from ratelimit.quota import Quota

Reason: TypeAlias = Literal["quota", "concurrency", "too_large", "inactive", "unavailable"]


class QuotaState(msgspec.Struct, frozen=True, gc=False):
    """How one quota stands after the decision. Spans are seconds from now."""

    quota: Quota
    used: int
    """Units spent. Over `quota.limit` after a charge, or where the limit was lowered."""
    remaining: int
    """Whole units left, never negative."""
    reset_after: float
    """Until the quota is as if nothing had been spent."""
    retry_after: float | None
    """Until this quota lets the same cost pass: 0 when it does now, None when it never will."""
    position: int = 0
    """Of a bucket only, and for a refund only: where it stood, in its own measure (see `algorithms/gcra.py`)."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """May this user do this action now? `limit`, `used`, `remaining`, `reset_after` speak of the tightest quota."""

    allowed: bool
    policy: str
    cost: int
    quotas: tuple[QuotaState, ...]
    """One state per quota, in the policy's order; empty where there is no limit, or the store could not be asked."""
    retry_after: float | None = 0.0
    """Seconds until the same check passes: 0 when allowed, None when it never will (the cost exceeds a
    quota), or not by itself (the user is inactive)."""
    reason: Reason | None = None
    """Why it was refused, or why it was allowed unasked (`unavailable`); None where the quotas simply had room.
    `concurrency`: it was for want of a slot alone, and when one will be free cannot be known. `inactive`: the directory
    says that this user may do nothing at all."""
    shadow_denied: bool = False
    """True where only `mode="shadow"` let it pass."""
    at_us: int = 0
    """When it was decided, in microseconds since the epoch: `at` as the limiter counts it."""
    user: str = ""
    spent: int = 0
    """Units that were taken for it: 0 where it was refused, or let pass in shadow or unasked, or only peeked at. Taken
    from the store; with the `reason` `unavailable`, from what this process counts by itself (`"local"`)."""
    refunded: int = 0
    """Of those, what `Limiter.refund`, or the end of a reservation, has given back by now."""

    def __bool__(self) -> bool:
        """Return `allowed`."""
        return self.allowed

    @property
    def at(self) -> datetime:
        """When it was decided (UTC). A refund of it goes back to the windows of this moment."""
        return instant(self.at_us)

    @property
    def tightest(self) -> QuotaState | None:
        """Return the quota to mind: when refused the one to wait longest for, else the one with least left."""
        if not self.quotas:
            return None
        if self.retry_after == 0.0:
            return min(self.quotas, key=_left)
        return max(self.quotas, key=_wait)

    @property
    def limit(self) -> int | None:
        """Units per window of the tightest quota; None where there is no limit."""
        return None if (state := self.tightest) is None else state.quota.limit

    @property
    def used(self) -> int:
        """Units spent of the tightest quota; 0 where there is no limit."""
        return 0 if (state := self.tightest) is None else state.used

    @property
    def remaining(self) -> int | None:
        """Whole units left of the tightest quota; None where there is no limit."""
        return None if (state := self.tightest) is None else state.remaining

    @property
    def reset_after(self) -> float:
        """Seconds until the tightest quota is as if nothing had been spent; 0 where there is no limit."""
        return 0.0 if (state := self.tightest) is None else state.reset_after


class JointDecision(msgspec.Struct, frozen=True, gc=False):
    """May all of it be done now? The decisions on several checks of which all have spent, or none has."""

    decisions: tuple[Decision, ...]
    """In the order in which they were asked for. Where one was refused, `allowed` of another one says that this one had
    room; it has spent nothing."""

    @property
    def allowed(self) -> bool:
        """Whether all were."""
        return all(self.decisions)

    @property
    def refused(self) -> Decision | None:
        """The one that was refused; of several the one to wait longest for. None where all were allowed."""
        return max((one for one in self.decisions if not one.allowed), key=_longest, default=None)

    @property
    def retry_after(self) -> float | None:
        """Seconds until the same checks pass: 0 when allowed, None when they never will."""
        return 0.0 if (refused := self.refused) is None else refused.retry_after

    def __bool__(self) -> bool:
        """Return `allowed`."""
        return self.allowed

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.decisions)


def _longest(decision: Decision) -> float:
    return float("inf") if decision.retry_after is None else decision.retry_after


def _left(state: QuotaState) -> int:
    return state.remaining


def _wait(state: QuotaState) -> float:
    return float("inf") if state.retry_after is None else state.retry_after
