"""`Ledger`: the verbs, run on one store. Plan by what is believed; if refused, learn the truth, and plan once more."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from typing import Final

import msgspec

from ratelimit.algorithms import Taken
from ratelimit.algorithms.fields import buckets_end, current_totals, is_total
from ratelimit.decision import Decision, Reason
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.limiter.alerts import Alerts
from ratelimit.limiter.compiled_policy import Planner, drops
from ratelimit.limiter.record_cache import NEVER, Belief, Beliefs
from ratelimit.names import Key
from ratelimit.store.base import Store
from ratelimit.store.memory import MemoryStore
from ratelimit.store.write import Record, Write

# Two suffice unless others change the same record in between; this many in a row means a record beyond fair use.
_ATTEMPTS: Final = 8
# From here on, only what others may do at the same time.
_CONTENDED: Final = 2
# So many fields past their use on a record seen for the first time are worth a write of their own.
_WORTH_CLEANING: Final = 8


class Advance:
    """Units taken from a quota before anybody asked for them: so many `held`, and so many wanted `ahead`, but never
    more than one in `share` of what is left, so that the last ones are not all held by whoever came first."""

    __slots__ = ("ahead", "held", "share")

    def __init__(self, held: int = 0, ahead: int = 0, share: int = 1) -> None:
        self.held = held
        self.ahead = ahead
        self.share = share


class Ledger:
    """Spends and gives back on one store. Every method but `known_refusal` may raise `StoreUnavailable`.

    `denial_cache` is for how many microseconds a refusal may be repeated without asking again.
    """

    def __init__(self, store: Store, max_beliefs: int, denial_cache: int, alerts: Alerts) -> None:
        self.store = store
        self._records = store.records if type(store) is MemoryStore else None
        """Those of the embedded store, which nobody has to wait for."""
        self._alerts = alerts
        self._beliefs = Beliefs(max_beliefs)
        self._denial_cache = denial_cache

    def known_refusal(self, planner: Planner, key: Key, now: int, cost: int) -> Decision | None:
        """The refusal that the store would surely give: what was spent when it last answered can only have grown.

        It may be up to `denial_cache` late in seeing what another process gave back; it never admits.
        """
        belief = self._beliefs.get(key)
        if belief is None or not self._is_fresh(planner, belief, now) or planner.fits(now, cost, belief.record):
            return None
        return decide(planner, key, now, cost, belief.record)

    async def spend_one(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """Spend `cost` if it fits: one round trip, and at most one more where the belief was stale."""
        belief = self._beliefs.of(key)
        for attempt in range(_ATTEMPTS):
            if await self._write(planner, key, now, cost, belief, attempt >= _CONTENDED):
                return _admit(planner, key, now, cost, belief.record)
            if not planner.fits(now, cost, belief.record):
                await self._renew(planner, key, now, belief)
                return decide(planner, key, now, cost, belief.record)
        raise _changing(key)

    async def spend(
        self, planner: Planner, key: Key, now: int, costs: Sequence[int], advance: Advance | None = None
    ) -> list[Decision]:
        """Spend each of `costs` that fits, in this order: all of them as one conditional write of their sum.

        Round trips as in `spend_one`, and one more where not all of them fit. With an `advance`, units that are held
        already pay first, and some more are taken ahead; `advance.held` is then what is left to hold.
        """
        belief = self._beliefs.of(key)
        advance = advance or Advance()
        fitting, total = costs, sum(costs)
        for attempt in range(_ATTEMPTS):
            amount = total - advance.held
            if amount > 0:
                amount += planner.ahead(now, amount, advance.ahead, advance.share, belief.record)
            else:  # what is held is not topped up, or a key that is always asked for would always be written
                advance.held -= total
                return _answers(planner, key, now, costs, fitting, belief.record, held=advance.held)
            if await self._write(planner, key, now, amount, belief, attempt >= _CONTENDED):
                advance.held += amount - total
                decisions = _answers(planner, key, now, costs, fitting, belief.record, held=advance.held)
                return await self._not_unpaid(planner, key, now, costs, fitting, decisions, advance)
            fitting = _fitting(planner, now, costs, belief.record, held=advance.held)
            total = sum(fitting)
            if not total:
                await self._renew(planner, key, now, belief)
                return _answers(planner, key, now, costs, fitting, belief.record, held=advance.held)
        raise _changing(key)

    async def _not_unpaid(
        self,
        planner: Planner,
        key: Key,
        now: int,
        costs: Sequence[int],
        fitting: Sequence[int],
        decisions: list[Decision],
        advance: Advance,
    ) -> list[Decision]:
        """The decisions, none of them a yes to what was not spent: where somebody has given back while the others were
        written, a cost that was left out fits by now, and is spent in another write."""
        late = [place for place, spent in enumerate(fitting) if not spent and decisions[place].allowed]
        if late:
            again = await self.spend(planner, key, now, [costs[place] for place in late], advance)
            for place, decision in zip(late, again, strict=True):
                decisions[place] = decision
        return decisions

    def granted(self, planner: Planner, key: Key, now: int, cost: int, *, held: int) -> Decision:
        """The decision on a cost that was paid from units taken ahead, of which `held` are left."""
        return _admit(planner, key, now, cost, planner.less(now, held, self._beliefs.of(key).record))

    def counted(self, key: Key, now: int) -> int:
        """Units that all processes together had spent on this UTC day when this one last heard of it."""
        return self._beliefs.of(key).record.get(current_totals(now)[0], 0)

    async def charge(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """Spend without asking whether it fits."""
        belief = self._beliefs.of(key)
        for attempt in range(_ATTEMPTS):
            write = planner.charge(now, cost, belief, attempt >= _CONTENDED)
            outcome = await self.store.apply(key, write, now=now)
            if outcome.applied:
                await self._learn(key, belief, write, outcome.record, now)
                belief.until = buckets_end(belief.record)
                self._announce(planner, key, now, cost, belief.record)
                return _admit(planner, key, now, cost, belief.record)
            belief.know(outcome.record, now)
        raise _changing(key)

    async def refund(
        self, planner: Planner, key: Key, now: int, cost: int, taken: Taken, positions: Sequence[int] = ()
    ) -> None:
        """Give back what was spent, as far as anything is left of it. See `Planner.refund`."""
        belief = self._beliefs.of(key)
        record: Record | None = None
        taken.belief = belief.record
        for attempt in range(_ATTEMPTS):
            write = planner.refund(now, cost, record, taken, () if attempt >= _CONTENDED else positions, belief)
            if write is None:
                return
            outcome = await self.store.apply(key, write, now=now)
            if outcome.applied:
                belief.record.update(outcome.record)
                belief.refused_at = NEVER  # there is room again, though an older answer may still come and say no
                return
            record = outcome.record
            belief.know(record, now)
        raise _changing(key)

    async def peek(self, planner: Planner, key: Key, now: int, cost: int, held: int = 0) -> Decision:
        """What a check would answer now, to somebody who holds so many units taken ahead."""
        record = await self.store.read(key)
        self._beliefs.of(key).know(record, now)
        return _inactive(planner, decide(planner, key, now, cost, planner.less(now, held, record)))

    async def reset(self, key: Key, now: int) -> None:
        """Forget what was spent; the totals, which are history, stay."""
        record = await self.store.read(key)
        if fields := [field for field in record if not is_total(field)]:
            await self.store.apply(key, drops(now, fields), now=now)
        self._beliefs.of(key).know({field: value for field, value in record.items() if is_total(field)}, now)

    async def record(self, key: Key) -> Record:
        """Everything that is kept of this user and action."""
        return await self.store.read(key)

    def too_large(self, planner: Planner, key: Key, now: int, cost: int) -> Decision:
        """The refusal of a cost that can never pass; the quotas as this process last saw them: nobody is asked."""
        return _inactive(planner, decide(planner, key, now, cost, self._beliefs.of(key).record))

    async def _renew(self, planner: Planner, key: Key, now: int, belief: Belief) -> None:
        """Nothing fits, by what is the truth now; what has changed about the quotas takes effect all the same. If the
        record has changed meanwhile, the next check sees to it."""
        if write := planner.renew(now, belief):
            outcome = await self.store.apply(key, write, now=now)
            if outcome.applied:
                belief.record.update(outcome.record)

    async def _write(
        self, planner: Planner, key: Key, now: int, amount: int, belief: Belief, contended: bool = False
    ) -> bool:
        """Whether `amount` was spent. Where it was not, the belief is now the truth that speaks against it, or that
        makes it worth another attempt."""
        write = planner.spend(now, amount, belief, contended)
        if write is None:
            if not self._is_fresh(planner, belief, now):
                belief.refuse(await self.store.read(key), now)
            return False
        records = self._records
        outcome = await self.store.apply(key, write, now=now) if records is None else records.apply(key, write, now)
        if not outcome.applied:
            belief.refuse(outcome.record, now)
            return False
        if write.whole or belief.stale:
            await self._learn(key, belief, write, outcome.record, now)
        else:
            belief.record.update(outcome.record)
        self._announce(planner, key, now, amount, belief.record)
        return True

    def _announce(self, planner: Planner, key: Key, now: int, amount: int, record: Record) -> None:
        if planner.policy.alert_at:
            self._alerts.spent(planner, key, now, amount, planner.states(now, amount, record))

    def _is_fresh(self, planner: Planner, belief: Belief, now: int) -> bool:
        return planner.final and 0 <= now - belief.refused_at < self._denial_cache

    async def _learn(self, key: Key, belief: Belief, write: Write, record: Record, now: int) -> None:
        """Take over what an applied write returned.

        A record seen whole for the first time may hold much that is past its use, left by processes that never came
        back; it is cleaned at once, since this one may not come back either.
        """
        if not write.whole:
            belief.record.update(record)
            belief.dropped(write, now)
            return
        belief.know(record, now)
        if len(fields := belief.stale) >= _WORTH_CLEANING:
            clean = drops(now, fields)
            with suppress(StoreUnavailable):
                await self.store.apply(key, clean, now=now)
                belief.dropped(clean, now)


def _fitting(planner: Planner, now: int, costs: Sequence[int], record: Record, *, held: int) -> list[int]:
    """Of costs in order of arrival those that a true record has room for, 0 in the place of one that it has not."""
    fitting, total = [], 0
    for cost in costs:
        if planner.fits(now, total + cost - held, record):
            fitting.append(cost)
            total += cost
        else:
            fitting.append(0)
    return fitting


def _answers(
    planner: Planner, key: Key, now: int, costs: Sequence[int], fitting: Sequence[int], record: Record, *, held: int
) -> list[Decision]:
    """A decision for each cost; those that spent together share the state that their write left behind, but each is a
    decision of its own, which can be refunded."""
    record = planner.less(now, held, record)
    made: dict[tuple[int, int], Decision] = {}
    for cost, spent in zip(costs, fitting, strict=True):
        if (cost, spent) in made:
            continue
        made[cost, spent] = (
            _admit(planner, key, now, cost, record) if spent else decide(planner, key, now, cost, record)
        )
    return [copy(made[pair]) for pair in zip(costs, fitting, strict=True)]


def _admit(planner: Planner, key: Key, now: int, cost: int, record: Record) -> Decision:
    states = planner.states(now, cost, record)
    return Decision(
        allowed=True, policy=planner.policy.name, cost=cost, quotas=states, at_us=now, user=key.user, spent=cost
    )


def _inactive(planner: Planner, refusal: Decision) -> Decision:
    return msgspec.structs.replace(refusal, quotas=(), reason="inactive") if planner.inactive else refusal


def _changing(key: Key) -> StoreThrottled:
    return StoreThrottled(f"the record of {key.action!r} kept changing under {_ATTEMPTS} attempts to write it")


def decide(planner: Planner, key: Key, now: int, cost: int, record: Record) -> Decision:
    """The answer that a true record gives, nothing being spent."""
    states = planner.states(now, cost, record)
    waits = [state.retry_after for state in states]
    never = None in waits
    wait = None if never else max((wait for wait in waits if wait is not None), default=0.0)
    allowed = wait == 0.0
    reason: Reason | None = None if allowed else "too_large" if never else "quota"
    return Decision(
        allowed=allowed,
        policy=planner.policy.name,
        cost=cost,
        quotas=states,
        retry_after=wait,
        reason=reason,
        at_us=now,
        user=key.user,
    )
