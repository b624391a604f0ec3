"""Taking back what a run has written: events, counters, users and plans; and nothing of what came since.

Of a record, what the run added is subtracted, and its mark goes back to where it was, in one conditional write: made
once, however often it is tried. What was counted since stays; so does a user or plan that was changed since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

from ratelimit.algorithms.fields import (
    bucket_limit_field,
    bucket_returned_field,
    bucket_window,
    current_totals,
    total_fields,
)
from ratelimit.clock import DAY, Clock, SystemClock
from ratelimit.dynamodb import DynamoDBStore, Settings
from ratelimit.errors import InvalidInput, StoreMisconfigured, StoreUnavailable
from ratelimit.migrate.checkpoint import Counts, ProgressListener, forget_run
from ratelimit.migrate.ledger import FieldChange, Ledger, RecordChange, is_same_place, later_on_top, place_of_table
from ratelimit.migrate.plan import migration_settings
from ratelimit.migrate.rows import ENTITIES
from ratelimit.migrate.tally import MARK, expiry_of, is_bucket
from ratelimit.migrate.target import Pace, RawTable, Target
from ratelimit.store import Add, Drop, Expect, Op, Put, Record, Write
from ratelimit.store.base import batches
from ratelimit.store.directory import Plan, User

UndoOutcome: TypeAlias = Literal["taken back", "gone", "kept"]

_ATTEMPTS: Final = 20
_SOME: Final = 200


class Undone(msgspec.Struct, kw_only=True):
    """What came of it."""

    runs: list[str]
    taken_back: dict[str, int] = {}
    kept: list[str] = []
    """What stays, as it was changed since."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoPlan:
    """Which runs, in what table. `work_dir` is where they left their ledgers."""

    runs: Sequence[str]
    target: Settings
    rate: float | None = None
    dry_run: bool = False
    work_dir: Path = field(default_factory=Path)


async def undo(plan: UndoPlan, *, listener: ProgressListener, clock: Clock | None = None) -> Undone:
    """Take all of them back, the newest first. Raises `InvalidInput`, `StoreUnavailable`, `OSError`: after the last
    two the same again goes on."""
    clock, folder = clock or SystemClock(), plan.work_dir
    chosen = sorted(set(plan.runs), reverse=True)
    done = Undone(runs=chosen, dry_run=plan.dry_run)
    for run in chosen:
        with Ledger.of(folder, run) as ledger:
            about = ledger.about()
        if not is_same_place(about.target, place_of_table(plan.target)):
            where = f"table {about.target[0]!r} ({_where(about.target)})"
            raise InvalidInput(f"run {run} wrote to {where}, and not to the one that --store or RATELIMIT_STORE names")
    for below, above in later_on_top(folder, dict.fromkeys(chosen)).items():
        raise InvalidInput(f"run {above} came later and counts on run {below}: name both, as in: {below} {above}")
    settings = migration_settings(plan.target)
    async with DynamoDBStore(settings) as store, RawTable(settings) as raw:
        target = Target(store, raw, Pace(plan.rate))
        for run in chosen:
            with Ledger.of(folder, run) as ledger:
                work = _Undo(ledger, target, done, clock.now(), listener)
                await (work.look() if plan.dry_run else work.all())
            if not plan.dry_run:
                forget_run(folder, run)
    return done


def _where(target: Sequence[str | None]) -> str:
    return ", ".join(each for each in target[1:] if each) or "by the AWS set-up"


class _Undo:
    """One run's."""

    def __init__(self, ledger: Ledger, target: Target, done: Undone, now: int, listener: ProgressListener) -> None:
        self._ledger = ledger
        self._target = target
        self._done = done
        self._now = now
        self._tell = listener
        self._expires_at = expiry_of(now)

    async def look(self) -> None:
        """Count what there is to be taken back."""
        for entity, count in self._ledger.counts().items():
            self._done.taken_back[entity] = self._done.taken_back.get(entity, 0) + count

    async def all(self) -> None:
        """Take back, in the order in which nothing refers to what is gone."""
        for entity in ENTITIES:
            self._done.taken_back.setdefault(entity, 0)
        await self._counters()
        await self._events()
        for kind in (User, Plan):
            await self._entries(kind)
        about = self._ledger.about()
        about.undone = True
        self._ledger.say(about)

    async def _counters(self) -> None:
        plants, counts = self._ledger.counters(), Counts()
        for some in batches(plants, _SOME):
            outcomes = await self._target.each(some, self._take_back)
            for plant, outcome in zip(some, outcomes, strict=True):
                self._ledger.forget_counter(plant.key)
                self._done.taken_back["counters"] += outcome == "taken back"
                if outcome == "kept":
                    who = f"{plant.key.user} {plant.key.action}"
                    self._done.kept.append(f"counters of {who}: a later run counts on them")
            counts.read += len(some)
            self._tell("counters", counts, counts.read, len(plants))

    async def _take_back(self, plant: RecordChange) -> UndoOutcome:
        for attempt in range(1, _ATTEMPTS + 1):
            record = await self._target.record(plant.key)
            mark = record.get(MARK)
            if mark != plant.until:
                return "kept" if mark is not None and mark > plant.until else "gone"
            try:
                if await self._write(plant, record):
                    return "taken back"
            except StoreMisconfigured:
                raise
            except StoreUnavailable:  # it may have been executed; the mark tells
                pass
            await self._target.pause(attempt)
        raise StoreUnavailable(f"the counters of {plant.key.user!r} kept changing; undo it again")

    async def _write(self, plant: RecordChange, record: Record) -> bool:
        after = fields_after(plant.fields, record, self._now)
        changed = {name: value for name, value in after.items() if value != record[name]}
        left = {name: value for name, value in ({**record, **changed}).items() if value is not None and name != MARK}
        if not left and plant.since is None:
            return await self._target.delete_record(plant.key, record, absent=_counted_now(self._now))
        back: Op = Drop(MARK) if plant.since is None else Put(MARK, plant.since)
        ops: list[Op] = [Expect(MARK, low=plant.until, high=plant.until), back]
        for name, value in changed.items():
            ops += _change(name, record[name], value)
        return await self._target.apply(plant.key, Write(tuple(ops), self._expires_at), now=self._now)

    async def _events(self) -> None:
        events, counts = self._ledger.events(), Counts()
        total = self._ledger.counts()["events"]
        while some := list(islice(events, _SOME)):
            await self._target.delete_events(some)
            counts.read += len(some)
            self._done.taken_back["events"] += len(some)
            self._ledger.forget_events(some)
            events = self._ledger.events()
            self._tell("events", counts, counts.read, total)

    async def _entries(self, kind: type[User | Plan]) -> None:
        entity: Literal["users", "plans"] = "users" if kind is User else "plans"
        for name, version in self._ledger.entries(kind.__name__):
            if await self._target.delete_entry(kind, name, version=version, now=self._now):
                self._done.taken_back[entity] += 1
            else:
                self._done.kept.append(f"{kind.__name__.lower()} {name}: changed since")
            self._ledger.forget_entry(kind.__name__, name)


def fields_after(changes: Mapping[str, FieldChange], record: Record, now: int) -> dict[str, int | None]:
    """Return what is left of the fields without what a run has done to them; None for nothing.

    A bucket that counts by another limit since stays: its units flow back anyhow.
    """
    refunded = has_refunds(changes, record)
    after: dict[str, int | None] = {}
    for name, each in changes.items():
        window = bucket_window(name)
        if name not in record or (window is None and is_bucket(name)):
            continue
        if window is None:
            after[name] = remaining(name, each, record, now, refunded=refunded)
            continue
        limit, returned = bucket_limit_field(window), bucket_returned_field(window)
        if limit in changes and record.get(limit) != changes[limit].floor:
            continue
        after[name] = remaining(name, each, record, now, refunded=refunded)
        if after[name] is None:  # what is beside it has come with it
            after |= {other: None for other in (limit, returned) if other in changes and other in record}
    return after


def has_refunds(changes: Mapping[str, FieldChange], record: Record) -> bool:
    """Return whether units were given back since: a total outlives a reset, so only a refund brings it below."""
    return any(record.get(name, 0) < changes[name].amount for name, _, _ in total_fields(changes) if name in record)


def remaining(
    name: str, change: FieldChange, record: Mapping[str, int], now: int, *, refunded: bool = False
) -> int | None:
    """Return what is left of a field without what a run has done to it; None for nothing.

    A field that is below what the run has added was reset since, and what is there was used afterwards; or else units
    were given back (`refunded`), those of the run among them.
    """
    value = record[name]
    if is_bucket(name):
        return _bucket(change, value, now * 1000, refunded=refunded)
    if value >= change.amount:
        return value - change.amount or None
    return None if refunded else value


def _bucket(change: FieldChange, value: int, now: int, *, refunded: bool) -> int | None:
    """Return the moment (ns) at which a bucket is full again."""
    full = max(change.before or 0, change.floor) + change.amount
    if value == full:  # nothing was used since
        return change.before
    if value < full and not refunded:  # a reset has taken it away meanwhile
        return value
    if full <= now:  # it was full again meanwhile, so that nothing of it is in there
        return value
    left = min(value, max(change.before or 0, now) + value - full)
    return left if left > now else None


def _change(name: str, value: int, left: int | None) -> tuple[Op, ...]:
    if left is None:
        return Expect(name, low=value, high=value), Drop(name)
    if is_bucket(name):
        return Expect(name, low=value, high=value), Put(name, left)
    # Whoever counts meanwhile is not in the way.
    return Expect(name, low=value - left), Add(name, left - value)


def _counted_now(now: int) -> Sequence[str]:
    """Return the totals into which every use counts that may come at this moment, whatever its quotas."""
    days: Callable[[int], tuple[str, str]] = current_totals
    return tuple({*days(now - DAY), *days(now), *days(now + DAY)})
