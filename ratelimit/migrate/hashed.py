"""`HashedSource`: a source for a table in which users stand as keyed hashes. Nobody's name gets there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import msgspec

from ratelimit.event import UsageEvent
from ratelimit.migrate.rows import Batch, Counted, Entity, Entry, Expired, Source
from ratelimit.names import Key
from ratelimit.store.directory import User
from ratelimit.store.hashed import UserHash


class HashedSource:
    """What another source gives, each user exchanged for the hash under this secret. Rejected rows stay as they are."""

    def __init__(self, source: Source, secret: str) -> None:
        self._inner = source
        self.name = source.name
        self.totals = source.totals
        self._hash = UserHash(secret)

    @property
    def keyed(self) -> bool:
        """See `Source.keyed`."""
        return self._inner.keyed

    @property
    def files(self) -> Sequence[Path]:
        """See `Source.files`."""
        return self._inner.files

    async def open(self) -> None:
        """See `Source.open`."""
        await self._inner.open()

    async def entities(self) -> Sequence[Entity]:
        """See `Source.entities`."""
        return await self._inner.entities()

    async def size(self, entity: Entity) -> int | None:
        """See `Source.size`."""
        return await self._inner.size(entity)

    async def batches(self, entity: Entity, *, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        """See `Source.batches`."""
        async with aclosing(self._inner.batches(entity, after=after, size=size)) as batches:
            async for batch in batches:
                yield batch._replace(rows=[row._replace(entry=self._hashed(row.entry)) for row in batch.rows])

    def stamp(self) -> str:
        """See `Source.stamp`."""
        return self._inner.stamp()

    async def notes(self) -> Sequence[str]:
        """See `Source.notes`."""
        return await self._inner.notes()

    async def close(self) -> None:
        """See `Source.close`."""
        await self._inner.close()

    def _hashed(self, entry: Entry | None) -> Entry | None:
        if isinstance(entry, UsageEvent):
            return msgspec.structs.replace(entry, user=self._hash.of(entry.user))
        if isinstance(entry, Expired):
            return entry._replace(user=self._hash.of(entry.user))
        if isinstance(entry, User):
            return replace(entry, id=self._hash.of(entry.id))
        if isinstance(entry, Counted):
            return entry._replace(key=Key(self._hash.of(entry.key.user), entry.key.action))
        return entry
