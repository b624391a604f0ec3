"""How far a migration has come, on the disk: the same command goes on from there, also after a `kill -9`."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from tempfile import mkstemp
from typing import Any, BinaryIO, Final, Literal, Protocol, Self

import msgspec

from ratelimit.clock import instant
from ratelimit.errors import InvalidInput
from ratelimit.migrate.rows import Entity, SourceRow, readable

_VERSION: Final = 2
_MOST_REASONS: Final = 50
_NUMBER = re.compile(r"(?<![\w-])\d+")  # not that of a name: latin-1
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^\s()'"]+@[^\s()'"]+""")
_FEW_VALUES: Final = "unknown action"


class Counts(msgspec.Struct):
    """What came of the rows of one entity."""

    read: int = 0
    written: int = 0
    there: int = 0
    """In the table before: from an earlier run, or the same row twice in the source."""
    kept: int = 0
    """In the table already, where they say something else: left as they are."""
    expired: int = 0
    """Events older than the table keeps them."""
    rejected: int = 0
    reasons: dict[str, int] = {}

    def note(self, outcomes: Iterable[Literal["written", "there", "kept"]]) -> None:
        for outcome in outcomes:
            setattr(self, outcome, getattr(self, outcome) + 1)

    def reject(self, reason: str) -> None:
        """Count one more. What differs from row to row is left out of the reason, so that equal ones add up; an unknown
        action is what has to go into the mapping."""
        self.rejected += 1
        reason = readable(reason)
        kind = reason if reason.startswith(_FEW_VALUES) else _NUMBER.sub("N", _QUOTED.sub("'…'", reason))
        if kind not in self.reasons and len(self.reasons) >= _MOST_REASONS:
            kind = "others"
        self.reasons[kind] = self.reasons.get(kind, 0) + 1


class ProgressListener(Protocol):
    """Hears how reading goes."""

    def __call__(self, entity: Entity, counts: Counts, done: int, size: int | None) -> None:
        """Hear of a batch: `done` of `size` (None where nobody knows it) is behind the counts."""
        ...


class Checkpoint(msgspec.Struct, kw_only=True):
    """Good for the same source, target and choices only."""

    began: int
    """Microseconds: when the run did."""
    run: str = ""
    """Its id, by which it can be taken back."""
    stamp: str = ""
    done: list[Entity] = []
    entity: Entity | None = None
    place: str | None = None
    behind: int = 0
    """`Batch.done` at the place."""
    counts: dict[Entity, Counts] = {}
    units: float = 0.0
    rejects_bytes: int = 0
    notes: list[str] = []
    """What a reader of the report should know, each once."""
    version: int = _VERSION

    def of(self, entity: Entity) -> Counts:
        """Return its counts, from 0 where it is new."""
        return self.counts.setdefault(entity, Counts())

    def note(self, notes: Iterable[str]) -> None:
        self.notes = list(dict.fromkeys([*self.notes, *notes]))


def new_run(began: int) -> str:
    """Return an id for a run that began then (µs): ids sort as the runs began, which is how they are undone."""
    return f"{instant(began):%Y%m%d-%H%M%S-%f}-{token_hex(2)}"


def forget_run(folder: Path, run: str) -> None:
    """Delete the checkpoint of a run that was taken back: it is not gone on with."""
    for path in folder.glob("ratelimit-migrate-*.checkpoint"):
        with suppress(msgspec.DecodeError):
            if msgspec.json.decode(path.read_bytes(), type=Checkpoint).run == run:
                path.unlink()


class Workspace:
    """The files of one migration, known by what it is about: the checkpoint, and the rejected rows."""

    def __init__(self, folder: Path, about: Iterable[object]) -> None:
        digest = blake2b(repr(tuple(about)).encode(), digest_size=4).hexdigest()
        self.folder = folder
        self.saved = folder / f"ratelimit-migrate-{digest}.checkpoint"
        self.rejects = folder / f"ratelimit-migrate-{digest}.rejected.jsonl"
        self._file: BinaryIO | None = None

    def load(self) -> Checkpoint | None:
        """Return what an earlier run left; None where there is nothing to go on with. Raises `InvalidInput`."""
        try:
            found = msgspec.json.decode(self.saved.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return None
        except msgspec.DecodeError:
            raise InvalidInput(
                f"{self.saved} is damaged; begin anew with --restart, nothing is written twice"
            ) from None
        if found.version != _VERSION:
            raise InvalidInput(f"{self.saved} is of another version; begin anew with --restart")
        return found

    def begun(self, now: int) -> Checkpoint:
        """Return the checkpoint to go on from, or that of a new run which begins now (µs). Raises `InvalidInput`."""
        checkpoint = self.load() or Checkpoint(began=now)
        checkpoint.run = checkpoint.run or new_run(checkpoint.began)
        return checkpoint

    def begin(self, checkpoint: Checkpoint) -> None:
        """Open the rejects, and cut off those that were written after the checkpoint: they will come again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = self.rejects.open("r+b" if self.rejects.exists() else "w+b")
        self._file.truncate(checkpoint.rejects_bytes)
        self._file.seek(0, os.SEEK_END)
        checkpoint.rejects_bytes = self._file.tell()
        self.save(checkpoint)

    def reject(self, entity: Entity, row: SourceRow) -> None:
        """Keep a row that cannot be used, with the reason."""
        assert self._file is not None
        said = {"entity": entity, "row": row.where, "reason": row.problem, "text": row.text}
        self._file.write(msgspec.json.encode({name: readable(text) for name, text in said.items()}) + b"\n")

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, once the rejects that it counts are on the disk."""
        assert self._file is not None
        self._file.flush()
        os.fsync(self._file.fileno())
        checkpoint.rejects_bytes = self._file.tell()
        fresh = self.saved.with_name(self.saved.name + ".new")
        fresh.write_bytes(msgspec.json.encode(checkpoint))
        os.replace(fresh, self.saved)

    def finish(self) -> None:
        """Leave nothing to go on with."""
        self.close()
        self.saved.unlink(missing_ok=True)
        if self.rejects.exists() and not self.rejects.stat().st_size:
            self.rejects.unlink()

    def forget(self) -> None:
        self.saved.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


# `Scratch`: sums and notes that may outgrow memory, in an SQLite file that goes with the run.

SEEN: Final = "CREATE TABLE seen (id BLOB PRIMARY KEY) WITHOUT ROWID;"
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
        self._database.executemany(statement, rows)

    def is_new(self, event_id: str) -> bool:
        """Return whether an event's id comes for the first time; `SEEN` has to be in the schema."""
        raw = bytes.fromhex(event_id.replace("-", ""))
        if self.one("SELECT 1 FROM seen WHERE id = ?", raw):
            return False
        self.put("INSERT INTO seen VALUES (?)", [(raw,)])
        return True

    def rows(self, query: str, *parameters: Any) -> Iterator[tuple[Any, ...]]:
        return iter(self._database.execute(query, parameters))

    def one(self, query: str, *parameters: Any) -> Any:
        """Return the first value of the first row; None where there is none."""
        row = self._database.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        self._path.unlink(missing_ok=True)
