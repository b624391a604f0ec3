"""`SqlSource`: any database that SQLAlchemy reaches, read by key, page after page, in read-only transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote
from uuid import UUID

import msgspec

from ratelimit.config import masked, redacted
from ratelimit.errors import ConfigError, InvalidInput
from ratelimit.migrate.convert import Converter, DuplicateCounter
from ratelimit.migrate.mapping import HELD, NEEDED, Seen, absent, first_of, recognised, sketch, unknown_table, unmapped
from ratelimit.migrate.mapping import Mapping as Columns
from ratelimit.migrate.rows import Batch, Entity, Source, SourceRefused, SourceRow, SourceUnavailable, is_asked, rows_of
from ratelimit.retry import retry_store

# A database by its URL, opened so that nothing can be changed in it, and that odd values concern their row only.

_DRIVERS: Final = {
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}
# Who is read through a cursor waits as long as the writing takes.
_WAITING: Final = "SET SESSION net_write_timeout = 86400"
_READ_ONLY: Final = {
    # MySQL turns a TIMESTAMP into the session's zone; ours is UTC.
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION time_zone = '+00:00'", _WAITING),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION time_zone = '+00:00'", _WAITING),
    "sqlite": ("PRAGMA query_only = ON",),
}
# For the transaction only, as it is read-only: behind a pooler (PgBouncer) the session is others' next.
_PATIENT: Final = (
    "SELECT set_config('idle_in_transaction_session_timeout', '0', true), set_config('statement_timeout', '0', true)"
)
_ENCODED: Final = "in a password `@` is written %40, `/` %2F, `?` %3F, `#` %23, `:` %3A and `%` %25"


def with_driver(url: str) -> str:
    """Return `mysql://` and `postgresql://` with the driver that the extra `migrate` brings."""
    scheme, _, rest = url.partition("://")
    return f"{_DRIVERS.get(scheme, scheme)}://{rest}"


def open_engine(sa: Any, url: str | Path) -> Any:
    """Open a database, to be read only. Raises `ConfigError`."""
    try:
        made = sa.make_url(with_driver(url)) if isinstance(url, str) else sa.URL.create("sqlite", database=str(url))
        if made.username is not None and "@" in f"{made.host}{made.database}":
            raise ConfigError("", f"cannot use {masked(str(url))}: {_ENCODED}")
        if made.get_backend_name() == "sqlite":
            engine = _sqlite(sa, made)
        else:
            engine = sa.create_engine(
                made, pool_pre_ping=True, pool_size=1, max_overflow=1, execution_options={"postgresql_readonly": True}
            )
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError, ValueError) as error:
        raise ConfigError("", f"cannot use {masked(str(url))}: {redacted(error, str(url))}; {_ENCODED}") from None

    sa.event.listen(engine, "connect", partial(_make_read_only, engine.dialect))
    if engine.dialect.name == "postgresql":
        sa.event.listen(engine, "begin", _wait_patiently)
    return engine


def _wait_patiently(connection: Any) -> None:
    connection.exec_driver_sql(_PATIENT, execution_options={"stream_results": False})


def _make_read_only(dialect: Any, connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for statement in _READ_ONLY.get(dialect.name, ()):
        cursor.execute(statement)
    cursor.close()
    if dialect.driver == "psycopg":
        connection.prepare_threshold = None
        _read_any_time(connection)
    if dialect.name == "sqlite":  # in which text may be of any bytes: what is no UTF-8 is its row's problem only
        connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")


def _read_any_time(connection: Any) -> None:
    """Read a time that Python does not have (`infinity`, `0044-03-15 BC`) as its text: one row's problem."""
    from psycopg import DataError
    from psycopg.types import datetime as times

    def lenient(base: Any) -> Any:
        def load(self: Any, data: Any) -> Any:
            try:
                return base.load(self, data)
            except DataError:
                return bytes(data).decode()

        return type(base.__name__, (base,), {"load": load})

    for name in ("date", "time", "timetz", "timestamp", "timestamptz"):
        connection.adapters.register_loader(name, lenient(getattr(times, f"{name.title()}Loader")))


def _sqlite(sa: Any, url: Any) -> Any:
    if not url.database or url.database == ":memory:":
        raise ConfigError("", "name the file of the SQLite database: sqlite:///app.db")
    # `mode=ro` also keeps it from making a file that is not there.
    query = {**url.query, "mode": "ro", "uri": "true"}
    return sa.create_engine(url.set(database=Path(url.database).absolute().as_uri(), query=query))


# By which columns a table can be read page after page, and the place behind a page.

# Their values come in the order in which they are compared, and are the same when they are given back: no float, which
# may be rounded on its way, and no ENUM, which is sorted by its place and compared by its name.
_TYPES: Final = (
    "INTEGER", "BIGINT", "SMALLINT", "MEDIUMINT", "TINYINT", "NUMERIC", "DECIMAL", "NUMBER", "DATE", "DATETIME",
    "TIMESTAMP", "CHAR", "VARCHAR", "TEXT", "NCHAR", "NVARCHAR", "VARCHAR2", "BINARY", "VARBINARY", "BLOB", "BYTEA",
    "UUID",
)  # fmt: skip
# As drivers give them; SQLite has a float in a column of any type.
_VALUES: Final[Mapping[str, type]] = {
    each.__name__: each for each in (int, float, str, bytes, Decimal, UUID, datetime, date)
}


def unique_columns(inspector: Any, table: str, schema: str | None = None) -> set[str]:
    """Return those that are unique by themselves, and for all rows: an index may be about some only (`WHERE`)."""
    several = [inspector.get_pk_constraint(table, schema).get("constrained_columns") or []]
    several += [constraint["column_names"] for constraint in inspector.get_unique_constraints(table, schema)]
    several += [
        index["column_names"]
        for index in inspector.get_indexes(table, schema)
        if index.get("unique") and not any(name.endswith("_where") for name in index.get("dialect_options", ()))
    ]
    return {names[0] for names in several if len(names) == 1}


def is_key(column: Mapping[str, Any]) -> bool:
    """Return whether its type, as SQLAlchemy found it, is one to go on by."""
    return type(column["type"]).__name__ in _TYPES


def place_of(last: object, done: int) -> str:
    """Return the place behind the row with this key, with its type: a database compares it with nothing else. Raises
    `SourceRefused`."""
    try:
        return msgspec.json.encode((type(last).__name__, last, done)).decode()
    except UnicodeEncodeError:  # SQLite takes any bytes for text
        raise SourceRefused(f"the key {last!r} is not UTF-8") from None


def placed(place: str) -> tuple[Any, int]:
    """Return the key, and how many rows came before. Raises `InvalidInput`."""
    try:
        kind, last, done = msgspec.json.decode(place, type=tuple[str, msgspec.Raw, int])
        return msgspec.json.decode(last, type=_VALUES[kind]), done
    except (msgspec.DecodeError, KeyError):
        raise InvalidInput("the checkpoint does not fit the source any more; begin anew with --restart") from None


T = TypeVar("T")

_MOST_COUNTED: Final = 20
_HAS_HEIRS: Final = "SELECT 1 FROM pg_class WHERE oid = CAST(:name AS regclass) AND relkind = 'r' AND relhassubclass"
# What will not get better by waiting: MySQL's and PostgreSQL's words for "you may not" and "there is none".
_REFUSED_CODES: Final = (1044, 1045, 1049, 1142, 1143, 1146, 1054, 1064)
_REFUSED_STATES: Final = ("28", "3D", "42")


class _Table(NamedTuple):
    """The columns are known of those that are read."""

    columns: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    """Those in which every row has a value of its own, by which they can be put in order."""
    schema: str | None = None
    """Where it is not the connection's own; the table's name begins with it then."""
    in_utc: tuple[str, ...] = ()
    """Columns of times that are in UTC, though their values do not say so."""


class SqlSource(Source):
    """A database by its URL: `mysql://`, `postgresql://`, `sqlite:///file`, or any other of SQLAlchemy's.

    A table whose key column is unique is read by it (`WHERE id > … ORDER BY id LIMIT …`), so that a page costs the same
    wherever it is. Any other, a view too, is read in one go, ordered, through a server-side cursor; what came before a
    row cannot be known in another run, so an interrupted one begins it anew. A path is SQLite's.
    """

    def __init__(self, url: str | Path, converter: Converter, *, wanted: Collection[str] = ()) -> None:
        try:
            import sqlalchemy
        except ImportError:
            raise ConfigError("", "databases need SQLAlchemy: pip install 'ratelimit-dynamodb[migrate]'") from None
        self._sa = sqlalchemy
        self._url = str(url)
        self.name = masked(self._url)
        self._wanted = wanted
        self._converter = converter
        self._engine = open_engine(sqlalchemy, url)
        self._tables: dict[str, _Table] = {}
        self._places: dict[Entity, str] = {}

    @property
    def keyed(self) -> bool:
        return self._key("events") is not None

    async def open(self) -> None:
        self._tables = await self._run(self._look)
        seen = list(self._tables)
        for kind in HELD:
            try:
                found = recognised(self._mapping, kind, seen)
            except InvalidInput as error:
                if is_asked(kind, self._wanted):
                    raise SourceRefused(f"{self.name}: {error}") from None
                continue
            if found is not None:
                self._places[kind] = found
        if unknown := unknown_table(self._mapping, self._wanted, self._places, seen):
            raise SourceRefused(f"{self.name}: {unknown}")
        if not self._places:
            counted = await self._run(self._counted)
            raise SourceRefused(f"nothing in {self.name} is recognised; {sketch(self._mapping, counted)}")
        for kind, table in self._places.items():
            self._tables[table] = await self._run(partial(self._described, table))
            if is_asked(kind, self._wanted) and (
                problem := absent(self._mapping, kind, table, self._tables[table].columns)
            ):
                raise SourceRefused(f"{self.name}: {problem}")

    async def entities(self) -> Sequence[Entity]:
        found = list(self._places)
        return [*found, "counters"] if "events" in found else found

    async def size(self, entity: Entity) -> int | None:
        table = self._selectable(entity)
        query = self._sa.select(self._sa.func.count()).select_from(table)
        return int(await self._run(lambda: self._fetch(query)[0][0]))

    async def _batches(self, entity: Entity, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        table = self._selectable(entity)
        key = self._key(entity)
        pages = self._unkeyed(entity, table, size) if key is None else self._keyed(entity, table, key, after, size)
        async with aclosing(pages):
            async for batch in pages:
                yield batch

    @property
    def files(self) -> Sequence[Path]:
        if self._engine.dialect.name != "sqlite":
            return ()
        return (Path(unquote(str(self._engine.url.database).removeprefix("file://"))),)

    async def notes(self) -> Sequence[str]:
        notes = self._converter.notes()
        for kind, table in self._places.items():
            if is_asked(kind, self._wanted) and (left := unmapped(self._mapping, kind, self._tables[table].columns)):
                notes.append(f"{table}: nothing is read from the columns {', '.join(left)}")
        others = sorted(set(self._tables) - set(self._places.values()))
        return [*notes, f"left alone, as they hold no usage: {', '.join(others)}"] if others else notes

    async def close(self) -> None:
        await asyncio.to_thread(self._engine.dispose)

    async def _keyed(
        self, entity: Entity, table: Any, key: str, after: str | None, size: int
    ) -> AsyncGenerator[Batch, None]:
        pages = self._sa.select(table).order_by(table.c[key]).limit(size)
        query, done, where = pages, 0, f"the first rows of {table.name}"
        if after is not None:
            last, done = placed(after)
            query = pages.where(table.c[key] > last)
        while rows := await self._run(partial(self._fetch, query), what=where):
            last = rows[-1]._mapping[key]
            done += len(rows)
            found = [self._read(entity, f"{table.name} {key} {row._mapping[key]}", row._mapping) for row in rows]
            yield Batch(found, place_of(last, done), done)
            if len(rows) < size:
                return
            query, where = pages.where(table.c[key] > last), f"the rows of {table.name} behind {key} {last}"

    async def _unkeyed(self, entity: Entity, table: Any, size: int) -> AsyncGenerator[Batch, None]:
        """Yield rows. Those that say the same are told apart by counting them, and so have to be near each other."""
        done, nth = 0, DuplicateCounter()
        columns = self._mapping.columns(entity)
        names = [first_of(columns[path], table.c.keys()) for path in sorted(NEEDED) if path in columns]
        order = [table.c[name] for name in names if name is not None]
        where, opened = f"the rows of {table.name}", ExitStack()
        try:
            rows = await self._run(lambda: self._cursor(self._sa.select(table).order_by(*order), opened), what=where)
            while page := await self._run(lambda: self._more(rows, size), what=where, once=True):
                start, done = done, done + len(page)
                found = [
                    self._read(
                        entity,
                        f"{table.name} row {start + at + 1}",
                        row._mapping,
                        nth.of(row._mapping) if self._converter.key(row._mapping) is None else 0,
                    )
                    for at, row in enumerate(page)
                ]
                yield Batch(found, None, done)
        finally:
            await asyncio.to_thread(opened.close)

    def _read(self, entity: Entity, where: str, row: Mapping[str, Any], nth: int = 0) -> SourceRow:
        for name in self._tables[self._table(entity) or ""].in_utc:
            if isinstance(row[name], datetime):
                row = {**row, name: row[name].replace(tzinfo=UTC)}
        return self._converter.read(entity, where, row, nth=nth)

    @property
    def _mapping(self) -> Columns:
        return self._converter.mapping

    def _table(self, entity: Entity) -> str | None:
        return self._places.get(rows_of(entity))

    def _selectable(self, entity: Entity) -> Any:
        """Select by name only, so that values come as the driver has them, of whatever type the table says."""
        name = self._table(entity)
        if name is None:
            raise SourceRefused(f"{self.name} has no table for {entity}; name it in a mapping")
        return self._named(name, self._tables[name].columns)

    def _named(self, table: str, columns: Iterable[str] = ()) -> Any:
        schema, name = self._tables[table].schema, table
        if schema is not None:
            name = table.removeprefix(f"{schema}.")
        return self._sa.table(name, *map(self._sa.column, columns), schema=schema)

    def _key(self, entity: Entity) -> str | None:
        """Return the column to read a table by; None where no two rows are sure to differ in it."""
        table = self._tables.get(self._table(entity) or "")
        names = self._mapping.columns(entity).get(f"{rows_of(entity)}.id", ())
        key = None if table is None else first_of(names, table.columns)
        return key if table is not None and key in table.keys else None

    def _look(self) -> dict[str, _Table]:
        """Find the tables and views there are; by name only those of another schema, and PostgreSQL's materialized
        views and foreign tables."""
        inspector = self._sa.inspect(self._engine)
        found = {name: _Table() for name in [*inspector.get_table_names(), *inspector.get_view_names()]}
        for kind in HELD:
            for name in self._mapping.tables(kind):
                schema, _, table = name.rpartition(".")
                if name not in found and inspector.has_table(table, schema or None):
                    found[name] = _Table(schema=schema or None)
        return found

    def _described(self, table: str) -> _Table:
        inspector, schema = self._sa.inspect(self._engine), self._tables[table].schema
        name = table if schema is None else table.removeprefix(f"{schema}.")
        columns = {column["name"]: column for column in inspector.get_columns(name, schema)}
        unique = unique_columns(inspector, name, schema)
        keys = [columns[key] for key in unique if key in columns and is_key(columns[key])]
        sure = {key["name"] for key in keys if not key["nullable"] or not self._has_null(table, key["name"])}
        if self._engine.dialect.name == "postgresql" and self._has_heirs(table):
            sure = set()
        in_utc: list[str] = []
        if self._engine.dialect.name in ("mysql", "mariadb"):  # in the session's zone, which is UTC
            in_utc = [name for name, column in columns.items() if type(column["type"]).__name__ == "TIMESTAMP"]
        return _Table(tuple(columns), frozenset(sure), schema, tuple(in_utc))

    def _counted(self) -> Seen:
        """Return what there is, with its columns and rows, for people."""
        found: Seen = {}
        for name in list(self._tables)[:_MOST_COUNTED]:
            query = self._sa.select(self._sa.func.count()).select_from(self._named(name))
            found[name] = (self._described(name).columns, int(self._fetch(query)[0][0]))
        return found

    def _has_heirs(self, table: str) -> bool:
        """Look whether other tables inherit from it: their rows are read as its own, and its key does not bind them."""
        name = self._engine.dialect.identifier_preparer.format_table(self._named(table))
        return bool(self._fetch(self._sa.text(_HAS_HEIRS).bindparams(name=name)))

    def _has_null(self, table: str, column: str) -> bool:
        """Look for a null: SQLite calls its row ids nullable, and lets a primary key of any other type be null."""
        of: Any = self._sa.column(column)
        return bool(self._fetch(self._sa.select(of).select_from(self._named(table)).where(of.is_(None)).limit(1)))

    def _fetch(self, query: Any) -> list[Any]:
        with self._engine.connect() as connection:
            return list(connection.execute(query).all())

    def _cursor(self, query: Any, opened: ExitStack) -> Any:
        connection = self._engine.connect()
        try:
            rows = connection.execution_options(stream_results=True, max_row_buffer=1000).execute(query)
        except BaseException:
            connection.close()
            raise
        opened.callback(connection.close)
        opened.callback(rows.close)
        return rows

    @staticmethod
    def _more(rows: Any, size: int) -> list[Any]:
        return list(rows.fetchmany(size))

    async def _run(self, work: Callable[[], T], *, what: str = "", once: bool = False) -> T:
        """Run it in a thread, again while the database is away. Raises `SourceUnavailable`, `SourceRefused`."""

        async def attempt() -> T:
            working = asyncio.ensure_future(asyncio.to_thread(self._explained, work, what))
            try:
                return await asyncio.shield(working)
            except asyncio.CancelledError:  # what the thread has opened by now is closed behind it
                await asyncio.gather(working, return_exceptions=True)
                raise

        return await (attempt() if once else retry_store(attempt))

    def _explained(self, work: Callable[[], T], what: str) -> T:
        errors = self._sa.exc
        try:
            return work()
        except errors.DBAPIError as error:
            said = redacted(str(error.orig).strip().replace("\n", " "), self._url)
            if isinstance(error, errors.DataError):  # waiting does not mend it
                raise SourceRefused(f"{self.name} holds what cannot be read: {said} ({what})") from None
            if _is_refusal(error):
                raise SourceRefused(f"{self.name} refused: {said}") from None
            raise SourceUnavailable(f"{self.name} cannot be read: {said}") from None
        except errors.SQLAlchemyError as error:
            raise SourceRefused(f"{self.name} cannot be used: {redacted(error, self._url)}") from None
        except (ValueError, TypeError) as error:  # a driver's, of what the URL says
            raise SourceRefused(f"{self.name} cannot be used: {redacted(error, self._url)}") from None


def _is_refusal(error: Any) -> bool:
    code = error.orig.args[0] if error.orig.args else None
    state = getattr(error.orig, "sqlstate", None) or ""
    if code in _REFUSED_CODES or state[:2] in _REFUSED_STATES:
        return True
    final = (
        "no such table",
        "no such column",
        "unable to open",
        "not a database",
        "malformed",
        "authentication failed",
    )
    return any(words in str(error.orig) for words in final)
