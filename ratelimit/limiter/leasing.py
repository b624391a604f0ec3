"""Leases: a process takes units in advance, and grants from them in memory until they are used up.

For keys hotter than one DynamoDB item can be written (1,000 writes a second), across more processes than coalescing can
help. Nothing is ever admitted that was not taken from the quota first, so leases never over-admit. The price: units
that one process holds are not there for another, until they are returned: when the window ends, when the key is idle,
or at shutdown. A process that is killed loses what it held; the quota and the totals then read that much too high.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

from ratelimit.algorithms import Taken
from ratelimit.blocking import is_blocking
from ratelimit.clock import SECOND, Clock
from ratelimit.decision import Decision
from ratelimit.errors import StoreThrottled
from ratelimit.limiter.background import BackgroundWrites
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import Counters, Prefetch
from ratelimit.names import Key

# "auto" takes at least what it expects to be asked for in this long; a throttled write doubles it, up to the most.
MIN_AHEAD_US: Final = SECOND // 10
MAX_AHEAD_US: Final = 5 * SECOND
# What a process takes ahead is at most one unit in so many of those that are left.
MAX_SHARE: Final = 4
# "auto" does not know yet what everybody takes, on the first writes of a key: then it takes what it is asked for itself
# in this long, at most one unit in so many of those that are left, since any number of processes may do the same.
AHEAD_ALONE_US: Final = SECOND
MAX_SHARE_ALONE: Final = 200
# "auto" aims at this many writes of one item a second, by all processes together: half of what DynamoDB takes.
MAX_WRITES_PER_S: Final = 500


class Lease:
    """Units held for one user, action and its quotas, good from `start` until `end` (microseconds)."""

    __slots__ = (
        "_ahead",
        "_counted",
        "_counted_at",
        "_everybody",
        "_own",
        "_since",
        "end",
        "requested",
        "start",
        "taken_at",
        "units",
        "used_at",
    )  # fmt: skip

    def __init__(self, now: int) -> None:
        self.units = 0
        self.requested = 0
        """Units asked of this process since it last measured, granted or not: a throttled process needs them too."""
        self.start = self.end = 0
        self.taken_at = self.used_at = now
        self._ahead = MIN_AHEAD_US
        self._since = now
        self._own = 0
        self._everybody = 0
        self._counted: int | None = None
        self._counted_at = now

    def prefetch(self, lease: int | str | None, now: int) -> Prefetch:
        """Return everything that is held, so that nobody else grants it while it is being accounted for, and what to
        take: as much as the policy says, or by what is asked for and by what everybody takes.

        If each write takes what all processes use in 1/`MAX_WRITES_PER_S` of a second, they write so many times a
        second, however many they are and however uneven their shares.
        """
        held, self.units = self.units, 0
        if isinstance(lease, int):
            return Prefetch(held, lease, MAX_SHARE)
        rate = self._rate(now)
        if not self._everybody:
            return Prefetch(held, rate * max(self._ahead, AHEAD_ALONE_US) // SECOND, MAX_SHARE_ALONE)
        ahead = max(rate * self._ahead // SECOND, self._everybody // MAX_WRITES_PER_S)
        return Prefetch(held, min(ahead, rate * MAX_AHEAD_US // SECOND), MAX_SHARE)

    def observe_total(self, counted: int, now: int) -> None:
        """Learn that everybody has counted so many units today; the same number as before tells of no write."""
        if counted == self._counted:
            return
        self._ahead = max(MIN_AHEAD_US, self._ahead * 9 // 10)
        if self._counted is None:
            self._counted, self._counted_at = counted, now
        elif not 0 <= now - self._counted_at < MIN_AHEAD_US:
            self._everybody = _a_second(max(0, counted - self._counted), max(MIN_AHEAD_US, now - self._counted_at))
            self._counted, self._counted_at = counted, now

    def throttled(self) -> None:
        self._ahead = min(2 * self._ahead, MAX_AHEAD_US)

    def _rate(self, now: int) -> int:
        elapsed = now - self._since
        if 0 <= elapsed < MIN_AHEAD_US:
            return max(self._own, _a_second(self.requested, MIN_AHEAD_US))
        self._own = _a_second(self.requested, max(MIN_AHEAD_US, elapsed))
        self._since, self.requested = now, 0
        return self._own


def _a_second(units: int, elapsed: int) -> int:
    return units * SECOND // elapsed


# An idle key's units go back to everybody after this long, in microseconds.
IDLE_US: Final = 5 * SECOND
# How many leases are looked at with each spending, so that returning keeps pace with taking; and once in so many
# seconds, for a process that nobody asks any more.
_LOOKS: Final = 2
_LOOKS_BY_TIMER: Final = 256
_LOOK_INTERVAL_S: Final = 1.0
# More at once than connections would wait for one another past their deadlines.
MAX_RETURNS_AT_ONCE: Final = 32

_Held: TypeAlias = tuple[Key, CompiledPolicy]


class Leases:
    """Who holds how many units. `call` gives the context for a call of the store."""

    def __init__(
        self,
        counters: Counters,
        call: Callable[[], AbstractContextManager[object]],
        background: BackgroundWrites,
        clock: Clock,
    ) -> None:
        self._counters = counters
        self._call = call
        self._background = background
        self._clock = clock
        self._leases: OrderedDict[_Held, Lease] = OrderedDict()
        self._spending: set[asyncio.Future[list[Decision]]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        """The loop that has a timer for those that nobody asks for; None while there is none."""

    def grant(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision | None:
        """Return a decision from units already held; None where there are not enough of them."""
        lease = self._leases.get((key, compiled))
        if lease is None or lease.units < cost or not lease.start <= now < lease.end:
            return None
        lease.units -= cost
        lease.requested += cost
        lease.used_at = now
        return self._counters.granted(compiled, key, now, cost, held=lease.units)

    def held(self, compiled: CompiledPolicy, key: Key, now: int) -> int:
        """Return the units at hand, which the store counts as spent: what it refused for them is no refusal here."""
        lease = self._leases.get((key, compiled))
        return 0 if lease is None or not lease.start <= now < lease.end else lease.units

    def restore(self, compiled: CompiledPolicy, key: Key, at: int, cost: int) -> None:
        """Hold units again that were granted at that moment for what did not come about."""
        lease = self._leases.get((key, compiled))
        if lease is None or not lease.start <= at < lease.end:
            lease = Lease(at)
            lease.units = cost
            self._give_back(compiled, key, lease)
        else:
            lease.units += cost

    async def spend(self, compiled: CompiledPolicy, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        """Decide on `costs`, from the units held and as many from the store as are missing, and some ahead: those are
        held also where the one who waits is cancelled."""
        if is_blocking():
            return await self._spend_now(compiled, key, now, costs)
        spending = asyncio.ensure_future(self._spend_now(compiled, key, now, costs))
        self._spending.add(spending)
        spending.add_done_callback(self._spent)
        await asyncio.wait([spending])
        return spending.result()

    def _spent(self, spending: asyncio.Future[list[Decision]]) -> None:
        self._spending.discard(spending)
        if not spending.cancelled():
            spending.exception()  # which nobody has to hear of, should the one who waited have gone

    async def _spend_now(self, compiled: CompiledPolicy, key: Key, now: int, costs: Sequence[int]) -> list[Decision]:
        lease = self._current(compiled, key, now)
        prefetch = lease.prefetch(compiled.lease, now)
        lease.requested += sum(costs)
        try:
            with self._call():
                decisions = await self._counters.spend(compiled, key, now, costs, prefetch)
        except StoreThrottled:
            lease.throttled()
            raise
        finally:
            lease.units += prefetch.held
            if self._leases.get((key, compiled)) is not lease:  # which was ended meanwhile
                self._give_back(compiled, key, lease)
        lease.observe_total(self._counters.counted(key, now), now)
        self._return_idle(now, _LOOKS)
        self._look_later()
        return decisions

    @property
    def is_empty(self) -> bool:
        return not self._leases

    def forget(self) -> None:
        """Leave what is held to the process that this one was forked from: it grants it too."""
        self._leases.clear()
        self._spending.clear()

    async def release(self, key: Key) -> None:
        of_key = [held for held in self._leases if held[0] == key]
        await self._return_all(iter([(held, self._leases.pop(held)) for held in of_key]))

    async def close(self) -> None:
        leases, self._leases = self._leases, OrderedDict()
        left = iter(leases.items())
        if is_blocking():
            await self._return_all(left)
        else:
            await asyncio.gather(*(self._return_all(left) for _ in range(MAX_RETURNS_AT_ONCE)))

    async def _return_all(self, left: Iterator[tuple[_Held, Lease]]) -> None:
        for (key, compiled), lease in left:
            units, lease.units = lease.units, 0
            if units:
                returning = self._refund(compiled, key, units, lease.taken_at)
                await self._background.see_through(returning, units, "unreturned")

    async def _refund(self, compiled: CompiledPolicy, key: Key, units: int, at: int) -> None:
        with self._call():
            await self._counters.refund(compiled, key, self._clock.now(), units, Taken(at, units))

    def _current(self, compiled: CompiledPolicy, key: Key, now: int) -> Lease:
        lease = self._leases.get((key, compiled))
        if lease is None:
            lease = self._leases[key, compiled] = Lease(now)
        self._leases.move_to_end((key, compiled))
        if not lease.start <= now < lease.end:
            self._give_back(compiled, key, lease)
            lease.start, lease.end = compiled.epoch(now)
            lease.taken_at = now
        lease.used_at = now
        return lease

    def _return_idle(self, now: int, looks: int) -> None:
        for _ in range(min(looks, len(self._leases))):
            (key, compiled), lease = next(iter(self._leases.items()))
            if now - lease.used_at < IDLE_US:
                self._leases.move_to_end((key, compiled))
                continue
            del self._leases[key, compiled]
            self._give_back(compiled, key, lease)

    def _look_later(self) -> None:
        """Set a timer. Without an event loop there is none: the next spending looks, and `close`."""
        loop = asyncio._get_running_loop()
        if loop is not None and self._leases and self._loop is not loop:
            self._loop = loop
            loop.call_later(_LOOK_INTERVAL_S, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            return
        self._loop = None
        self._return_idle(self._clock.now(), _LOOKS_BY_TIMER)
        self._look_later()

    def _give_back(self, compiled: CompiledPolicy, key: Key, lease: Lease) -> None:
        units, lease.units = lease.units, 0
        if units:
            returning = self._refund(compiled, key, units, lease.taken_at)
            self._background.start(returning, units=units, loss="unreturned")
