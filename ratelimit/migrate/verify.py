"""Verification: source and table compared, both ways, without trusting what a run said of itself.

Everything is read and converted once more. Events are compared by user, day and action: their number and a digest of
their ids. Of a sample, chosen by id and so the same on both sides, the whole event is compared. Users and plans are
compared one by one; counters by every field, with what all uses that the source has by now come to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from ratelimit.clock import DAY, Clock, SystemClock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.event import RETENTION_DAYS, UsageEvent
from ratelimit.migrate.checkpoint import Counts, Scratch
from ratelimit.migrate.diff import SIDES, SOURCE, TARGET, Compared, Counters, Entries, Events, Verdict
from ratelimit.migrate.migration import Order, check_found, opened
from ratelimit.migrate.reader import Listener, ahead, learn_rules, several, uses_of
from ratelimit.migrate.rows import Counted, Entity, Source
from ratelimit.migrate.sources import patient
from ratelimit.migrate.tally import SCHEMA, Rules, Tally
from ratelimit.store.base import ScanPage
from ratelimit.store.directory import Plan, User
from ratelimit.store.retry import retry


async def verify(
    order: Order, *, listener: Listener, more_is_fine: bool = False, clock: Clock | None = None
) -> Verdict:
    """Compare. `more_is_fine` where the table is in use already. Raises as `run` does."""
    clock = clock or SystemClock()
    async with opened(order.open(clock)) as source, DynamoDBStore(patient(order.target)) as store:
        choices = order.choices(await source.entities())
        order.work_dir.mkdir(parents=True, exist_ok=True)
        check = _Check(source, store, Verdict(more_is_fine=more_is_fine), order, clock.now(), listener)
        for entity in choices.entities:
            await check.one(entity)
        check.verdict.notes += await source.notes()
        check_found(source, check.read, check.verdict.notes)
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
        self.read: dict[Entity, int] = {}

    async def one(self, entity: Entity) -> None:
        compared = self.verdict.entities[entity] = Compared()
        with Scratch(self._order.work_dir, SCHEMA + SIDES) as scratch:
            if entity == "events":
                await self._events(scratch, compared)
            elif entity == "counters":
                await self._counters(scratch, compared)
            else:
                await self._entries(entity, scratch, compared)

    async def _events(self, scratch: Scratch, compared: Compared) -> None:
        sides, seen = Events(scratch), _Seen(scratch, needed=not self._source.keyed)
        until = self._now // 1000
        since = until - RETENTION_DAYS * DAY // 1000
        async for entries in self._from_source("events"):
            events = [one for one in entries if isinstance(one, UsageEvent) and one.at_ms <= until and seen.first(one)]
            compared.source += len(events)
            await asyncio.to_thread(sides.note, SOURCE, events)
        cursor: str | None = None
        while True:
            page: ScanPage[UsageEvent] = await retry(
                lambda cursor=cursor: self._store.scans.events(since=since, until=until + 1, cursor=cursor)  # type: ignore[misc]
            )
            compared.target += len(page.entries)
            await asyncio.to_thread(sides.note, TARGET, page.entries)
            if (cursor := page.cursor) is None:
                break
        sides.judge(self.verdict, compared)

    async def _entries(self, entity: Entity, scratch: Scratch, compared: Compared) -> None:
        sides = Entries(scratch, entity)
        async for entries in self._from_source(entity):
            sides.note(SOURCE, [one for one in entries if isinstance(one, User | Plan)])
        kind: type[User | Plan] = User if entity == "users" else Plan
        cursor: str | None = None
        while True:
            page = await retry(
                lambda cursor=cursor: self._store.directory.page(kind, limit=1000, cursor=cursor)  # type: ignore[misc]
            )
            sides.note(TARGET, page.entries)
            if (cursor := page.cursor) is None:
                break
        sides.judge(self.verdict, compared)

    async def _counters(self, scratch: Scratch, compared: Compared) -> None:
        rules = Rules(self._order.config.policies)
        await learn_rules(self._store.directory, rules)
        sides = Counters(scratch, now=self._now, marked=not self._source.totals)
        tally = Tally(scratch, rules, now=self._now, keyed=self._source.keyed)
        async for entries in self._from_source("counters"):
            await asyncio.to_thread(tally.add, uses_of(entries))
            sides.note(SOURCE, [(one.key, one.record) for one in entries if isinstance(one, Counted)])
        for found in several(tally.counters()):
            added = [(one.key, {field: each.on(None) for field, each in one.sums.items()}) for one in found]
            await asyncio.to_thread(sides.note, SOURCE, added)
        cursor: str | None = None
        while True:
            page = await retry(lambda cursor=cursor: self._store.scans.records(cursor=cursor))  # type: ignore[misc]
            await asyncio.to_thread(sides.note, TARGET, page.entries)
            if (cursor := page.cursor) is None:
                break
        sides.judge(self.verdict, compared)

    async def _from_source(self, entity: Entity) -> AsyncGenerator[Sequence[Any], None]:
        self.read[entity] = 0
        counts, size = Counts(), await self._source.size(entity)
        batches = self._source.batches(entity, after=None, size=self._order.batch_size)
        async with aclosing(ahead(batches)) as found:
            async for batch in found:
                counts.read += len(batch.rows)
                self.read[entity] = counts.read
                self._tell(entity, counts, batch.done, size)
                yield [row.entry for row in batch.rows if row.entry is not None]


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
