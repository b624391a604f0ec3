"""By which columns a table can be read page after page, and the place behind a page."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from ratelimit.errors import InvalidInput
from ratelimit.migrate.rows import SourceRefused

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
    """Those that are unique by themselves, and for all rows: an index may be about some of them only (`WHERE`)."""
    several = [inspector.get_pk_constraint(table, schema).get("constrained_columns") or []]
    several += [constraint["column_names"] for constraint in inspector.get_unique_constraints(table, schema)]
    several += [
        index["column_names"]
        for index in inspector.get_indexes(table, schema)
        if index.get("unique") and not any(name.endswith("_where") for name in index.get("dialect_options", ()))
    ]
    return {names[0] for names in several if len(names) == 1}


def is_key(column: Mapping[str, Any]) -> bool:
    """Whether its type, as SQLAlchemy found it, is one to go on by."""
    return type(column["type"]).__name__ in _TYPES


def place_of(last: object, done: int) -> str:
    """Behind the row with this key, with the key's type: a database compares it with nothing else. Raises
    `SourceRefused`."""
    try:
        return msgspec.json.encode((type(last).__name__, last, done)).decode()
    except UnicodeEncodeError:  # SQLite takes any bytes for text
        raise SourceRefused(f"the key {last!r} is not UTF-8") from None


def placed(place: str) -> tuple[Any, int]:
    """The key, and how many rows came before. Raises `InvalidInput`."""
    try:
        kind, last, done = msgspec.json.decode(place, type=tuple[str, msgspec.Raw, int])
        return msgspec.json.decode(last, type=_VALUES[kind]), done
    except (msgspec.DecodeError, KeyError):
        raise InvalidInput("the checkpoint does not fit the source any more; begin anew with --restart") from None
