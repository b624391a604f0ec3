"""From what a command line names to a source: a database, a file, a folder, or a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from ratelimit.clock import Clock
from ratelimit.config import masked
from ratelimit.dynamodb import DynamoDBStore, Settings, parse_url, same_table
from ratelimit.dynamodb.settings import check_one_region
from ratelimit.errors import InvalidInput, within
from ratelimit.migrate.convert import Converter
from ratelimit.migrate.dynamodb import LegacySource, TableSource
from ratelimit.migrate.files import FileSource, is_sqlite
from ratelimit.migrate.plan import MigrationPlan
from ratelimit.migrate.rows import Source
from ratelimit.migrate.sql import SqlSource
from ratelimit.migrate.target import RawTable
from ratelimit.store.hashed import UserHash

_EARLIER: Final = "earlier://"
_TABLE: Final = "dynamodb://"
# A migration has time: an answer that a check would not wait for is still welcome.
_READ_TIMEOUT: Final = 20.0
_CONNECT_TIMEOUT: Final = 5.0
_ATTEMPTS: Final = 5


def source_of(plan: MigrationPlan, clock: Clock) -> Source:
    """Return the source that a URL or a path names, not yet open. Raises `ConfigError`, `InvalidInput`."""
    source = _named(plan, Converter(plan.mapping, clock=clock, actions=plan.actions, costs=plan.costs), clock)
    if plan.config.user_hash_key is not None:
        source.users = UserHash(plan.config.user_hash_key)
    return source


def _named(plan: MigrationPlan, converter: Converter, clock: Clock) -> Source:
    spec = plan.source
    if spec.startswith((_EARLIER, _TABLE)):
        settings = _other_table(spec, plan.target)
        if spec.startswith(_EARLIER):
            return LegacySource(RawTable(settings), converter)
        return TableSource(DynamoDBStore(settings), RawTable(settings), clock=clock)
    if "://" in spec:
        return SqlSource(spec, converter, wanted=plan.entities)
    path = Path(spec)
    if not path.exists():
        raise InvalidInput(
            f"there is no {masked(spec)}; name a file, a folder, or a URL such as mysql://, sqlite:///, earlier://"
        )
    # By its name only where it is empty, as a new database is.
    is_new = path.suffix.lower() in (".db", ".sqlite", ".sqlite3") and path.is_file() and not path.stat().st_size
    if is_new or is_sqlite(path):
        return SqlSource(path, converter, wanted=plan.entities)
    return FileSource(path, converter, only=plan.only, wanted=plan.entities, encoding=plan.encoding)


def migration_settings(settings: Settings) -> Settings:
    """Return the same table with a migration's timeouts and attempts, and the consumed units counted."""
    check_one_region(settings, "a migration fills the table before it counts in many regions, by")
    return replace(
        settings, consumed=True, read_timeout=_READ_TIMEOUT, connect_timeout=_CONNECT_TIMEOUT, attempts=_ATTEMPTS
    )


def _other_table(spec: str, target: Settings) -> Settings:
    with within("the source"):
        settings = parse_url(_TABLE + spec.partition("://")[2])
    if same_table(settings, target):
        raise InvalidInput("source and target are the same table; the source is never changed, so name another target")
    return migration_settings(settings)
