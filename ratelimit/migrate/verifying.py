"""Verification: source and table compared, both ways, without trusting what a run said of itself.

Everything is read and converted once more. Events are compared by user, day and action: their number and a digest of
their ids. Of a sample, chosen by id and so the same on both sides, the whole event is compared. Users and plans are
compared one by one; counters by every field, as of the moment that the record's mark names.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from ratelimit.algorithms.fields import MONTHS_KEPT, stale
from ratelimit.clock import DAY, Clock, SystemClock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.event import RETENTION_DAYS, UsageEvent
from ratelimit.migrate.checkpoint import Counts
from ratelimit.migrate.migration import Order, opened
from ratelimit.migrate.opening import patient
from ratelimit.migrate.rows import Counted, Entity, Source
from ratelimit.migrate.running import Listener, ahead, learn_rules, uses_of
from ratelimit.migrate.scratch import Scratch
from ratelimit.migrate.tally import MARK, SCHEMA, Rules, Tally
from ratelimit.store.directory import Plan, User, name_of
from ratelimit.store.events import day_of
from ratelimit.store.scans import ScanPage
from ratelimit.usage.outlast import Outlast

_SHOWN: Final = 20
_SAMPLED: Final = 2_000
_ONE_IN: Final = 16
_SOURCE, _TARGET = 0, 1
_DIGEST: Final = 2**62 - 1
_SCHEMA: Final = (
    SCHEMA
    + """
    CREATE TABLE days (user TEXT, day TEXT, action TEXT, n0 INTEGER DEFAULT 0, d0 INTEGER DEFAULT 0,
                       n1 INTEGER DEFAULT 0, d1 INTEGER DEFAULT 0, PRIMARY KEY (user, day, action)) WITHOUT ROWID;
    CREATE TABLE rows (kind TEXT, name TEXT, s0 TEXT, s1 TEXT, PRIMARY KEY (kind, name)) WITHOUT ROWID;
    CREATE TABLE held (user TEXT, action TEXT, field TEXT, value INTEGER, PRIMARY KEY (user, action, field))
        WITHOUT ROWID;
    CREATE TABLE used (user TEXT, action TEXT, PRIMARY KEY (user, action)) WITHOUT ROWID;
"""
)
# What is older than this is in no counter any more.
_COUNTED_MS: Final = (MONTHS_KEPT - 1) * 28 * DAY // 1000
_UNMARKED: Final = "SELECT user, action FROM used EXCEPT SELECT user, action FROM marks"
_UNUSED: Final = "SELECT user, action FROM marks EXCEPT SELECT user, action FROM used"
_BOTH: Final = "SELECT user, action, field, floor, amount, value FROM sums LEFT JOIN held USING (user, action, field)"


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
    compared: int = 0
    """Rows of which everything was compared."""


class Verdict(msgspec.Struct, kw_only=True):
    """What a verification has found."""

    entities: dict[Entity, Compared] = {}
    differences: list[Difference] = []
    hidden: int = 0
    """Differences beyond those that are listed."""
    more_is_fine: bool = False
    notes: list[str] = []

    @property
    def same(self) -> bool:
        """Whether nothing is missing or different; and, unless that is fine, nothing more is in the table."""
        return not any(
            each.missing or each.different or (each.more and not self.more_is_fine) for each in self.entities.values()
        )

    def differs(self, entity: Entity, what: str, source: object, target: object) -> None:
        """One more."""
        if len(self.differences) < _SHOWN:
            self.differences.append(Difference(entity, what, str(source), str(target)))
        else:
            self.hidden += 1


async def verify(
    order: Order, *, listener: Listener, more_is_fine: bool = False, clock: Clock | None = None
) -> Verdict:
    """Compare. `more_is_fine` where the table is in use already. Raises as `run` does."""
    now = (clock or SystemClock()).now()
    async with opened(order.open(now)) as source, DynamoDBStore(patient(order.target)) as store:
        choices = order.choices(await source.entities())
        order.work_dir.mkdir(parents=True, exist_ok=True)
        check = _Check(source, store, Verdict(more_is_fine=more_is_fine), order, now, listener)
        for entity in choices.entities:
            await check.one(entity)
        check.verdict.notes += await source.notes()
    return check.verdict


class _Check:
    """One verification, its memory in a scratch file."""

    def __init__(
        self, source: Source, store: DynamoDBStore, verdict: Verdict, order: Order, now: int, listener: Listener
    ) -> None:
        self.verdict = verdict
        self._source = source
        self._store = store
        self._order = order
        self._now = now
        self._tell = listener
        self._outlast = Outlast()

    async def one(self, entity: Entity) -> None:
        compared = self.verdict.entities[entity] = Compared()
        with Scratch(Path(self._order.work_dir), _SCHEMA) as scratch:
            if entity == "events":
                await self._events(scratch, compared)
            elif entity == "counters":
                await self._counters(scratch, compared)
            else:
                await self._entries(entity, scratch, compared)

    async def _events(self, scratch: Scratch, compared: Compared) -> None:
        size = await self._source.size("events")
        sampling = max(1, (size or _ONE_IN * _SAMPLED) // _SAMPLED)
        until = self._now // 1000
        since = until - RETENTION_DAYS * DAY // 1000
        seen = _Seen(scratch, needed=not self._source.keyed)
        async for entries in self._from_source("events", size):
            events = [one for one in entries if isinstance(one, UsageEvent) and one.at <= until and seen.first(one)]
            compared.source += len(events)
            await asyncio.to_thread(_note_events, scratch, events, _SOURCE, sampling)
        cursor: str | None = None
        while True:
            page: ScanPage[UsageEvent] = await self._outlast.run(
                lambda cursor=cursor: self._store.scans.events(since=since, until=until + 1, cursor=cursor)  # type: ignore[misc]
            )
            compared.target += len(page.entries)
            await asyncio.to_thread(_note_events, scratch, page.entries, _TARGET, sampling)
            if (cursor := page.cursor) is None:
                break
        self._judge_days(scratch, compared)
        self._judge_rows("events", scratch, compared)

    async def _entries(self, entity: Entity, scratch: Scratch, compared: Compared) -> None:
        async for entries in self._from_source(entity, await self._source.size(entity)):
            found = [one for one in entries if isinstance(one, User | Plan)]
            _note_rows(scratch, entity, [(name_of(one), _said(one)) for one in found], _SOURCE)
        kind: type[User | Plan] = User if entity == "users" else Plan
        cursor: str | None = None
        while True:
            page = await self._outlast.run(
                lambda cursor=cursor: self._store.directory.page(kind, limit=1000, cursor=cursor)  # type: ignore[misc]
            )
            _note_rows(scratch, entity, [(name_of(one), _said(one)) for one in page.entries], _TARGET)
            if (cursor := page.cursor) is None:
                break
        compared.source = scratch.one("SELECT count(s0) FROM rows")
        compared.target = scratch.one("SELECT count(s1) FROM rows")
        compared.missing = scratch.one("SELECT count(*) FROM rows WHERE s1 IS NULL")
        compared.more = scratch.one("SELECT count(*) FROM rows WHERE s0 IS NULL")
        self._judge_rows(entity, scratch, compared, absent=True)

    async def _counters(self, scratch: Scratch, compared: Compared) -> None:
        rules = Rules(self._order.config.policies)
        await learn_rules(self._store.directory, rules)
        tally = Tally(scratch, rules, began=self._now, keyed=self._source.keyed, span="before")
        await self._read_records(scratch, tally)
        async for entries in self._from_source("counters", await self._source.size("counters")):
            counted = [one for one in entries if isinstance(one, Counted)]
            fields = [(*key, field, value) for key, record in counted for field, value in record.items()]
            gone = set(stale({field for *_, field, _ in fields}, self._now)) | {MARK}
            kept = [each for each in fields if each[2] not in gone and each[3] > 0]
            scratch.put("INSERT INTO sums VALUES (?, ?, ?, 0, ?)", kept)
            uses = uses_of(entries)
            await asyncio.to_thread(tally.add, uses)
            used = {(one.user, one.action) for one in uses if one.at >= self._now // 1000 - _COUNTED_MS and one.cost}
            scratch.put("INSERT OR IGNORE INTO used VALUES (?, ?)", used | {tuple(each[:2]) for each in kept})
        self._judge_counters(scratch, compared)

    async def _read_records(self, scratch: Scratch, tally: Tally) -> None:
        """Those of the table that were brought over."""
        cursor: str | None = None
        while True:
            page = await self._outlast.run(lambda cursor=cursor: self._store.scans.records(cursor=cursor))  # type: ignore[misc]
            marked = [(key, record) for key, record in page.entries if MARK in record]
            tally.mark((key, record[MARK]) for key, record in marked)
            held = [(*key, field, value) for key, record in marked for field, value in record.items() if field != MARK]
            scratch.put("INSERT OR REPLACE INTO held VALUES (?, ?, ?, ?)", held)
            if (cursor := page.cursor) is None:
                return

    async def _from_source(self, entity: Entity, size: int | None) -> AsyncGenerator[Sequence[Any], None]:
        counts = Counts()
        batches = self._source.batches(entity, after=None, size=self._order.batch_size)
        async with aclosing(ahead(batches)) as found:
            async for batch in found:
                counts.read += len(batch.rows)
                self._tell(entity, counts, batch.done, size)
                yield [row.entry for row in batch.rows if row.entry is not None]

    def _judge_days(self, scratch: Scratch, compared: Compared) -> None:
        query = "SELECT * FROM days WHERE n0 <> n1 OR d0 <> d1 ORDER BY user, day, action"
        for user, day, action, in_source, digest, in_target, other in scratch.rows(query):
            compared.missing += max(0, in_source - in_target)
            compared.more += max(0, in_target - in_source)
            compared.different += in_source == in_target and digest != other
            self.verdict.differs("events", f"{user} {day} {action}", in_source, in_target)

    def _judge_rows(self, entity: Entity, scratch: Scratch, compared: Compared, *, absent: bool = False) -> None:
        compared.compared = scratch.one("SELECT count(*) FROM rows WHERE s0 IS NOT NULL AND s1 IS NOT NULL")
        for name, in_source, in_target in scratch.rows("SELECT name, s0, s1 FROM rows WHERE s0 IS NOT s1"):
            if in_source is not None and in_target is not None:
                compared.different += 1
            elif not absent:  # events that are absent have made a difference in their day already
                continue
            self.verdict.differs(entity, name, in_source or "nothing", in_target or "nothing")

    def _judge_counters(self, scratch: Scratch, compared: Compared) -> None:
        """What the table counted by itself is more; never may it be less."""
        compared.source = scratch.one("SELECT count(*) FROM used")
        compared.target = scratch.one("SELECT count(*) FROM marks")
        for user, action, field, floor, amount, value in scratch.rows(_BOTH):
            expected = floor + amount
            compared.compared += 1
            if value == expected:
                continue
            compared.missing += value is None or value < expected
            compared.more += value is not None and value > expected
            shown = "nothing" if value is None else value
            self.verdict.differs("counters", f"{user} {action} {field}", expected, shown)
        for kind, query in (("missing", _UNMARKED), ("more", _UNUSED)):
            for user, action in scratch.rows(query):
                setattr(compared, kind, getattr(compared, kind) + 1)
                sides = ("counters", "nothing") if kind == "missing" else ("nothing", "counters")
                self.verdict.differs("counters", f"{user} {action}", *sides)


class _Seen:
    """Whether an event comes for the first time, where a source may have it twice."""

    def __init__(self, scratch: Scratch, *, needed: bool) -> None:
        self._scratch = scratch
        self._needed = needed

    def first(self, event: UsageEvent) -> bool:
        if not self._needed:
            return True
        raw = bytes.fromhex(event.id.replace("-", ""))
        if self._scratch.one("SELECT 1 FROM seen WHERE id = ?", raw):
            return False
        self._scratch.put("INSERT INTO seen VALUES (?)", [(raw,)])
        return True


def _note_events(scratch: Scratch, events: Sequence[UsageEvent], side: int, sampling: int) -> None:
    days: dict[tuple[str, str, str], list[int]] = {}
    sampled = []
    for event in events:
        number = _number_of(event.id)
        sums = days.setdefault((event.user, day_of(event.at).isoformat(), event.action), [0, 0])
        sums[0] += 1
        sums[1] = (sums[1] + number) & _DIGEST
        if number % sampling == 0:
            sampled.append((f"{event.user} {event.id}", msgspec.json.encode(event).decode()))
    scratch.put(
        f"INSERT INTO days (user, day, action, n{side}, d{side}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE "
        f"SET n{side} = n{side} + excluded.n{side}, d{side} = (d{side} + excluded.d{side}) & {_DIGEST}",
        [(*key, *sums) for key, sums in days.items()],
    )
    _note_rows(scratch, "events", sampled, side)


def _number_of(event_id: str) -> int:
    """The same for the same id. Not the id itself: the upper bits of that are a time, the lower may be chosen."""
    return int.from_bytes(blake2b(event_id.encode(), digest_size=7).digest())


def _note_rows(scratch: Scratch, kind: str, rows: Iterable[tuple[str, str]], side: int) -> None:
    scratch.put(
        f"INSERT INTO rows (kind, name, s{side}) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET s{side} = excluded.s{side}",
        [(kind, *row) for row in rows],
    )


def _said(entry: User | Plan) -> str:
    """All that is compared of it."""
    quotas = {action: "; ".join(map(str, of)) or "unlimited" for action, of in sorted(entry.quotas.items())}
    if isinstance(entry, Plan):
        return f"{quotas}"
    identities = sorted(map(str, entry.identities))
    return f"plan {entry.plan}, {quotas}, {entry.role}, {'active' if entry.active else 'inactive'}, {identities}"
