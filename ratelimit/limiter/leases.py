"""Leases: a process takes units in advance, and grants from them in memory until they are used up.

For keys hotter than one DynamoDB item can be written (1,000 writes a second), across more processes than coalescing can
help. Nothing is ever admitted that was not taken from the quota first, so leases never over-admit. The price: units
that one process holds are not there for another, until they are returned: when the window ends, when the key is idle,
or at shutdown. A process that is killed loses what it held; the quota and the totals then read that much too high.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from ratelimit.clock import SECOND
from ratelimit.decision import Decision
from ratelimit.errors import StoreThrottled
from ratelimit.limiter.background import Background
from ratelimit.limiter.ledger import Advance, Ledger
from ratelimit.limiter.planner import Planner
from ratelimit.names import Key

# An idle key's units go back to everybody after this long, in microseconds.
IDLE: Final = 5 * SECOND
# "auto" takes what it expects to grant in this long; a throttled write doubles it, up to the most.
AHEAD: Final = SECOND // 10
MAX_AHEAD: Final = 5 * SECOND
_RETURNS_AT_ONCE: Final = 2

Spend: TypeAlias = Callable[[Planner, Key, int, Sequence[int], Advance], Awaitable[list[Decision]]]
Refund: TypeAlias = Callable[[Planner, Key, int, int], Awaitable[None]]


class Leases:
    """Who holds how many units. `spend` and `refund` reach the store, and may raise `StoreUnavailable`."""

    def __init__(self, ledger: Ledger, spend: Spend, refund: Refund, background: Background) -> None:
        self._ledger = ledger
        self._spend = spend
        self._refund = refund
        self._background = background
        self._leases: OrderedDict[tuple[Key, Planner], _Lease] = OrderedDict()

    def grant(self, planner: Planner, key: Key, now: int, cost: int) -> Decision | None:
        """A decision from units already held; None where there are not enough of them."""
        lease = self._leases.get((key, planner))
        if lease is None or lease.units < cost or not lease.start <= now < lease.end:
            return None
        lease.units -= cost
        lease.granted += cost
        return self._ledger.granted(planner, key, now, cost, held=lease.units)

    async def spend(self, planner: Planner, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        """Decide on `costs`, from the units held and as many from the store as are missing, and some ahead."""
        lease = self._current(planner, key, now)
        advance = Advance(lease.take(), lease.size(planner.policy.lease, now))
        try:
            decisions = await self._spend(planner, key, now, costs, advance)
        except StoreThrottled:
            lease.throttled()
            raise
        finally:
            lease.units += advance.held
        lease.granted += sum(decision.cost for decision in decisions if decision.allowed)
        self._return_idle(now)
        return decisions

    def close(self) -> None:
        """Start to give back everything that is held."""
        leases, self._leases = self._leases, OrderedDict()
        for (key, planner), lease in leases.items():
            self._give_back(planner, key, lease)

    def _current(self, planner: Planner, key: Key, now: int) -> _Lease:
        lease = self._leases.get((key, planner))
        if lease is None:
            lease = self._leases[key, planner] = _Lease()
        self._leases.move_to_end((key, planner))
        if not lease.start <= now < lease.end:
            self._give_back(planner, key, lease)
            lease.start, lease.end = planner.epoch(now)
            lease.taken_at = now
        lease.used_at = now
        return lease

    def _return_idle(self, now: int) -> None:
        """The longest unused leases end: a few with each spending, so that returning keeps pace with taking."""
        for _ in range(_RETURNS_AT_ONCE):
            (key, planner), lease = next(iter(self._leases.items()))
            if now - lease.used_at < IDLE:
                return
            del self._leases[key, planner]
            self._give_back(planner, key, lease)

    def _give_back(self, planner: Planner, key: Key, lease: _Lease) -> None:
        units, lease.units = lease.units, 0
        if units:
            returning = self._refund(planner, key, units, lease.taken_at)
            self._background.start(returning, units=units, or_else="unreturned")


class _Lease:
    """Units held for one user, action and its quotas, good from `start` until `end` (microseconds)."""

    __slots__ = ("_ahead", "_rate_since", "end", "granted", "start", "taken_at", "units", "used_at")

    def __init__(self) -> None:
        self.units = 0
        self.granted = 0
        self.start = self.end = 0
        self.taken_at = self.used_at = 0
        self._ahead = AHEAD
        self._rate_since = 0

    def take(self) -> int:
        """Everything that is held, so that nobody else grants it while it is being accounted for."""
        units, self.units = self.units, 0
        return units

    def size(self, lease: int | str | None, now: int) -> int:
        """Units to take ahead: as many as the policy says, or by what was granted of late."""
        if isinstance(lease, int):
            return lease
        elapsed, granted = now - self._rate_since, self.granted
        self._rate_since, self.granted = now, 0
        if not 0 < elapsed < IDLE:
            return 0
        self._ahead = max(AHEAD, self._ahead * 9 // 10)
        return granted * self._ahead // elapsed

    def throttled(self) -> None:
        """Write more seldom."""
        self._ahead = min(2 * self._ahead, MAX_AHEAD)

