"""A database by its URL, opened so that nothing can be changed in it, and that odd values concern their row only."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from ratelimit.config import masked, redacted
from ratelimit.errors import ConfigError

_DRIVERS: Final = {
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
}
_READ_ONLY: Final = {
    # MySQL turns a TIMESTAMP into the session's zone; ours is UTC.
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION time_zone = '+00:00'"),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION time_zone = '+00:00'"),
    "postgresql": ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",),
    "sqlite": ("PRAGMA query_only = ON",),
}
_ENCODED: Final = "in a password `@` is written %40, `/` %2F, `?` %3F, `#` %23, `:` %3A and `%` %25"


def with_driver(url: str) -> str:
    """`mysql://` and `postgresql://` with the driver that the extra `migrate` brings."""
    scheme, _, rest = url.partition("://")
    return f"{_DRIVERS.get(scheme, scheme)}://{rest}"


def open_engine(sa: Any, url: str | Path) -> Any:
    """Read only, whatever it is. Raises `ConfigError`."""
    try:
        made = sa.make_url(with_driver(url)) if isinstance(url, str) else sa.URL.create("sqlite", database=str(url))
        if made.username is not None and "@" in f"{made.host}{made.database}":
            raise ConfigError("", f"cannot use {masked(str(url))}: {_ENCODED}")
        if made.get_backend_name() == "sqlite":
            engine = _sqlite(sa, made)
        else:
            engine = sa.create_engine(made, pool_pre_ping=True, pool_size=1, max_overflow=1)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError, ValueError) as error:
        raise ConfigError("", f"cannot use {masked(str(url))}: {redacted(error, str(url))}; {_ENCODED}") from None

    sa.event.listen(engine, "connect", partial(_make_read_only, engine.dialect))
    return engine


def _make_read_only(dialect: Any, connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for statement in _READ_ONLY.get(dialect.name, ()):
        cursor.execute(statement)
    cursor.close()
    if dialect.name == "postgresql":  # or it would go back with the transaction
        connection.commit()
    if dialect.driver == "psycopg":
        _read_any_time(connection)
    if dialect.name == "sqlite":  # in which text may be of any bytes: what is no UTF-8 is its row's problem only
        connection.text_factory = lambda raw: raw.decode(errors="surrogateescape")


def _read_any_time(connection: Any) -> None:
    """A time that Python does not have (`infinity`, `0044-03-15 BC`) comes as its text, and so as one row's problem."""
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
