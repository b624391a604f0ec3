"""From what a command line names to a source: a database, a file, a folder, or a table."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from collections.abc import Mapping as AnyMapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from ratelimit.clock import Clock
from ratelimit.config import Config, masked
from ratelimit.dynamodb import DynamoDBStore, Settings, parse_url, same_table
from ratelimit.dynamodb.settings import check_one_region
from ratelimit.errors import ConfigError, InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.migrate.convert import Converter
from ratelimit.migrate.dynamodb import LegacySource, TableSource
from ratelimit.migrate.files import SQLITE, UTF_8, FileSource, check_encoding
from ratelimit.migrate.mapping import Mapping
from ratelimit.migrate.rows import Batch, Counted, Entity, Entry, Expired, Source
from ratelimit.migrate.sql import SqlSource
from ratelimit.migrate.target import RawTable
from ratelimit.names import Key
from ratelimit.store.directory import User
from ratelimit.store.hashed import UserHash

_EARLIER: Final = "earlier://"
_TABLE: Final = "dynamodb://"
# A migration has time: an answer that a check would not wait for is still welcome.
_READ_TIMEOUT: Final = 20.0
_CONNECT_TIMEOUT: Final = 5.0
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a source is to be read.

    `clock`    says what is too old, and what lies in the future.
    `actions`  those that may be used; None for any.
    `costs`    units that a use takes where a row does not say it, by action.
    `only`     what a file is about whose name does not say it.
    `wanted`   the entities that are asked for; none for all.
    `encoding` of text files.
    """

    mapping: Mapping
    clock: Clock
    actions: Collection[str] | None = None
    costs: AnyMapping[str, int]
    only: Entity | None = None
    wanted: Collection[str] = ()
    encoding: str = UTF_8


def source_of(spec: str, terms: ReadOptions, target: Settings) -> Source:
    """Return the source that a URL or a path names, not yet open. Raises `ConfigError`, `InvalidInput`."""
    converter = Converter(terms.mapping, clock=terms.clock, actions=terms.actions, costs=terms.costs)
    if spec.startswith((_EARLIER, _TABLE)):
        settings = _other_table(spec, target)
        if spec.startswith(_EARLIER):
            return LegacySource(RawTable(settings), converter)
        return TableSource(DynamoDBStore(settings), RawTable(settings), clock=terms.clock)
    if "://" in spec:
        return SqlSource(spec, converter, wanted=terms.wanted)
    path = Path(spec)
    if not path.exists():
        raise InvalidInput(
            f"there is no {masked(spec)}; name a file, a folder, or a URL such as mysql://, sqlite:///, earlier://"
        )
    if _is_sqlite(path):
        return SqlSource(path, converter, wanted=terms.wanted)
    return FileSource(path, converter, only=terms.only, wanted=terms.wanted, encoding=check_encoding(terms.encoding))


def migration_settings(settings: Settings) -> Settings:
    """Return the same table with a migration's timeouts and attempts, and the consumed units counted."""
    check_one_region(settings, "a migration fills the table before it counts in many regions, by")
    return replace(
        settings, consumed=True, read_timeout=_READ_TIMEOUT, connect_timeout=_CONNECT_TIMEOUT, attempts=_ATTEMPTS
    )


def known_actions(config: Config, mapping: Mapping) -> Collection[str] | None:
    """Return the actions of the policies and of the plans' columns; None, for any, where there are no policies."""
    if not config.policies:
        return None
    return {*(policy.name for policy in config.policies), *mapping.plans.quotas, *mapping.users.quotas}


def _is_sqlite(path: Path) -> bool:
    """Tell by its first bytes; by its name only where it is empty, as a new database is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(SQLITE))
    return start == SQLITE or (not start and path.suffix.lower() in (".db", ".sqlite", ".sqlite3"))


def _other_table(spec: str, target: Settings) -> Settings:
    try:
        settings = parse_url(_TABLE + spec.partition("://")[2])
    except ConfigError as error:
        raise error.under("the source") from None
    if same_table(settings, target):
        raise InvalidInput("source and target are the same table; the source is never changed, so name another target")
    return migration_settings(settings)


class HashedSource:
    """What another source gives, each user exchanged for the hash under this secret. Rejected rows stay as they are."""

    def __init__(self, source: Source, secret: str) -> None:
        self._inner = source
        self.name = source.name
        self.totals = source.totals
        self._hash = UserHash(secret)

    @property
    def keyed(self) -> bool:
        return self._inner.keyed

    @property
    def files(self) -> Sequence[Path]:
        return self._inner.files

    async def open(self) -> None:
        await self._inner.open()

    async def entities(self) -> Sequence[Entity]:
        return await self._inner.entities()

    async def size(self, entity: Entity) -> int | None:
        return await self._inner.size(entity)

    async def batches(self, entity: Entity, *, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        async with aclosing(self._inner.batches(entity, after=after, size=size)) as batches:
            async for batch in batches:
                yield batch._replace(rows=[row._replace(entry=self._hashed(row.entry)) for row in batch.rows])

    def stamp(self) -> str:
        return self._inner.stamp()

    async def notes(self) -> Sequence[str]:
        return await self._inner.notes()

    async def close(self) -> None:
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
