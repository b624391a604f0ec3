"""`Hold`: a slot, or units reserved, and how a record says so. `HoldCounters` takes, renews and gives it back on one
store, each by one conditional write. What that does to a record is `Held`, in `algorithms/concurrency.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec
from msgspec.structs import force_setattr

from ratelimit.algorithms import Taken
from ratelimit.algorithms.concurrency import Held
from ratelimit.blocking import Signal
from ratelimit.clock import SECOND
from ratelimit.decision import Decision
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.limiter.compiled_policy import CachedRecord, CompiledPolicy
from ratelimit.limiter.counters import ATTEMPTS, CONTENDED, Counters, admit, changing, decide, expired_holds
from ratelimit.names import Key
from ratelimit.store.base import Write

# For at most so many microseconds the refusal of a slot is repeated from memory: one may come back at any moment.
REFUSAL_CACHE_US: Final = SECOND // 10


@dataclass(slots=True, eq=False)
class Hold:
    """One slot, and the `units` reserved with it: none of those where what is taken is spent for good."""

    compiled: CompiledPolicy
    key: Key
    units: int
    due: int = 0
    """The epoch second at which it is to be renewed."""
    forgotten: bool = False
    """Whether it has been given back, or nobody is left who could: it is not renewed any more."""
    decision: Decision | None = None
    counters: HoldCounters | None = None
    held: Held | None = None
    """None where nothing is held: not yet, or not any more."""
    later: Held | None = None
    """What it may have been renewed to: that is under way, or its answer was lost."""
    written: Signal | None = None
    """Set when the write of it that is under way has ended."""

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Wait for the write of it that is under way: or the next would take another one's, where this one's is no
        more."""
        while self.written is not None:
            await self.written.wait()
        written = self.written = Signal()
        try:
            yield
        finally:
            self.written = None
            written.set()

    def lose(self) -> None:
        """Take note that it comes back by itself, if it has not yet: what is left of its units is not refunded too."""
        self.held = None
        if self.units and self.decision is not None:
            force_setattr(self.decision, "refunded", self.decision.spent)


class HoldCounters:
    """Takes and gives back on the store of its `counters`. Every method may raise `StoreUnavailable`: then it is not
    known whether it was done, and nothing is done a second time. What was taken comes back when its time is over."""

    def __init__(self, counters: Counters, on_expired: Callable[[Key, int, CachedRecord], None] | None = None) -> None:
        """`on_expired` is told of a record in which somebody's time is over: to have it swept behind the answer."""
        self._counters = counters
        self._on_expired = on_expired

    async def take(self, hold: Hold, now: int, cost: int) -> Decision:
        """Spend `cost` and take a slot if there is room for both, or nothing at all: one round trip.

        Three where somebody has died with what is wanted here.
        """
        compiled, key, counters = hold.compiled, hold.key, self._counters
        cached = counters.cached(key)
        if not compiled.is_concurrent or 0 <= now - cached.refused_at < REFUSAL_CACHE_US:
            refusal = counters.known_refusal(compiled, key, now, cost, cached)
            if refusal is not None:
                return _named(refusal)
        held = compiled.held(now, hold.units)
        for one in held.fields:  # of what comes and goes, the store knows better
            cached.record.pop(one.total, None)
        is_true = False
        for attempt in range(ATTEMPTS):
            write = compiled.hold(now, cost, cached, held, attempt >= CONTENDED)
            if write is None and not is_true:
                cached.learn_refusal(await counters.store.read(key), now)
                is_true = True
            elif write is None:
                if not await counters.sweep(key, now, cached):
                    return _named(decide(compiled, key, now, cost, cached.record))
            elif await self._apply(key, write, now, cached):
                hold.counters, hold.held = self, held if held.fields else None
                hold.decision = admit(compiled, key, now, cost, cached.record)
                counters.announce(compiled, key, now, cost, cached.record)
                if self._on_expired is not None and expired_holds(cached.record, now):
                    self._on_expired(key, now, cached)
                return hold.decision
            else:
                is_true = True
        raise changing(key)

    async def give_back(self, hold: Hold, now: int, used: int) -> bool:
        """Give back the slot, and of the reserved units what was neither used nor refunded. Return whether they were
        still held."""
        async with hold.writing():
            held, decision = hold.held, hold.decision
            if held is None or decision is None:
                return False
            back = max(0, hold.units - used - decision.refunded)
            return await self._take_out(hold, decision, held, now, back, None)

    async def refund(self, hold: Hold, now: int, cost: int) -> bool:
        """Give back so many of the units that are reserved; the others, and the slot, stay held. Return whether they
        were still held."""
        async with hold.writing():
            held, decision = hold.held, hold.decision
            if held is None or decision is None:
                return False
            back = min(cost, hold.units - decision.refunded)
            try:
                return await self._take_out(hold, decision, held, now, back, back)
            except StoreThrottled:  # which is the store's word that nothing was written
                raise
            except StoreUnavailable:
                hold.lose()
                raise

    async def _take_out(
        self, hold: Hold, decision: Decision, held: Held, now: int, back: int, units: int | None
    ) -> bool:
        """Give back so many units, and hold so many of the reserved ones no longer: None stands for all, and the slot.
        Return whether they were still held."""
        cached = self._counters.cached(hold.key)
        taken = Taken(decision.at_us, hold.units - decision.refunded)
        taken.cached = cached.record
        record = None
        positions = [state.position for state in decision.quotas]
        for attempt in range(ATTEMPTS):
            known = () if attempt >= CONTENDED else positions
            part, rest = held.split(units)
            write = hold.compiled.refund(now, back, record, taken, known, cached, part.give_back())
            record = await self._counters.give_back(hold.key, write, now, cached)
            if record is None:
                hold.held = rest
                force_setattr(decision, "refunded", decision.refunded + back)
                return True
            if not part.is_in(record):
                if hold.later is None or now >= held.end * SECOND:
                    hold.lose()
                    return False
                held, hold.later = hold.later, None  # nobody else takes it out before its end
        raise changing(hold.key)

    async def renew(self, hold: Hold, now: int) -> bool:
        """Hold it a while longer. Return whether it is still held: what was given back when its time was over is not.

        Where that is not known, it is held as long as before.
        """
        async with hold.writing():
            held = hold.held
            if held is not None and held.fields and not hold.forgotten:
                later = hold.compiled.renewed(now, held)
                if later.end > held.end and not await self._move(hold, held, later, now):
                    hold.lose()
        return hold.held is not None

    async def _move(self, hold: Hold, held: Held, later: Held, now: int) -> bool:
        """Hold it until later. Return whether it is still held."""
        cached = self._counters.cached(hold.key)
        renewed, hold.later = hold.later, later
        write = hold.compiled.refund(now, 0, None, Taken(now, 0), (), cached, held.move_to(later))
        assert write is not None
        write = Write(write.ops, write.expires_at, counts_until=later.end)
        outcome = await self._counters.store.apply(hold.key, write, now=now)
        hold.later = None
        if outcome.applied:
            cached.record.update(outcome.record)
            hold.held = later
            return True
        cached.learn(outcome.record, now)
        hold.held = renewed if now < held.end * SECOND else None
        return hold.held is not None

    async def _apply(self, key: Key, write: Write, now: int, cached: CachedRecord) -> bool:
        outcome = await self._counters.store.apply(key, write, now=now)
        if outcome.applied:
            cached.learn(outcome.record, now)
        else:
            cached.learn_refusal(outcome.record, now)
        return outcome.applied


def _named(decision: Decision) -> Decision:
    """Return the refusal, and say so where it was for a slot alone."""
    full = [state.quota.is_concurrent for state in decision.quotas if state.retry_after]
    if decision.reason == "quota" and full and all(full):
        return msgspec.structs.replace(decision, reason="concurrency")
    return decision
