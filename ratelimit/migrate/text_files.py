"""Opening a file of rows as text: unpacked where it is gzip, and refused by what it is where it is no such file."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Literal, NamedTuple, TextIO, TypeAlias, cast

from ratelimit.errors import InvalidInput

TextKind: TypeAlias = Literal["json", "jsonl", "csv"]

UTF_8: Final = "utf-8"
_PACKED: Final = ".gz"
_GZIP: Final = b"\x1f\x8b"
_SUFFIXES: Final[dict[str, TextKind]] = {
    ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
_DUMP: Final = (
    "an SQL dump; load it into a database and name that: `sqlite3 app.db < dump.sql` and sqlite:///app.db, or "
    "`mysql app < dump.sql` and mysql://user:password@host/app, or `psql app < dump.sql` and postgresql://…"
)
_PG_DUMP: Final = "a dump of PostgreSQL; load it with `pg_restore -d app` and name the database: postgresql://…"
_UTF_16: Final = "text in UTF-16; say --encoding utf-16"
_FOREIGN: Final[dict[bytes, str]] = {
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet); unpack it first, or save it as CSV",
    b"PAR1": "a Parquet file; export JSONL or CSV",
    b"BZh": "compressed by bzip2; unpack it first, or use gzip",
    b"\xfd7zXZ": "compressed by xz; unpack it first, or use gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first, or use gzip",
    b"PGDMP": _PG_DUMP,
}
_DUMPS: Final = (
    b"-- MySQL dump", b"-- MariaDB dump", b"--\n-- PostgreSQL", b"-- PostgreSQL", b"/*!", b"/*M!", b"-- phpMyAdmin",
    b"BEGIN TRANSACTION;", b"PRAGMA foreign_keys", b"CREATE TABLE", b"INSERT INTO", b"SET ", b"DROP TABLE",
)  # fmt: skip
_WIDE: Final = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LOOKED_AT: Final = 64
SQLITE: Final = b"SQLite format 3\x00"


class Opened(NamedTuple):
    """A file that is being read."""

    text: TextIO
    raw: BinaryIO
    """Of which `tell` says how much of the file, packed or not, is behind."""


def split_name(path: Path) -> tuple[str, TextKind | None]:
    """What a file's name says that it is about, and of which kind it is: `usage_log.jsonl.gz`."""
    bare = path.with_suffix("") if path.suffix.lower() == _PACKED else path
    kind = _SUFFIXES.get(bare.suffix.lower())
    return (bare.stem if kind or bare.suffix else bare.name), kind


def check_encoding(name: str) -> str:
    """Raises `InvalidInput`."""
    try:
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise InvalidInput(f"--encoding: {name!r} is no encoding; as in: utf-16, latin-1, cp1252") from None


@contextmanager
def opened(path: Path, encoding: str, *, errors: str = "strict") -> Iterator[Opened]:
    """Raises `InvalidInput` where it is not text, or where what is packed is damaged, also while it is read."""
    with path.open("rb") as raw:
        is_packed = raw.read(2) == _GZIP
        raw.seek(0)
        binary = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_packed else raw
        try:
            start = binary.read(_LOOKED_AT)
            _check(path, start, encoding)
            binary.seek(0)
            name = "utf-8-sig" if encoding == UTF_8 else encoding
            yield Opened(io.TextIOWrapper(binary, name, errors=errors, newline=""), raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(f"{path} is packed, and damaged or cut short: {error}") from None
        except UnicodeError as error:
            raise InvalidInput(f"{path} {no_text(error, encoding)}") from None


def check_whole(path: Path) -> None:
    """Unpack a packed file once, so that a damaged one is found before anything is written. Raises `InvalidInput`."""
    with path.open("rb") as raw:
        if raw.read(2) != _GZIP:
            return
        raw.seek(0)
        try:
            with gzip.GzipFile(fileobj=raw) as unpacked:
                while unpacked.read(1 << 20):
                    pass
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(f"{path} is packed, and damaged or cut short: {error}") from None


def no_text(error: UnicodeError, encoding: str) -> str:
    """What is wrong with bytes that are no text in this encoding, and what to do."""
    where = f" at byte {error.start + 1}" if isinstance(error, UnicodeDecodeError) else ""
    if encoding == UTF_8:
        return f"is not UTF-8{where}; name its encoding: --encoding latin-1, cp1252, utf-16, …"
    return f"is not {encoding}{where}; name another --encoding"


def _check(path: Path, start: bytes, encoding: str) -> None:
    if not start:
        raise InvalidInput(f"{path} is empty")
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise InvalidInput(f"{path} is {what}")
    bare = path.with_suffix("") if path.suffix.lower() == _PACKED else path
    if bare.suffix.lower() in (".sql", ".dump") or start.lstrip().startswith(_DUMPS):
        raise InvalidInput(f"{path} is {_DUMP}")
    if encoding == UTF_8 and start.startswith(_WIDE):
        raise InvalidInput(f"{path} is {_UTF_16 if start[2:4] != bytes(2) else _UTF_16.replace('16', '32')}")
    if encoding == UTF_8 and b"\0" in start:
        raise InvalidInput(f"{path} holds NUL bytes: it is no text, or in UTF-16 (--encoding utf-16-le)")
