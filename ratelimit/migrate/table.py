"""`TableSource`: another table of this project. Its counters are taken as they are, with all windows and buckets."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from ratelimit.clock import DAY, Clock
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.errors import InvalidCursor, InvalidInput, TableMismatch
from ratelimit.event import MAX_FUTURE_MS, RETENTION_DAYS
from ratelimit.migrate.rows import ENTITIES, Batch, Counted, Entity, Entry, SourceRow
from ratelimit.migrate.target import LOOKED_AT, RawTable, is_foreign, kind_of
from ratelimit.names import Key
from ratelimit.store import Record
from ratelimit.store.directory import Plan, User, name_of
from ratelimit.store.retry import retry

_SHOWN: Final = 20
_RETENTION_MS: Final = RETENTION_DAYS * DAY // 1000


class TableSource:
    """A batch is a page of the table, of whatever size."""

    keyed = True
    totals = True

    def __init__(self, store: DynamoDBStore, raw: RawTable, *, clock: Clock) -> None:
        self.name = f"dynamodb://{store.settings.table}"
        self._store = store
        self._raw = raw
        self._clock = clock

    async def open(self) -> None:
        """Raise `TableMismatch` for a table in which nothing is this project's."""
        await self._store.open()
        await self._raw.open()
        items, _ = await retry(lambda: self._raw.scan(limit=LOOKED_AT))
        if items and all(map(is_foreign, items)):
            kinds = Counter(kind_of(item["PK"]["S"], item["SK"]["S"]) for item in items)
            has = ", ".join(f"{count} items {kind}" for kind, count in kinds.most_common(_SHOWN))
            raise TableMismatch(
                f"nothing in {self.name} is this project's (among the first: {has}); where it has an earlier layout, "
                "write earlier:// instead of dynamodb://"
            )

    async def entities(self) -> Sequence[Entity]:
        return ENTITIES

    async def size(self, entity: Entity) -> int | None:
        """Return None: nobody counts what is in a table."""
        return None

    async def batches(self, entity: Entity, *, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        done, cursor = _place(after)
        while True:
            entries, cursor = await self._page(entity, cursor)
            done += len(entries)
            rows = [SourceRow(_where(entry), entry) for entry in entries]
            yield Batch(rows, f"{done}:{cursor or ''}", done)
            if cursor is None:
                return

    @property
    def files(self) -> Sequence[Path]:
        return ()

    def stamp(self) -> str:
        return ""

    async def notes(self) -> Sequence[str]:
        return ["counters are brought over once: what the other table counts afterwards takes a mirror"]

    async def close(self) -> None:
        await self._raw.close()
        await self._store.close()

    async def _fresh(self, key: Key) -> Record:
        return await retry(lambda: self._store.read(key))

    async def _page(self, entity: Entity, cursor: str | None) -> tuple[Sequence[Entry], str | None]:
        store = self._store
        try:
            if entity in ("plans", "users"):
                kind: type[Plan | User] = Plan if entity == "plans" else User
                page = await retry(lambda: store.directory.page(kind, limit=1000, cursor=cursor))
                return page.entries, page.cursor
            if entity == "events":
                now = self._clock.now() // 1000
                since, until = now - _RETENTION_MS, now + MAX_FUTURE_MS
                events = await retry(lambda: store.scans.events(since=since, until=until, cursor=cursor))
                return events.entries, events.cursor
            records = await retry(lambda: store.scans.records(cursor=cursor))
            return [Counted(key, record, partial(self._fresh, key)) for key, record in records.entries], records.cursor
        except InvalidCursor:
            raise InvalidInput("the checkpoint does not fit the source any more; begin anew with --restart") from None


def _place(after: str | None) -> tuple[int, str | None]:
    done, _, cursor = (after or "0:").partition(":")
    return int(done), cursor or None


def _where(entry: Entry) -> str:
    if isinstance(entry, Plan | User):
        return name_of(entry)
    return " ".join(entry.key) if isinstance(entry, Counted) else f"event {entry.id} of {entry.user}"
