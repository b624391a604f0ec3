"""`Holding`: slots and reserved units taken, renewed and given back on one store, each by one conditional write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec.structs import force_setattr

from ratelimit.algorithms import Taken
from ratelimit.algorithms.concurrency import Held
from ratelimit.algorithms.fields import RESERVED, HeldField, bucket_limit_field, held_fields
from ratelimit.blocking import Signal
from ratelimit.clock import SECOND
from ratelimit.decision import Decision
from ratelimit.limiter.compiled_policy import CompiledPolicy
from ratelimit.limiter.counters import ATTEMPTS, CONTENDED, Counters, admit, changing, decide
from ratelimit.limiter.record_cache import NEVER, CachedRecord
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.quota import UNLIMITED, Quota
from ratelimit.store.base import Add, Drop, Expect, Record, Write

# For at most so many microseconds the refusal of a slot is repeated from memory: one may come back at any moment.
REFUSAL_CACHE_US: Final = SECOND // 10


class Hold:
    """One slot, and the `units` reserved with it: none of those where what is taken is spent for good."""

    __slots__ = ("compiled", "decision", "due", "forgotten", "held", "holding", "key", "later", "renewing", "units")

    def __init__(self, compiled: CompiledPolicy, key: Key, units: int) -> None:
        self.compiled = compiled
        self.key = key
        self.units = units
        self.due = 0
        """The epoch second at which it is to be renewed."""
        self.forgotten = False
        """Whether it has been given back, or nobody is left who could: it is not renewed any more."""
        self.decision: Decision | None = None
        self.holding: Holding | None = None
        self.held: Held | None = None
        """None where nothing is held: not yet, or not any more."""
        self.later: Held | None = None
        """What it may have been renewed to: that is under way, or its answer was lost."""
        self.renewing: Signal | None = None
        """Set when the renewal under way has ended."""


class Holding:
    """Takes and gives back on the store of its `counters`. Every method may raise `StoreUnavailable`: then it is not
    known whether it was done, and nothing is done a second time. What was taken comes back when its time is over."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        counters.sweep = self.sweep
        self.on_expired: Callable[[Key, int, CachedRecord], None] | None = None
        """Told of a record in which somebody's time is over: to call `sweep` behind the answer."""

    async def take(self, hold: Hold, now: int, cost: int) -> Decision:
        """Spend `cost` and take a slot if there is room for both, or nothing at all: one round trip.

        Three where somebody has died with what is wanted here.
        """
        compiled, key = hold.compiled, hold.key
        cached = self._counters.cached(key)
        if not compiled.is_concurrent or 0 <= now - cached.refused_at < REFUSAL_CACHE_US:
            refusal = self._counters.known_refusal(compiled, key, now, cost, cached)
            if refusal is not None:
                return _named(refusal)
        held = compiled.held(now, hold.units)
        for one in held.fields:  # of what comes and goes, the store knows better
            cached.record.pop(one.total, None)
        is_true = False
        for attempt in range(ATTEMPTS):
            write = compiled.hold(now, cost, cached, held, attempt >= CONTENDED)
            if write is None and not is_true:
                cached.learn_refusal(await self._counters.store.read(key), now)
                is_true = True
            elif write is None:
                if not await self.sweep(key, now, cached):
                    return _named(decide(compiled, key, now, cost, cached.record))
            elif await self._apply(key, write, now, cached):
                hold.holding, hold.held = self, held if held.fields else None
                hold.decision = admit(compiled, key, now, cost, cached.record)
                self._counters.announce(compiled, key, now, cost, cached.record)
                if self.on_expired is not None and _expired(cached.record, now):
                    self.on_expired(key, now, cached)
                return hold.decision
            else:
                is_true = True
        raise changing(key)

    async def give_back(self, hold: Hold, now: int, used: int) -> bool:
        """Give back the slot, and of the reserved units what was not used. Return whether they were still held.

        What has been refunded of the decision meanwhile is not given back again, nor is it refunded afterwards.
        """
        if hold.renewing is not None:  # or another one's would be taken, where this one's is no more
            await hold.renewing.wait()
        held, decision, compiled = hold.held, hold.decision, hold.compiled
        if held is None or decision is None:
            return False
        hold.held = None
        back = max(0, hold.units - used - decision.refunded)
        force_setattr(decision, "refunded", decision.refunded + back)
        cached = self._counters.cached(hold.key)
        taken = Taken(decision.at_us, hold.units)
        taken.cached = cached.record
        record: Record | None = None
        positions = [state.position for state in decision.quotas]
        for attempt in range(ATTEMPTS):
            known = () if attempt >= CONTENDED else positions
            write = compiled.refund(now, back, record, taken, known, cached, held.give_back())
            assert write is not None
            outcome = await self._counters.store.apply(hold.key, write, now=now)
            if outcome.applied:
                cached.record.update(outcome.record)
                cached.refused_at = NEVER
                return True
            record = outcome.record
            cached.learn(record, now)
            if not held.is_in(record):
                if hold.later is None or now >= held.end * SECOND:
                    return False
                held, hold.later = hold.later, None  # nobody else takes it out before its end
        raise changing(hold.key)

    async def renew(self, hold: Hold, now: int) -> bool:
        """Hold it a while longer. Return whether it is still held: what was given back when its time was over is not.

        Where that is not known, it is held as long as before.
        """
        held = hold.held
        if hold.renewing is not None:
            await hold.renewing.wait()
        elif held is not None and not hold.forgotten and (later := hold.compiled.renewed(now, held)).end > held.end:
            renewing = hold.renewing = Signal()
            try:
                hold.held = await self._move(hold, held, later, now)
            finally:
                hold.renewing = None
                renewing.set()
        return hold.held is not None

    async def _move(self, hold: Hold, held: Held, later: Held, now: int) -> Held | None:
        """Return how it is held from now on; None where it is not any more."""
        cached = self._counters.cached(hold.key)
        renewed, hold.later = hold.later, later
        write = hold.compiled.refund(now, 0, None, Taken(now, 0), (), cached, held.move_to(later))
        assert write is not None
        write = Write(write.ops, write.expires_at, counts_until=later.end)
        outcome = await self._counters.store.apply(hold.key, write, now=now)
        hold.later = None
        if outcome.applied:
            cached.record.update(outcome.record)
            return later
        cached.learn(outcome.record, now)
        return renewed if now < held.end * SECOND else None

    async def sweep(self, key: Key, now: int, cached: CachedRecord) -> bool:
        """Give back what nobody has given back in time. Return whether there was any."""
        expired = _expired(cached.record, now)
        for one in expired:
            await self._sweep(key, now, one, cached)
        return bool(expired)

    async def _sweep(self, key: Key, now: int, field: HeldField, cached: CachedRecord) -> None:
        record: Record | None = None
        for _ in range(ATTEMPTS):
            units = (cached.record if record is None else record).get(field.name, 0)
            if units <= 0:
                return
            taken = Taken(field.start * SECOND, units)
            taken.cached = cached.record
            taken_back = (
                Expect(field.name, low=units, high=units),
                Drop(field.name),
                Add(field.total, -units),
            )
            compiled = _taken_from(key, field, cached.record)
            back = units if field.total == RESERVED else 0
            write = compiled.refund(now, back, record, taken, (), cached, taken_back)
            assert write is not None
            outcome = await self._counters.store.apply(key, write, now=now)
            if outcome.applied:
                cached.record.update(outcome.record)
                cached.record.pop(field.name, None)
                cached.refused_at = NEVER
                return
            record = outcome.record
            cached.learn(record, now)

    async def _apply(self, key: Key, write: Write, now: int, cached: CachedRecord) -> bool:
        outcome = await self._counters.store.apply(key, write, now=now)
        if outcome.applied:
            cached.learn(outcome.record, now)
        else:
            cached.learn_refusal(outcome.record, now)
        return outcome.applied


def _expired(record: Record, now: int) -> list[HeldField]:
    return [one for one in held_fields(record) if one.end * SECOND < now and record[one.name] > 0]


def _named(decision: Decision) -> Decision:
    """Return the refusal, and say so where it was for a slot alone."""
    full = [state.quota.is_concurrent for state in decision.quotas if state.retry_after]
    if decision.reason == "quota" and full and all(full):
        return msgspec.structs.replace(decision, reason="concurrency")
    return decision


def _taken_from(key: Key, field: HeldField, record: Record) -> CompiledPolicy:
    """Return the policy of windows from which units were reserved, whatever the action's quotas are by now."""
    quotas = tuple([Quota(record.get(bucket_limit_field(one), 1) or 1, one) for one in field.windows])
    algorithm: AlgorithmName = "gcra" if field.buckets else "fixed_window"
    return CompiledPolicy(Policy(key.action, quotas or UNLIMITED, algorithm=algorithm))
