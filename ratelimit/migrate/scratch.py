"""`Scratch`: sums and notes that may outgrow memory, in an SQLite file that goes with the run."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import Any, Final, Self

_CACHE_KB: Final = 16 * 1024


class Scratch:
    """Used from one thread at a time. Nothing in it survives a crash, nor has to."""

    def __init__(self, folder: Path, schema: str) -> None:
        handle, name = mkstemp(prefix=".ratelimit-migrate-", suffix=".scratch", dir=folder)
        os.close(handle)
        self._path = Path(name)
        self._database = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        self._database.executescript(schema)
        self._database.execute("BEGIN")

    def put(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """The statement, for each of the rows."""
        self._database.executemany(statement, rows)

    def rows(self, query: str, *parameters: Any) -> Iterator[tuple[Any, ...]]:
        """What a query finds, as it is read."""
        return iter(self._database.execute(query, parameters))

    def one(self, query: str, *parameters: Any) -> Any:
        """The first value of the first row; None where there is none."""
        row = self._database.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)
