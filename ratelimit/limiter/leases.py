"""Leases: a process takes units in advance, and grants from them in memory until they are used up.

For keys hotter than one DynamoDB item can be written (1,000 writes a second), across more processes than coalescing can
help. Nothing is ever admitted that was not taken from the quota first, so leases never over-admit. The price: units
that one process holds are not there for another, until they are returned: when the window ends, when the key is idle,
or at shutdown. A process that is killed loses what it held; the quota and the totals then read that much too high.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final, TypeAlias

from ratelimit.clock import SECOND, Clock
from ratelimit.decision import Decision
from ratelimit.errors import StoreThrottled
from ratelimit.limiter.background import Background
from ratelimit.limiter.lease import Lease
from ratelimit.limiter.ledger import Advance, Ledger
from ratelimit.limiter.planner import Planner
from ratelimit.names import Key

# An idle key's units go back to everybody after this long, in microseconds.
IDLE: Final = 5 * SECOND
# How many leases are looked at with each spending, so that returning keeps pace with taking; and once in so many
# seconds, for a process that nobody asks any more.
_LOOKS: Final = 2
_LOOKS_UNASKED: Final = 256
_UNASKED: Final = 1.0
# More at once than connections would wait for one another past their deadlines.
_RETURNS_AT_ONCE: Final = 32

_Held: TypeAlias = tuple[Key, Planner]
Spend: TypeAlias = Callable[[Planner, Key, int, Sequence[int], Advance], Awaitable[list[Decision]]]
Refund: TypeAlias = Callable[[Planner, Key, int, int], Awaitable[None]]


class Leases:
    """Who holds how many units. `spend` and `refund` reach the store, and may raise `StoreUnavailable`."""

    def __init__(self, ledger: Ledger, spend: Spend, refund: Refund, background: Background, clock: Clock) -> None:
        self._ledger = ledger
        self._spend = spend
        self._refund = refund
        self._background = background
        self._clock = clock
        self._leases: OrderedDict[_Held, Lease] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop that has a timer for those that nobody asks for; None while there is none."""

    def grant(self, planner: Planner, key: Key, now: int, cost: int) -> Decision | None:
        """A decision from units already held; None where there are not enough of them."""
        lease = self._leases.get((key, planner))
        if lease is None or lease.units < cost or not lease.start <= now < lease.end:
            return None
        lease.units -= cost
        lease.asked += cost
        lease.used_at = now
        return self._ledger.granted(planner, key, now, cost, held=lease.units)

    def held(self, planner: Planner, key: Key, now: int) -> int:
        """Units at hand, which the store counts as spent: what it refused for them is no refusal here."""
        lease = self._leases.get((key, planner))
        return 0 if lease is None or not lease.start <= now < lease.end else lease.units

    async def spend(self, planner: Planner, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        """Decide on `costs`, from the units held and as many from the store as are missing, and some ahead."""
        lease = self._current(planner, key, now)
        advance = lease.advance(planner.lease, now)
        lease.asked += sum(costs)
        try:
            decisions = await self._spend(planner, key, now, costs, advance)
        except StoreThrottled:
            lease.throttled()
            raise
        finally:
            lease.units += advance.held
            if self._leases.get((key, planner)) is not lease:  # which was ended meanwhile
                self._give_back(planner, key, lease)
        lease.saw(self._ledger.counted(key, now), now)
        self._return_idle(now, _LOOKS)
        self._look_later()
        return decisions

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held, nor was a moment ago."""
        return not self._leases

    def forget(self) -> None:
        """Leave what is held to the process that this one was forked from: it grants it too."""
        self._leases.clear()

    async def release(self, key: Key) -> None:
        """Give back what is held of this key, and wait for it."""
        of_key = [held for held in self._leases if held[0] == key]
        await self._return_all(iter([(held, self._leases.pop(held)) for held in of_key]))

    async def close(self) -> None:
        """Give back everything."""
        leases, self._leases = self._leases, OrderedDict()
        left = iter(leases.items())
        await asyncio.gather(*(self._return_all(left) for _ in range(_RETURNS_AT_ONCE)))

    async def _return_all(self, left: Iterator[tuple[_Held, Lease]]) -> None:
        for (key, planner), lease in left:
            units, lease.units = lease.units, 0
            if units:
                returning = self._refund(planner, key, units, lease.taken_at)
                await self._background.see_through(returning, units, "unreturned")

    def _current(self, planner: Planner, key: Key, now: int) -> Lease:
        lease = self._leases.get((key, planner))
        if lease is None:
            lease = self._leases[key, planner] = Lease(now)
        self._leases.move_to_end((key, planner))
        if not lease.start <= now < lease.end:
            self._give_back(planner, key, lease)
            lease.start, lease.end = planner.epoch(now)
            lease.taken_at = now
        lease.used_at = now
        return lease

    def _return_idle(self, now: int, looks: int) -> None:
        """Unused leases end."""
        for _ in range(min(looks, len(self._leases))):
            (key, planner), lease = next(iter(self._leases.items()))
            if now - lease.used_at < IDLE:
                self._leases.move_to_end((key, planner))
                continue
            del self._leases[key, planner]
            self._give_back(planner, key, lease)

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        if self._leases and self._loop is not loop:
            self._loop = loop
            loop.call_later(_UNASKED, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        self._loop = None
        self._return_idle(self._clock.now(), _LOOKS_UNASKED)
        self._look_later()

    def _give_back(self, planner: Planner, key: Key, lease: Lease) -> None:
        units, lease.units = lease.units, 0
        if units:
            returning = self._refund(planner, key, units, lease.taken_at)
            self._background.start(returning, units=units, or_else="unreturned")
