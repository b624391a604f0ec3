"""`CompiledPolicy`: one policy, compiled: from what is known of a record to the `Write` that decides a check."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import Final

from ratelimit.algorithms import Ops, Rule, Taken, Totals, rule
from ratelimit.algorithms.concurrency import Held, HeldUnits, held_step, held_until, reserved_as_in, reserved_in
from ratelimit.algorithms.fields import (
    RESERVED,
    RESET,
    SLOTS,
    bucket_field,
    buckets_end,
    current_totals,
    held_fields,
    is_total,
    reserved_field,
    slots_field,
    stale,
)
from ratelimit.algorithms.gcra import Gcra
from ratelimit.clock import DAY, SECOND
from ratelimit.decision import QuotaState
from ratelimit.policy import Lease, Policy
from ratelimit.store.base import Add, Drop, Expect, Op, Put, Record, Write

_DAY_S: Final = DAY // SECOND
# Thirteen months of totals have to outlive the last write.
KEPT_DAYS: Final = 400
# Bounds the size of one expression; what is left over goes with the next write.
DROPS_AT_ONCE: Final = 25
MAX_KEPT_WRITES: Final = 64
_NANOSECONDS_A_SECOND: Final = 10**9
NEVER: Final = -1


class CachedRecord:
    """The fields of one record that planning needs, and when it was last seen whole and last cleaned.

    It may be out of date. It only shapes the conditions of a write, and a write whose conditions do not hold is refused
    with the truth; so a wrong one costs one more round trip and never a wrong answer.
    """

    __slots__ = ("cleaned_at", "day", "record", "refused_at", "seen_at", "stale", "until")

    def __init__(self) -> None:
        self.record: dict[str, int] = {}
        self.stale: list[str] = []
        """Fields known to be there that a coming write should drop."""
        self.cleaned_at = NEVER
        """Microseconds: nothing was left to drop at that moment."""
        self.day = NEVER
        """The UTC day (since the epoch) on which the whole record was last seen."""
        self.seen_at = NEVER
        """Microseconds: this was the truth at that moment, but for what was spent here since."""
        self.refused_at = NEVER
        """Microseconds: the store said no, and this was the truth. What is spent only grows: it would say no again."""

        self.until = 0
        """Epoch seconds: a bucket is full again only then, so the record has to be kept as long."""

    def learn(self, record: Record, now: int) -> None:
        """Take over the whole true record, less the totals that neither a refund nor a clean-up will need."""
        self.stale = stale(record, now)
        passed = set(self.stale)
        current = current_totals(now)
        self.record = {
            field: value
            for field, value in record.items()
            if field not in passed and (field in current or not is_total(field))
        }
        self.cleaned_at = NEVER if self.stale else now
        self.day = now // DAY
        self.seen_at = now
        self.until = buckets_end(self.record)

    def learn_refusal(self, record: Record, now: int) -> None:
        self.learn(record, now)
        self.refused_at = now

    def is_clean(self, epoch_start: int, now: int) -> bool:
        """Return whether nothing has to be dropped: looked up once in an epoch, in which no window and no day ends."""
        if self.cleaned_at >= epoch_start:
            return True
        found = stale(self.record, now)
        for field in found:
            del self.record[field]
        self.stale = list(dict.fromkeys((*self.stale, *found)))
        if not self.stale:
            self.cleaned_at = now
        return not self.stale

    def dropped(self, write: Write, now: int) -> None:
        gone = {op.field for op in write.ops if type(op) is Drop}
        self.stale = [field for field in self.stale if field not in gone]
        if not self.stale:
            self.cleaned_at = now


class CompiledPolicy:
    """The rules of one policy.

    A write that would come out the same again (every fixed-window check of one window, whoever the user is) comes
    out as the same object, so that a store can keep what it prepared for it.
    """

    def __init__(self, policy: Policy, *, inactive: bool = False) -> None:
        self.policy = policy
        self.inactive = inactive
        """Whether it is for users who may do nothing at all."""
        self.final = policy.count == "all"
        """Whether a refusal holds until it says; else units may be given back at any time, as answers turn out."""
        self._rules: tuple[Rule, ...] = tuple(rule(policy.algorithm, quota) for quota in policy.quotas)
        self._totals = Totals()
        self._timed = tuple([one for one in self._rules if not one.quota.is_concurrent])
        self._windows = [one.quota.window for one in self._timed]
        self.is_concurrent = len(self._timed) < len(self._rules)
        """Whether a slot has to be taken, and given back: no check can do that."""
        self._buckets = frozenset(bucket_field(window) for window in self._windows if policy.algorithm == "gcra")
        self._kept_s = max([KEPT_DAYS * _DAY_S, *(3 * window.seconds for window in self._windows)])
        # What a check may leave in a bucket lasts as long; a debt, longer (see `_kept_until`).
        lasts_s = [one.lasts // SECOND + 2 * _DAY_S for one in self._timed]
        self._kept_s = max([self._kept_s, *lasts_s])
        self._epoch_start = self._epoch_end = 0
        self._today = 0
        self._expires_at = 0
        self._counts_until = 0
        self._writes: dict[int, _KeptWrite] = {}
        self._is_steady = policy.algorithm == "fixed_window" and not self.is_concurrent
        """Whether a write is the same for every record that has room for it."""
        self.lease: Lease = policy.lease if self._rules else None
        self.max_cost = min((rule.max_cost for rule in self._rules), default=None)
        """The largest cost that can ever pass; None where there is no limit."""
        self.alert_points = _alert_points(policy)
        """Which quota, which threshold of it, and the units that reach that."""

    def spend(self, now: int, cost: int, cached: CachedRecord, contended: bool = False) -> Write | None:
        record, kept = cached.record, self._writes.get(cost)
        is_settled = (
            self._epoch_start <= now < self._epoch_end
            and cached.day == self._today
            and cached.cleaned_at >= self._epoch_start
            and cached.until <= self._expires_at
        )
        if is_settled and kept is not None and kept.most is not None:
            for field, most in kept.most:
                if record.get(field, 0) > most:
                    return None
            return kept.write
        parts: list[Ops] = []
        for one in self._rules:
            ops = one.spend(now, cost, record, contended)
            if ops is None:
                return None
            parts.append(ops)
        self._turn_to(now)
        if cached.day != self._today or not cached.is_clean(self._epoch_start, now) or cached.until > self._expires_at:
            return self._with_drops(now, [*parts, self._totals.add(now, cost)], cached)
        kept = self._writes.get(cost)
        return kept.write if kept is not None and kept.parts == parts else self._write(now, cost, parts)

    def hold(self, now: int, cost: int, cached: CachedRecord, held: Held, contended: bool = False) -> Write | None:
        """Spend as `spend` does, and note in the record what of it is held, and until when. Asks for the whole record,
        to see what others hold beyond their time."""
        parts: list[Ops] = []
        for one in self._rules:
            ops = one.spend(now, cost, cached.record, contended)
            if ops is None:
                return None
            parts.append(ops)
        parts += [self._totals.add(now, cost), held.take()]
        record = cached.record
        empty = [one.name for one in held_fields(record) if one.end * SECOND < now and not record[one.name]]
        for name in empty[:DROPS_AT_ONCE]:
            parts.append((Expect(name, high=0, or_missing=True), Drop(name)))
        self._turn_to(now)
        cached.is_clean(self._epoch_start, now)
        write = self._with_drops(now, parts, cached)
        return Write(write.ops, write.expires_at, True, max(write.counts_until, held.end))

    def held(self, now: int, units: int) -> Held:
        """Return how a slot, where the policy has them, and so many reserved units would be held from now on."""
        end = held_until(now, self.policy.hold)
        start = max(self._counted_since(now, end), end - self.policy.hold - held_step(self.policy.hold))
        fields: list[HeldUnits] = []
        if self.is_concurrent:
            fields.append(HeldUnits(SLOTS, slots_field(end), 1))
        if units:
            name = reserved_field(start, end, self._windows, buckets=bool(self._buckets))
            fields.append(HeldUnits(RESERVED, name, units))
        return Held(tuple(fields), start, end)

    def renewed(self, now: int, held: Held) -> Held:
        """Return how the same would be held a while longer.

        The older it is, the less exactly its beginning is known, so that there are few fields: of windows, which they
        were is enough. To a bucket somewhat less goes back then, if nobody gives it back in time.
        """
        end = held_until(now, self.policy.hold)
        start = self._counted_since(held.start * SECOND, end)
        if self._buckets:
            grain = 1 << max(0, (now // SECOND - held.start).bit_length() - 1)
            start = max(start, held.start // grain * grain)
        reserved = reserved_field(start, end, self._windows, buckets=bool(self._buckets))
        fields = [
            HeldUnits(one.total, slots_field(end) if one.total == SLOTS else reserved, one.units) for one in held.fields
        ]
        return Held(tuple(fields), start, end)

    def _counted_since(self, now: int, end: int) -> int:
        """Return the epoch second at which the day began, or the last of the windows of this moment whose units still
        count at the `end`."""
        starts = [now // DAY * DAY]
        if not self._buckets:
            spans = [(one.quota.window.span(now), one.lasts) for one in self._timed]
            starts += [span.start for span, lasts in spans if span.end + lasts > end * SECOND]
        return max(starts) // SECOND

    def fits(self, now: int, cost: int, record: Record) -> bool:
        return cost <= 0 or None not in [one.spend(now, cost, record) for one in self._rules]

    def ahead(self, now: int, cost: int, wanted: int, share: int, record: Record) -> int:
        """Return how many of the units wanted ahead to take with `cost`: at most one in `share` of what is left."""
        if not wanted:
            return 0
        room = min([state.remaining for state in self.states(now, cost, record)]) - max(0, cost)
        return max(0, min(wanted, room // share))

    def without(self, now: int, held: int, record: Record) -> Record:
        """Return the record as it would be without the units that are held."""
        if not held:
            return record
        counters = [op.field for one in self._rules for op in one.charge(now, 1, record) if type(op) is Add]
        return {**record, **{field: max(0, record.get(field, 0) - held) for field in counters}}

    def epoch(self, now: int) -> tuple[int, int]:
        """Return from when to when (microseconds) no window and no UTC day ends around `now`."""
        self._turn_to(now)
        return self._epoch_start, self._epoch_end

    def renew(self, now: int, cached: CachedRecord) -> Write | None:
        """Let quotas that have changed take effect on what is left of the old ones; None where they have."""
        buckets = [one for one in self._rules if isinstance(one, Gcra)]
        if not (ops := [op for one in buckets for op in one.renew(now, cached.record)]):
            return None
        self._turn_to(now)
        return Write(tuple(ops), self._kept_until(ops, cached))

    def charge(self, now: int, cost: int, cached: CachedRecord, contended: bool = False) -> Write:
        parts = [one.charge(now, cost, cached.record, contended) for one in self._rules]
        self._turn_to(now)
        cached.is_clean(self._epoch_start, now)
        return self._with_drops(now, [*parts, self._totals.add(now, cost)], cached)

    def refund(
        self,
        now: int,
        cost: int,
        record: Record | None,
        taken: Taken,
        positions: Sequence[int],
        cached: CachedRecord,
        also: Ops = (),
    ) -> Write | None:
        """Give back `cost` of what was taken: all of it where the record is not known (None), else what is left of it;
        None where nothing is. `positions` are those of a decision's states, in the order of the quotas; `also` is done
        in the same write, and ends what was held: that is taken after a reset too, which has forgotten all else. What
        others have reserved stays where it is."""
        known = taken.cached if record is None else record
        if not also:
            taken.reserved = reserved_in(known)
        places = positions or [0] * len(self._rules)
        parts = [
            one.refund(now, cost, record, taken, position) for one, position in zip(self._rules, places, strict=True)
        ]
        if not also and record is not None and record.get(RESET, 0) > taken.at:
            parts = []
        elif not also and any(parts):
            parts.append((Expect(RESET, high=taken.at, or_missing=True),))
        parts.append(self._totals.refund(cost, record, taken))
        self._turn_to(now)
        ops: Ops = (*also, *[op for part in parts for op in part])
        if ops and not also:
            ops = (*ops, *reserved_as_in(known))
        return Write(ops, self._kept_until(ops, cached)) if ops else None

    def states(self, now: int, cost: int, record: Record) -> tuple[QuotaState, ...]:
        states: tuple[QuotaState, ...] = ()
        for one in self._rules:
            states += (one.state(now, cost, record),)
        return states

    def _write(self, now: int, cost: int, parts: list[Ops]) -> Write:
        ops: Ops = ()
        for part in parts:
            ops += part
        recurs = not self._buckets  # of which none is ever the same again
        write = Write(ops + self._totals.add(now, cost), self._expires_at, False, self._counts_until, recurs)
        if recurs:
            if len(self._writes) >= MAX_KEPT_WRITES:
                self._writes.clear()
            most = [(op.field, op.at_most - op.amount) for op in ops if type(op) is Add and op.at_most is not None]
            self._writes[cost] = _KeptWrite(parts, write, most if self._is_steady else None)
        return write

    def _with_drops(self, now: int, parts: list[Ops], cached: CachedRecord) -> Write:
        """Return a write that also drops what is known to be stale, and once a day asks to see the whole record.

        Asked again what is stale, because a clock that was set back has made yesterday's field today's.
        """
        ops = [op for part in parts for op in part]
        expires_at = self._kept_until(ops, cached)
        if cached.stale:
            ops += map(Drop, stale(cached.stale, now)[:DROPS_AT_ONCE])
        return Write(tuple(ops), expires_at, cached.day != self._today, self._counts_until)

    def _kept_until(self, ops: Sequence[Op], cached: CachedRecord) -> int:
        """Return the epoch second until which totals are kept, or a bucket may be in debt after this."""
        latest = max(self._expires_at, cached.until)
        for op in ops:
            if op.field in self._buckets:
                bound = op.at_most if type(op) is Add else op.high if type(op) is Expect else None
                if type(op) is Put:
                    bound = op.value
                if bound is not None:
                    latest = max(latest, -(-bound // _NANOSECONDS_A_SECOND))
        return latest

    def _turn_to(self, now: int) -> None:
        """Enter the epoch of `now`: the time in which no window and no UTC day ends, and writes look the same."""
        if self._epoch_start <= now < self._epoch_end:
            return
        spans = [window.span(now) for window in self._windows]
        self._today = now // DAY
        self._epoch_start = max([self._today * DAY, *(span.start for span in spans)])
        self._epoch_end = min([(self._today + 1) * DAY, *(span.end for span in spans)])
        self._expires_at = self._today * _DAY_S + self._kept_s
        ends = [span.end + one.lasts for span, one in zip(spans, self._timed, strict=True)]
        self._counts_until = -(-max(ends, default=0) // SECOND)
        self._writes.clear()


class _KeptWrite:
    """A write that may come out again. `most` is what each of its counters may stand at, where that is all it depends
    on."""

    __slots__ = ("most", "parts", "write")

    def __init__(self, parts: list[Ops], write: Write, most: list[tuple[str, int]] | None) -> None:
        self.parts = parts
        self.write = write
        self.most = most


def drops(now: int, fields: list[str]) -> Write:
    return Write(tuple(map(Drop, fields)), (now // DAY + KEPT_DAYS) * _DAY_S)


def _alert_points(policy: Policy) -> tuple[tuple[int, float, int], ...]:
    """Return the points, exact: 0.55 of 100 are 55 units, and not a tiny bit more."""
    return tuple(
        (place, threshold, ceil(Fraction(str(threshold)) * quota.limit))
        for place, quota in enumerate(policy.quotas)
        if not quota.is_concurrent
        for threshold in policy.alert_at
    )
