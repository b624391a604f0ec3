"""A copy of a file source, beside it, before anything begins: `users.json.backup-20260105T120000Z`."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ratelimit.clock import SECOND

_SQLITE: Final = b"SQLite format 3\x00"


def back_up(files: Sequence[Path], *, began: int) -> list[Path]:
    """The copies, made once for a migration that `began` then (µs). Raises `OSError`."""
    stamp = datetime.fromtimestamp(began // SECOND, UTC).strftime("%Y%m%dT%H%M%SZ")
    copies = []
    for file in files:
        copy = backup_of(file, stamp)
        if not copy.exists():
            part = copy.with_name(copy.name + ".part")
            _copy(file, part)
            part.replace(copy)
        copies.append(copy)
    return copies


def backup_of(file: Path, stamp: str) -> Path:
    """Where it goes."""
    return file.with_name(f"{file.name}.backup-{stamp}")


def _copy(file: Path, to: Path) -> None:
    with file.open("rb") as opened:
        is_sqlite = opened.read(len(_SQLITE)) == _SQLITE
    if not is_sqlite:
        shutil.copy2(file, to)
        return
    # A database that is in use is copied whole only by SQLite itself.
    url = f"{file.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(url, uri=True)) as source, closing(sqlite3.connect(to)) as copy:
        source.backup(copy)
