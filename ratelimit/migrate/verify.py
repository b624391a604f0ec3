"""Both sides of a comparison, in a scratch file: what the source said, what the table said, and where they differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from hashlib import blake2b
from heapq import heappush, heappushpop
from typing import Any, Final, Literal, TypeAlias

import msgspec

from ratelimit.clock import DAY, SystemClock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.event import RETENTION_DAYS, UsageEvent
from ratelimit.migrate.checkpoint import Counts, ProgressListener, Scratch
from ratelimit.migrate.counters import live
from ratelimit.migrate.plan import MigrationPlan, migration_settings, source_of
from ratelimit.migrate.rows import Counted, Entity, Source, retried_pages
from ratelimit.migrate.runner import check_found, chunks, learn_rules, opened, uses_of
from ratelimit.migrate.tally import MARK, SCHEMA, Rules, Tally
from ratelimit.names import Key
from ratelimit.quota import quotas_texts
from ratelimit.store.base import day_of
from ratelimit.store.directory import Plan, User, name_of

# `Verdict`: what a verification has found.

_SHOWN: Final = 20


class Difference(msgspec.Struct, frozen=True):
    """One thing that is not the same."""

    entity: Entity
    what: str
    source: str
    target: str


class Compared(msgspec.Struct, kw_only=True):
    """How one entity stands."""

    source: int = 0
    target: int = 0
    missing: int = 0
    """In the source only."""
    more: int = 0
    """In the table only."""
    different: int = 0
    rejected: int = 0
    """Rows of the source that are nothing here, and users whose e-mail another one has: on neither side."""
    compared: int = 0
    """Rows of which everything was compared."""


class Verdict(msgspec.Struct, kw_only=True):
    """All of it."""

    entities: dict[Entity, Compared] = {}
    differences: list[Difference] = []
    hidden: int = 0
    """Differences beyond those that are listed."""
    more_is_fine: bool = False
    notes: list[str] = []

    @property
    def same(self) -> bool:
        """Return whether nothing is missing or different; and, unless that is fine, nothing more is in the table."""
        return not any(
            each.missing or each.different or (each.more and not self.more_is_fine) for each in self.entities.values()
        )

    def differs(self, entity: Entity, what: str, source: object, target: object) -> None:
        if len(self.differences) < _SHOWN:
            self.differences.append(Difference(entity, what, str(source), str(target)))
        else:
            self.hidden += 1


Side: TypeAlias = Literal[0, 1]
SOURCE: Final[Side] = 0
TARGET: Final[Side] = 1

SIDES: Final = """
    CREATE TABLE days (user TEXT, day TEXT, action TEXT, n0 INTEGER DEFAULT 0, d0 INTEGER DEFAULT 0,
                       n1 INTEGER DEFAULT 0, d1 INTEGER DEFAULT 0, PRIMARY KEY (user, day, action)) WITHOUT ROWID;
    CREATE TABLE entries (name TEXT PRIMARY KEY, s0 TEXT, s1 TEXT) WITHOUT ROWID;
    CREATE TABLE owners (identity TEXT PRIMARY KEY, name TEXT) WITHOUT ROWID;
    CREATE TABLE wished (name TEXT, identity TEXT, PRIMARY KEY (name, identity)) WITHOUT ROWID;
    CREATE TABLE keys (user TEXT, action TEXT, s0 INTEGER DEFAULT 0, s1 INTEGER DEFAULT 0, brought INTEGER DEFAULT 0,
                       PRIMARY KEY (user, action)) WITHOUT ROWID;
    CREATE TABLE fields (user TEXT, action TEXT, field TEXT, s0 INTEGER, s1 INTEGER,
                         PRIMARY KEY (user, action, field)) WITHOUT ROWID;
"""
_FIELDS: Final = """
    SELECT user, action, field, fields.s0, fields.s1 FROM fields JOIN keys USING (user, action)
    WHERE keys.s0 AND brought AND field NOT GLOB 'g*[lr]' AND NOT EXISTS (
        SELECT 1 FROM fields AS limits WHERE limits.user = fields.user AND limits.action = fields.action
        AND limits.field = fields.field || 'l' AND fields.field GLOB 'g*' AND limits.s0 <> limits.s1
    )
"""
"""Buckets only where both count by the same limit: else their moments say nothing about each other."""
_TAKEN: Final = """
    SELECT wished.name, owners.identity, owners.name FROM wished JOIN owners USING (identity) JOIN entries
    ON entries.name = wished.name WHERE entries.s1 IS NULL AND owners.name <> wished.name ORDER BY wished.name
"""
_NAMED: Final = 20
_PAGE: Final = 1000
SAMPLED: Final = 2_000
_DIGEST: Final = 2**62 - 1


class EventDiff:
    """By user, day and action: their number, and a digest of their ids. And a sample of them, in whole."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._sample = EventSample()

    def note(self, side: Side, events: Sequence[UsageEvent]) -> None:
        """Note events. The source has to be first: what is in the sample is found out there."""
        days: dict[tuple[str, str, str], list[int]] = {}
        for event in events:
            number = _number_of(event.id)
            sums = days.setdefault((event.user, day_of(event.at_ms).isoformat(), event.action), [0, 0])
            sums[0] += 1
            sums[1] = (sums[1] + number) & _DIGEST
            if side == SOURCE:
                self._sample.keep(number, event)
            else:
                self._sample.compare(event)
        self._scratch.put(
            f"INSERT INTO days (user, day, action, n{side}, d{side}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
            f"SET n{side} = n{side} + excluded.n{side}, d{side} = (d{side} + excluded.d{side}) & {_DIGEST}",
            [(*key, *sums) for key, sums in days.items()],
        )

    def judge(self, verdict: Verdict, compared: Compared) -> None:
        """Compare. A whole event that differs has the same id; one that is not there makes a difference in its day."""
        query = "SELECT * FROM days WHERE n0 <> n1 OR d0 <> d1 ORDER BY user, day, action"
        for user, day, action, in_source, digest, in_target, other in self._scratch.rows(query):
            compared.missing += max(0, in_source - in_target)
            compared.more += max(0, in_target - in_source)
            compared.different += in_source == in_target and digest != other
            verdict.differs("events", f"{user} {day} {action}", in_source, in_target)
        compared.compared = self._sample.compared
        compared.different += len(self._sample.different)
        for name, source, target in self._sample.different:
            verdict.differs("events", name, source, target)


class EventSample:
    """The events with the smallest digests of their ids: the same ones on both sides, however many there are."""

    def __init__(self, most: int = SAMPLED) -> None:
        self._most = most
        self._largest_first: list[tuple[int, str]] = []
        self._said: dict[str, str] = {}
        self.compared = 0
        self.different: list[tuple[str, str, str]] = []

    def keep(self, number: int, event: UsageEvent) -> None:
        """Keep one of the source's, where it is among them so far."""
        mine = (-number, f"{event.user} {event.id}")
        if len(self._largest_first) < self._most:
            heappush(self._largest_first, mine)
        else:
            out = heappushpop(self._largest_first, mine)
            if out == mine:
                return
            self._said.pop(out[1], None)
        self._said[mine[1]] = _whole(event)

    def compare(self, event: UsageEvent) -> None:
        name = f"{event.user} {event.id}"
        if (said := self._said.get(name)) is not None:
            self.compared += 1
            if said != (found := _whole(event)):
                self.different.append((name, said, found))


class EntryDiff:
    """Users or plans, by their names."""

    def __init__(self, scratch: Scratch, entity: Entity) -> None:
        self._scratch = scratch
        self._entity = entity

    def note(self, side: Side, entries: Iterable[User | Plan]) -> None:
        several = list(entries)
        self._scratch.put(
            f"INSERT INTO entries (name, s{side}) VALUES (?, ?) ON CONFLICT DO UPDATE SET s{side} = excluded.s{side}",
            [(name_of(one), _said(one)) for one in several],
        )
        pairs = [(name_of(one), str(each)) for one in several if isinstance(one, User) for each in one.identities]
        if side == SOURCE:
            self._scratch.put("INSERT OR IGNORE INTO wished VALUES (?, ?)", pairs)
        else:
            self._scratch.put("INSERT OR IGNORE INTO owners (name, identity) VALUES (?, ?)", pairs)

    def judge(self, verdict: Verdict, compared: Compared) -> None:
        """Compare one by one. A user whose e-mail is another's in the table was rejected, and is on neither side."""
        one = self._scratch.one
        taken = list(self._scratch.rows(_TAKEN))
        self._scratch.put("DELETE FROM entries WHERE name = ?", [(name,) for name, _, _ in taken])
        compared.rejected += len({name for name, _, _ in taken})
        for name, identity, owner in taken[:_NAMED]:
            verdict.notes.append(f"user {name} is rejected: user {owner} has this e-mail already ({identity})")
        compared.source = one("SELECT count(s0) FROM entries")
        compared.target = one("SELECT count(s1) FROM entries")
        compared.missing = one("SELECT count(*) FROM entries WHERE s1 IS NULL")
        compared.more = one("SELECT count(*) FROM entries WHERE s0 IS NULL")
        compared.compared = one("SELECT count(*) FROM entries WHERE s0 IS NOT NULL AND s1 IS NOT NULL")
        compared.different = one("SELECT count(*) FROM entries WHERE s0 <> s1")
        for name, source, target in self._scratch.rows("SELECT * FROM entries WHERE s0 IS NOT s1 ORDER BY name"):
            verdict.differs(self._entity, name, source or "nothing", target or "nothing")


class CounterDiff:
    """By user and action, and then by every field. `marked`: what was brought over carries a mark."""

    def __init__(self, scratch: Scratch, *, now: int, marked: bool) -> None:
        self._scratch = scratch
        self._now = now
        self._marked = marked

    def note(self, side: Side, records: Iterable[tuple[Key, Mapping[str, int]]]) -> None:
        """Note the fields that still count."""
        keys, fields = [], []
        for key, record in records:
            found = live(record, self._now)
            brought = side == TARGET and (MARK in record or not self._marked)
            if found or brought:
                keys.append((*key, bool(found), brought))
                fields += [(*key, field, value) for field, value in found.items()]
        self._scratch.put(
            f"INSERT INTO keys (user, action, s{side}, brought) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE "
            f"SET s{side} = excluded.s{side}, brought = max(brought, excluded.brought)",
            keys,
        )
        self._scratch.put(
            f"INSERT INTO fields (user, action, field, s{side}) VALUES (?, ?, ?, ?) "
            f"ON CONFLICT DO UPDATE SET s{side} = excluded.s{side}",
            fields,
        )

    def judge(self, verdict: Verdict, compared: Compared) -> None:
        """Compare. What the table counted by itself is more; never may it be less."""
        compared.source, compared.target = (
            self._scratch.one(f"SELECT count(*) FROM keys WHERE s{side}") for side in (SOURCE, TARGET)
        )
        self._judge_keys(verdict, compared)
        for user, action, field, source, target in self._scratch.rows(_FIELDS):
            compared.compared += source is not None
            if source == target:
                continue
            is_less = (target or 0) < (source or 0)
            compared.missing += is_less
            compared.more += not is_less
            shown = ["nothing" if each is None else each for each in (source, target)]
            verdict.differs("counters", f"{user} {action} {field}", *shown)

    def _judge_keys(self, verdict: Verdict, compared: Compared) -> None:
        for user, action in self._scratch.rows("SELECT user, action FROM keys WHERE s0 AND NOT brought"):
            compared.missing += 1
            verdict.differs("counters", f"{user} {action}", "counters", "nothing")
        for user, action in self._scratch.rows("SELECT user, action FROM keys WHERE s1 AND NOT s0"):
            compared.more += 1
            verdict.differs("counters", f"{user} {action}", "nothing", "counters")


def _number_of(event_id: str) -> int:
    """Return the same number for the same id. Not the id itself: its upper bits are a time, the lower may be chosen."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=7).digest())


def _whole(event: UsageEvent) -> str:
    return msgspec.json.encode(event).decode()


def _said(entry: User | Plan) -> str:
    quotas = quotas_texts(dict(sorted(entry.quotas.items())))
    if isinstance(entry, Plan):
        return f"{quotas}"
    identities = sorted(map(str, entry.identities))
    return f"plan {entry.plan}, {quotas}, {entry.role}, {'active' if entry.active else 'inactive'}, {identities}"


async def verify(plan: MigrationPlan, *, listener: ProgressListener, more_is_fine: bool = False) -> Verdict:
    """Compare. `more_is_fine` where the table is in use already. Raises as `run` does."""
    clock = SystemClock()
    async with opened(source_of(plan, clock)) as source, DynamoDBStore(migration_settings(plan.target)) as store:
        entities = plan.chosen(await source.entities())
        plan.work_dir.mkdir(parents=True, exist_ok=True)
        check = _Check(source, store, Verdict(more_is_fine=more_is_fine), plan, clock.now(), listener)
        for entity in entities:
            await check.one(entity)
        check.verdict.notes += await source.notes()
        check_found(source, check.counts, check.verdict.notes)
    return check.verdict


class _Check:
    """One verification, its memory in a scratch file."""

    def __init__(
        self,
        source: Source,
        store: DynamoDBStore,
        verdict: Verdict,
        plan: MigrationPlan,
        now: int,
        listener: ProgressListener,
    ) -> None:
        self.verdict = verdict
        self.counts: dict[Entity, Counts] = {}
        self._source = source
        self._store = store
        self._plan = plan
        self._now = now
        self._tell = listener

    async def one(self, entity: Entity) -> None:
        compared = self.verdict.entities[entity] = Compared()
        with Scratch(self._plan.work_dir, SCHEMA + SIDES) as scratch:
            if entity == "events":
                await self._events(scratch, compared)
            elif entity == "counters":
                await self._counters(scratch, compared)
            else:
                await self._entries(entity, scratch, compared)

    async def _events(self, scratch: Scratch, compared: Compared) -> None:
        sides, is_keyed = EventDiff(scratch), self._source.keyed
        until = self._now // 1000
        since = until - RETENTION_DAYS * DAY // 1000
        async for entries in self._from_source("events"):
            events = [one for one in entries if isinstance(one, UsageEvent) and one.at_ms <= until]
            events = [one for one in events if is_keyed or scratch.is_new(one.id)]
            compared.source += len(events)
            await asyncio.to_thread(sides.note, SOURCE, events)
        scans = self._store.scans
        async for found in retried_pages(partial(scans.events, since=since, until=until + 1)):
            compared.target += len(found)
            await asyncio.to_thread(sides.note, TARGET, found)
        sides.judge(self.verdict, compared)

    async def _entries(self, entity: Entity, scratch: Scratch, compared: Compared) -> None:
        sides = EntryDiff(scratch, entity)
        async for entries in self._from_source(entity):
            sides.note(SOURCE, [one for one in entries if isinstance(one, User | Plan)])
        kind: type[User | Plan] = User if entity == "users" else Plan
        directory = self._store.directory
        async for found in retried_pages(partial(directory.page, kind, limit=_PAGE)):
            sides.note(TARGET, found)
        sides.judge(self.verdict, compared)

    async def _counters(self, scratch: Scratch, compared: Compared) -> None:
        rules = Rules(self._plan.config.policies)
        await learn_rules(self._store.directory, rules)
        sides = CounterDiff(scratch, now=self._now, marked=not self._source.totals)
        tally = Tally(scratch, rules, now=self._now, keyed=self._source.keyed)
        async for entries in self._from_source("counters"):
            await asyncio.to_thread(tally.add, uses_of(entries))
            sides.note(SOURCE, [(one.key, one.record) for one in entries if isinstance(one, Counted)])
        for some in chunks(tally.counters()):
            added = [(one.key, {field: each.on(None) for field, each in one.sums.items()}) for one in some]
            await asyncio.to_thread(sides.note, SOURCE, added)
        async for found in retried_pages(self._store.scans.records):
            await asyncio.to_thread(sides.note, TARGET, found)
        sides.judge(self.verdict, compared)

    async def _from_source(self, entity: Entity) -> AsyncGenerator[Sequence[Any], None]:
        counts, size = self.counts.setdefault(entity, Counts()), await self._source.size(entity)
        batches = self._source.batches(entity, after=None, size=self._plan.batch_size)
        async with aclosing(batches):
            async for batch in batches:
                entries = [row.entry for row in batch.rows if row.entry is not None]
                counts.read += len(batch.rows)
                counts.rejected += len(batch.rows) - len(entries)
                self._tell(entity, counts, batch.done, size)
                yield entries
        self.verdict.entities[entity].rejected += counts.rejected
