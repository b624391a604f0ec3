"""`Counters`: the verbs, run on one store. Plan by what is known; if refused, learn the truth, and plan once more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Final

import msgspec

from ratelimit.algorithms import Taken
from ratelimit.algorithms.concurrency import without_spent
from ratelimit.algorithms.fields import (
    RESERVED,
    RESET,
    SLOTS,
    HeldField,
    bucket_limit_field,
    buckets_end,
    current_totals,
    held_fields,
)
from ratelimit.cache import LRUCache
from ratelimit.clock import SECOND
from ratelimit.decision import Decision, Reason
from ratelimit.errors import StoreThrottled
from ratelimit.limiter.background import Alerts
from ratelimit.limiter.compiled_policy import DROPS_AT_ONCE, NEVER, CachedRecord, CompiledPolicy, drops
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.quota import UNLIMITED, Quota
from ratelimit.store.base import Add, Drop, Expect, Outcome, Put, Record, Store, Write
from ratelimit.store.memory import MemoryStore

# Two suffice unless others change the same record in between; this many in a row means a record beyond fair use.
ATTEMPTS: Final = 8
# From here on, only what others may do at the same time.
CONTENDED: Final = 2
# So many stale fields on a record seen for the first time are worth a write of their own.
_MIN_STALE: Final = 8


class Prefetch:
    """Units taken from a quota before anybody asked for them: so many `held`, and so many wanted `ahead`, but never
    more than one in `share` of what is left, so that the last ones are not all held by whoever came first."""

    __slots__ = ("ahead", "held", "share")

    def __init__(self, held: int = 0, ahead: int = 0, share: int = 1) -> None:
        self.held = held
        self.ahead = ahead
        self.share = share


class Counters:
    """Spends and gives back on one store. Every method but `known_refusal` may raise `StoreUnavailable`.

    `denial_cache` is for how many microseconds a refusal may be repeated without asking again.
    """

    def __init__(self, store: Store, max_records: int, denial_cache: int, alerts: Alerts | None = None) -> None:
        self.store = store
        self.embedded = store.records if type(store) is MemoryStore else None
        """Those of the embedded store, which nobody has to wait for."""
        self._alerts = alerts
        self.cache: LRUCache[Key, CachedRecord] = LRUCache(max_records)
        """What is believed of the records."""
        self._denial_cache = denial_cache
        self.on_stale: Callable[[Key, CachedRecord, int], None] | None = None
        """Told of a record in need of a clean-up: to call `clean` behind the answer."""

    def known_refusal(
        self, compiled: CompiledPolicy, key: Key, now: int, cost: int, cached: CachedRecord
    ) -> Decision | None:
        """Return the refusal that the store would surely give: what was spent when it last answered only grows.

        It may be up to `denial_cache` late in seeing what another process gave back; it never admits.
        """
        if not self.is_fresh(compiled, cached, now) or compiled.fits(now, cost, cached.record):
            return None
        return decide(compiled, key, now, cost, cached.record)

    def spend_at_once(
        self, compiled: CompiledPolicy, key: Key, now: int, cost: int, cached: CachedRecord
    ) -> Decision | None:
        """Spend `cost` in the embedded store, which nobody has to wait for. None where the store is another one, or
        has no room by what is believed: then `spend_one` decides."""
        if self.embedded is None or (write := compiled.spend(now, cost, cached)) is None:
            return None
        outcome = self.embedded.apply(key, write, now)
        if not self._took(compiled, key, now, cost, cached, write, outcome):
            return None
        return admit(compiled, key, now, cost, cached.record)

    async def spend_one(
        self, compiled: CompiledPolicy, key: Key, now: int, cost: int, cached: CachedRecord | None = None
    ) -> Decision:
        """Spend `cost` if it fits: one round trip, and at most one more where the cached record was out of date."""
        if cached is None:
            cached = self.cache.get_or_make(key, CachedRecord)
        for attempt in range(ATTEMPTS):
            write = compiled.spend(now, cost, cached, attempt >= CONTENDED)
            if write is None:
                await self._look(compiled, key, now, cached)
            elif self._took(compiled, key, now, cost, cached, write, await self.store.apply(key, write, now=now)):
                return admit(compiled, key, now, cost, cached.record)
            if not compiled.fits(now, cost, cached.record):
                if RESERVED in cached.record and await self.swept(key, now, cached):
                    continue
                await self.renew(compiled, key, now, cached)
                return decide(compiled, key, now, cost, cached.record)
        raise changing(key)

    async def spend(
        self, compiled: CompiledPolicy, key: Key, now: int, costs: Sequence[int], prefetch: Prefetch | None = None
    ) -> list[Decision]:
        """Spend each of `costs` that fits, in this order: all of them as one conditional write of their sum.

        Round trips as in `spend_one`, and one more where not all of them fit. With a `prefetch`, units that are held
        already pay first, and some more are taken ahead; `prefetch.held` is then what is left to hold.
        """
        cached = self.cache.get_or_make(key, CachedRecord)
        prefetch = prefetch or Prefetch()
        fitting, total = costs, sum(costs)
        for attempt in range(ATTEMPTS):
            amount = total - prefetch.held
            if amount > 0:
                amount += compiled.ahead(now, amount, prefetch.ahead, prefetch.share, cached.record)
            else:  # what is held is not topped up, or a key that is always asked for would always be written
                prefetch.held -= total
                return _answers(compiled, key, now, costs, fitting, cached.record, held=prefetch.held)
            write = compiled.spend(now, amount, cached, attempt >= CONTENDED)
            if write is None:
                await self._look(compiled, key, now, cached)
            elif self._took(compiled, key, now, amount, cached, write, await self.store.apply(key, write, now=now)):
                prefetch.held += amount - total
                decisions = _answers(compiled, key, now, costs, fitting, cached.record, held=prefetch.held)
                return await self._spend_late(compiled, key, now, costs, fitting, decisions, prefetch)
            fitting = _fitting(compiled, now, costs, cached.record, held=prefetch.held)
            total = sum(fitting)
            if not total:
                if RESERVED in cached.record and await self.swept(key, now, cached):
                    fitting, total = costs, sum(costs)
                    continue
                await self.renew(compiled, key, now, cached)
                return _answers(compiled, key, now, costs, fitting, cached.record, held=prefetch.held)
        raise changing(key)

    async def _spend_late(
        self,
        compiled: CompiledPolicy,
        key: Key,
        now: int,
        costs: Sequence[int],
        fitting: Sequence[int],
        decisions: list[Decision],
        prefetch: Prefetch,
    ) -> list[Decision]:
        """Return the decisions, none of them a yes to what was not spent.

        Where somebody has given back while the others were written, a cost that was left out fits by now, and is spent
        in another write.
        """
        late = [place for place, spent in enumerate(fitting) if not spent and decisions[place].allowed]
        if late:
            again = await self.spend(compiled, key, now, [costs[place] for place in late], prefetch)
            for place, decision in zip(late, again, strict=True):
                decisions[place] = decision
        return decisions

    def granted(self, compiled: CompiledPolicy, key: Key, now: int, cost: int, *, held: int) -> Decision:
        """Return the decision on a cost that was paid from units taken ahead, of which `held` are left."""
        return admit(compiled, key, now, cost, compiled.without(now, held, self.cached(key).record))

    def counted(self, key: Key, now: int) -> int:
        """Return the units that all processes together had spent on this UTC day when this one last heard of it."""
        return self.cached(key).record.get(current_totals(now)[0], 0)

    async def charge(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        cached = self.cached(key)
        for attempt in range(ATTEMPTS):
            write = compiled.charge(now, cost, cached, attempt >= CONTENDED)
            outcome = await self.store.apply(key, write, now=now)
            if outcome.applied:
                self._learn(key, cached, write, outcome.record, now)
                cached.until = buckets_end(cached.record)
                self.announce(compiled, key, now, cost, cached.record)
                return admit(compiled, key, now, cost, cached.record)
            cached.learn(outcome.record, now)
        raise changing(key)

    async def refund(
        self, compiled: CompiledPolicy, key: Key, now: int, cost: int, taken: Taken, positions: Sequence[int] = ()
    ) -> None:
        """Give back what was spent, as far as anything is left of it."""
        cached = self.cached(key)
        record: Record | None = None
        taken.cached = cached.record
        for attempt in range(ATTEMPTS):
            write = compiled.refund(now, cost, record, taken, () if attempt >= CONTENDED else positions, cached)
            record = await self.give_back(key, write, now, cached)
            if record is None:
                return
        raise changing(key)

    async def give_back(self, key: Key, write: Write | None, now: int, cached: CachedRecord) -> Record | None:
        """Make a write that gives back. Return None where that is done, or there is nothing to do, else the record."""
        if write is None:
            return None
        outcome = await self.store.apply(key, write, now=now)
        if outcome.applied:
            cached.record.update(outcome.record)
            cached.refused_at = NEVER  # there is room again, though an older answer may still come and say no
            return None
        cached.learn(outcome.record, now)
        return outcome.record

    async def peek(self, compiled: CompiledPolicy, key: Key, now: int, cost: int, held: int = 0) -> Decision:
        """Return what a check would answer now, to somebody who holds so many units taken ahead."""
        cached = self.cached(key)
        record = await self.store.read(key)
        cached.learn(record, now)
        if not compiled.fits(now, cost, compiled.without(now, held, record)) and await self.swept(key, now, cached):
            record = cached.record
        return inactive(compiled, decide(compiled, key, now, cost, compiled.without(now, held, record)))

    async def reset(self, key: Key, now: int) -> None:
        """Forget what was spent; the totals, which are history, stay, and what somebody holds. The record says when, so
        that what was taken before is not given back out of what others take after."""
        for _ in range(ATTEMPTS):
            record = await self.store.read(key)
            if not (ops := without_spent(now, record)):
                return self.cached(key).learn(record, now)
            ops = (Put(RESET, now), *ops)
            outcome = await self.store.apply(key, Write(ops, drops(now, []).expires_at, whole=True), now=now)
            if outcome.applied:
                return self.cached(key).learn(outcome.record, now)
        raise changing(key)

    async def clean(self, key: Key, cached: CachedRecord, now: int) -> None:
        """Drop what is past its use from a record, as much as one write may."""
        write = drops(now, cached.stale[:DROPS_AT_ONCE])
        if write.ops:
            await self.store.apply(key, write, now=now)
            cached.dropped(write, now)

    def too_large(self, compiled: CompiledPolicy, key: Key, now: int, cost: int) -> Decision:
        """Return the refusal of a cost that can never pass, by the record as this process last saw it."""
        return inactive(compiled, decide(compiled, key, now, cost, self.cached(key).record))

    def is_told(self, compiled: CompiledPolicy, key: Key, now: int) -> bool:
        """Return whether such a refusal has nothing to ask: nobody has anything left, or it was asked a moment ago."""
        return not compiled.max_cost or self.is_fresh(compiled, self.cached(key), now)

    async def look(self, key: Key, now: int) -> None:
        """Learn how a record is, of which something is refused."""
        self.cached(key).learn_refusal(await self.store.read(key), now)

    def cached(self, key: Key) -> CachedRecord:
        return self.cache.get_or_make(key, CachedRecord)

    async def swept(self, key: Key, now: int, cached: CachedRecord) -> bool:
        """Return whether a refusal does not hold, because units that were reserved are back by now."""
        if not (cached.record.get(RESERVED) or cached.record.get(SLOTS)):
            return False
        return await self.sweep(key, now, cached)

    async def sweep(self, key: Key, now: int, cached: CachedRecord) -> bool:
        """Give back what nobody has given back in time. Return whether there was any."""
        expired = expired_holds(cached.record, now)
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
            taken_back = (Expect(field.name, low=units, high=units), Drop(field.name), Add(field.total, -units))
            compiled = _taken_from(key, field, cached.record)
            back = units if field.total == RESERVED else 0
            write = compiled.refund(now, back, record, taken, (), cached, taken_back)
            record = await self.give_back(key, write, now, cached)
            if record is None:
                cached.record.pop(field.name, None)
                return

    async def renew(self, compiled: CompiledPolicy, key: Key, now: int, cached: CachedRecord) -> None:
        """Let what has changed about the quotas take effect though nothing fits.

        If the record has changed meanwhile, the next check sees to it.
        """
        if write := compiled.renew(now, cached):
            outcome = await self.store.apply(key, write, now=now)
            if outcome.applied:
                cached.record.update(outcome.record)

    async def _look(self, compiled: CompiledPolicy, key: Key, now: int, cached: CachedRecord) -> None:
        """Let the cached record be the truth that speaks against a write, or makes it worth another attempt."""
        if not self.is_fresh(compiled, cached, now):
            cached.learn_refusal(await self.store.read(key), now)

    def _took(
        self,
        compiled: CompiledPolicy,
        key: Key,
        now: int,
        amount: int,
        cached: CachedRecord,
        write: Write,
        outcome: Outcome,
    ) -> bool:
        """Take over what came of a write. Return whether `amount` was spent."""
        if not outcome.applied:
            cached.learn_refusal(outcome.record, now)
            return False
        if write.whole or cached.stale:
            self._learn(key, cached, write, outcome.record, now)
        else:
            cached.record.update(outcome.record)
        if self._alerts is not None:
            self.announce(compiled, key, now, amount, cached.record)
        return True

    def announce(self, compiled: CompiledPolicy, key: Key, now: int, amount: int, record: Record) -> None:
        if self._alerts is not None and compiled.policy.alert_at:
            self._alerts.observe(compiled, key, now, amount, compiled.states(now, amount, record))

    def is_fresh(self, compiled: CompiledPolicy, cached: CachedRecord, now: int) -> bool:
        """Return whether the store has refused something just now, and would again."""
        return compiled.final and 0 <= now - cached.refused_at < self._denial_cache

    def _learn(self, key: Key, cached: CachedRecord, write: Write, record: Record, now: int) -> None:
        """Take over what an applied write returned.

        A record seen whole for the first time may hold much that is past its use, left by processes that never came
        back; it is cleaned at once, since this one may not come back either.
        """
        if not write.whole:
            cached.record.update(record)
            cached.dropped(write, now)
            return
        cached.learn(record, now)
        if len(cached.stale) >= _MIN_STALE:
            if self.embedded is not None:
                clean = drops(now, cached.stale)
                self.embedded.apply(key, clean, now)
                cached.dropped(clean, now)
            elif self.on_stale is not None:
                self.on_stale(key, cached, now)


def expired_holds(record: Record, now: int) -> list[HeldField]:
    return [one for one in held_fields(record) if one.end * SECOND < now and record[one.name] > 0]


def _taken_from(key: Key, field: HeldField, record: Record) -> CompiledPolicy:
    """Return the policy of windows from which units were reserved, whatever the action's quotas are by now."""
    quotas = tuple([Quota(record.get(bucket_limit_field(one), 1) or 1, one) for one in field.windows])
    algorithm: AlgorithmName = "gcra" if field.buckets else "fixed_window"
    return CompiledPolicy(Policy(key.action, quotas or UNLIMITED, algorithm=algorithm))


def _fitting(compiled: CompiledPolicy, now: int, costs: Sequence[int], record: Record, *, held: int) -> list[int]:
    """Return the costs, in order of arrival, that a true record has room for, and 0 in the place of the others."""
    fitting, total = [], 0
    for cost in costs:
        if compiled.fits(now, total + cost - held, record):
            fitting.append(cost)
            total += cost
        else:
            fitting.append(0)
    return fitting


def _answers(
    compiled: CompiledPolicy,
    key: Key,
    now: int,
    costs: Sequence[int],
    fitting: Sequence[int],
    record: Record,
    *,
    held: int,
) -> list[Decision]:
    """Return a decision for each cost, which can be refunded on its own.

    Those that spent together share the state that their write left behind.
    """
    record = compiled.without(now, held, record)
    made: dict[tuple[int, int], Decision] = {}
    for cost, spent in zip(costs, fitting, strict=True):
        if (cost, spent) in made:
            continue
        made[cost, spent] = (
            admit(compiled, key, now, cost, record) if spent else decide(compiled, key, now, cost, record)
        )
    return [copy(made[pair]) for pair in zip(costs, fitting, strict=True)]


def admit(compiled: CompiledPolicy, key: Key, now: int, cost: int, record: Record) -> Decision:
    """Return the answer to what was spent, of which the record knows."""
    states = compiled.states(now, cost, record)
    return Decision(
        allowed=True, policy=compiled.policy.name, cost=cost, quotas=states, at_us=now, user=key.user, spent=cost
    )


def inactive(compiled: CompiledPolicy, refusal: Decision) -> Decision:
    """Return the refusal, and where the user may do nothing at all, say so."""
    return msgspec.structs.replace(refusal, quotas=(), reason="inactive") if compiled.inactive else refusal


def changing(key: Key) -> StoreThrottled:
    """Return what to raise for a record that others keep changing."""
    return StoreThrottled(f"the record of {key.action!r} kept changing under {ATTEMPTS} attempts to write it")


def decide(compiled: CompiledPolicy, key: Key, now: int, cost: int, record: Record) -> Decision:
    """Return the answer that a true record gives, nothing being spent."""
    states = compiled.states(now, cost, record)
    waits = [state.retry_after for state in states]
    never = None in waits
    wait = None if never else max((wait for wait in waits if wait is not None), default=0.0)
    allowed = wait == 0.0
    reason: Reason | None = None if allowed else "too_large" if never else "quota"
    return Decision(
        allowed=allowed,
        policy=compiled.policy.name,
        cost=cost,
        quotas=states,
        retry_after=wait,
        reason=reason,
        at_us=now,
        user=key.user,
    )


def in_mode(compiled: CompiledPolicy, refusal: Decision) -> Decision:
    """Return a refusal as its policy means it: in shadow mode it is only noted."""
    if compiled.policy.mode == "enforce":
        return refusal
    return msgspec.structs.replace(refusal, allowed=True, retry_after=0.0, shadow_denied=True)
