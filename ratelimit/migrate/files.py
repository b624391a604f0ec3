"""`FileSource`: JSON (a list, an object keyed by id, or both under names of tables), JSON lines and CSV, each packed by
gzip or not, a file or a folder.

A file is about what its name says (`usage_log.json`, `users.jsonl.gz`), or what its sections say (`{"users": [...],
"usage_log": {...}}`), or what the only `--entity` says. Of several that are about the same, all are read. That is done
from the beginning in every run: going on skips what was done, and rows without a key are counted alike.
"""

from __future__ import annotations

import asyncio
import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import AsyncGenerator, Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TextIO, TypeAlias, cast

from ratelimit.errors import InvalidInput
from ratelimit.migrate.convert import Converter, DuplicateCounter
from ratelimit.migrate.json_stream import MAX_ELEMENT, JsonStream, UnreadableJson
from ratelimit.migrate.mapping import HELD, Seen, absent, recognised, sketch, unknown_table, unmapped
from ratelimit.migrate.rows import Batch, Entity, Source, SourceRefused, SourceRow, is_asked, readable, rows_of
from ratelimit.usage.formats import check_lasts, csv_records, json_fields

# Opening a file of rows as text: unpacked where it is gzip, and refused by what it is where it is no such file.

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
_SQLITE: Final = b"SQLite format 3\x00"


class OpenFile(NamedTuple):
    """A file that is being read."""

    text: TextIO
    raw: BinaryIO
    """Of which `tell` says how much of the file, packed or not, is behind."""


def split_name(path: Path) -> tuple[str, TextKind | None]:
    """Return what a file's name says that it is about, and of which kind it is: `usage_log.jsonl.gz`."""
    bare = path.with_suffix("") if path.suffix.lower() == _PACKED else path
    kind = _SUFFIXES.get(bare.suffix.lower())
    return (bare.stem if kind or bare.suffix else bare.name), kind


def is_sqlite(path: Path) -> bool:
    """Tell by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def check_encoding(name: str) -> str:
    """Raises `InvalidInput`."""
    try:
        return codecs.lookup(name).name
    except (LookupError, ValueError):
        raise InvalidInput(f"--encoding: {name!r} is no encoding; as in: utf-16, latin-1, cp1252") from None


@contextmanager
def opened(path: Path, encoding: str, *, errors: str = "strict") -> Iterator[OpenFile]:
    """Open a file. Raises `InvalidInput` where it is not text, or what is packed is damaged, also while it is read."""
    with path.open("rb") as raw:
        is_packed = raw.read(2) == _GZIP
        raw.seek(0)
        binary = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_packed else raw
        try:
            start = binary.read(_LOOKED_AT)
            _check(path, start, encoding)
            binary.seek(0)
            name = "utf-8-sig" if encoding == UTF_8 else encoding
            yield OpenFile(io.TextIOWrapper(binary, name, errors=errors, newline=""), raw)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InvalidInput(f"{path} is packed, and damaged or cut short: {error}") from None
        except UnicodeError as error:
            raise InvalidInput(f"{path} {no_text(error, encoding)}") from None


def check_whole(path: Path) -> None:
    """Unpack a packed file once, so that a damaged one is found before anything is written. Raises `InvalidInput`."""
    check_lasts(path)
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
    """Say what is wrong with bytes that are no text in this encoding, and what to do."""
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


_MOST_SECTIONS: Final = 20
_DELIMITERS: Final = ",;\t|"
_SHOWN: Final = 1000
_SHOWN_FIELDS: Final = 100


class _FilePosition(NamedTuple):
    """Where an entity is: the file, and the section in it; None for all of it."""

    path: Path
    section: str | None


class _Row(NamedTuple):
    where: str
    fields: dict[str, Any]
    problem: str
    text: str
    done: int


class FileSource(Source):
    """A file, or a folder of them. `only` is the entity that a file is about whose name does not say it; `wanted` those
    that are asked for, none for all."""

    def __init__(
        self, path: Path, converter: Converter, *, only: Entity | None, wanted: Collection[str], encoding: str
    ) -> None:
        self.name = str(path)
        self._path = path
        self._converter = converter
        self._only = only
        self._wanted = wanted
        self._encoding = check_encoding(encoding)
        self._places: dict[Entity, list[_FilePosition]] = {}
        self._seen: Seen = {}
        self._fields: dict[Entity, dict[str, None]] = {}
        """Names that rows have had, of those that were read."""

    async def open(self) -> None:
        """Raise `InvalidInput` where nothing in it is known."""
        await asyncio.to_thread(self._look)
        mapping = self._converter.mapping
        if unknown := unknown_table(mapping, self._wanted, self._places, self._names()):
            raise SourceRefused(f"{self.name}: {unknown}")
        if not self._places:
            seen = dict(zip(self._names(), self._seen.values(), strict=True))
            raise SourceRefused(
                f"{self.name} says nowhere what it holds; name it usage_log.json, users.csv or "
                f"subscription_plan.jsonl, or say --entity events; {sketch(mapping, seen)}"
            )
        await asyncio.to_thread(self._check_fields)

    async def entities(self) -> Sequence[Entity]:
        found = [kind for kind in HELD if kind in self._places]
        return [*found, "counters"] if "events" in found else found

    async def size(self, entity: Entity) -> int | None:
        return sum(place.path.stat().st_size for place in self._places_of(entity))

    async def _batches(self, entity: Entity, after: str | None, size: int) -> AsyncGenerator[Batch, None]:
        rows = self._rows(entity)
        count, nth = int(after or 0), DuplicateCounter()
        try:
            await asyncio.to_thread(self._pass, entity, islice(rows, count), nth)
            while page := await asyncio.to_thread(lambda: list(islice(rows, size))):
                count += len(page)
                yield Batch([self._read(entity, row, nth) for row in page], str(count), page[-1].done)
        finally:
            rows.close()

    async def notes(self) -> Sequence[str]:
        notes = self._converter.notes()
        for kind, fields in self._fields.items():
            if left := unmapped(self._converter.mapping, kind, fields):
                where = ", ".join(dict.fromkeys(place.section or place.path.name for place in self._places[kind]))
                notes.append(f"{where}: nothing is read from the fields {', '.join(left[:_SHOWN_FIELDS])}")
        if ignored := [name for name in self._seen if not self._is_used(name)]:
            notes.append(f"left alone, as they hold no usage: {', '.join(ignored)}")
        return [readable(note) for note in notes]

    @property
    def files(self) -> Sequence[Path]:
        return tuple(dict.fromkeys(place.path for places in self._places.values() for place in places))

    def stamp(self) -> str:
        found = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.files]
        return json.dumps(found)

    def _read(self, entity: Entity, row: _Row, nth: DuplicateCounter) -> SourceRow:
        if row.problem:
            return SourceRow(row.where, None, row.problem, row.text)
        if len(seen := self._fields.setdefault(rows_of(entity), {})) < _SHOWN_FIELDS:
            seen.update(dict.fromkeys(row.fields))
        return self._converter.read(entity, row.where, row.fields, nth=self._nth(entity, row, nth))

    def _pass(self, entity: Entity, rows: Iterable[_Row], nth: DuplicateCounter) -> None:
        for row in rows:
            self._nth(entity, row, nth)

    def _nth(self, entity: Entity, row: _Row, nth: DuplicateCounter) -> int:
        is_counted = entity in ("events", "counters") and self._converter.key(row.fields) is None
        return nth.of(row.fields) if is_counted else 0

    def _places_of(self, entity: Entity) -> Sequence[_FilePosition]:
        entity = rows_of(entity)
        if entity not in self._places:
            raise InvalidInput(f"{self.name} holds no {entity}")
        return self._places[entity]

    def _look(self) -> None:
        if not self._path.is_dir():
            self._place_file(self._path, self._only or self._kind_of(split_name(self._path)[0]))
            return
        for path in sorted(self._path.iterdir()):
            stem, kind = split_name(path)
            if kind and path.is_file():
                self._place_file(path, self._kind_of(stem))
            elif not path.name.startswith(".") and ".backup-" not in path.name:
                self._seen[path.name] = ((), None)

    def _place_file(self, path: Path, kind: Entity | None) -> None:
        check_whole(path)
        if not _is_lines(path, self._encoding) and (sections := self._sections(path)):
            for section, count in sections.items():
                self._put(_FilePosition(path, section), self._kind_of(section), count)
        else:
            self._put(_FilePosition(path, None), kind, None)

    def _put(self, place: _FilePosition, kind: Entity | None, count: int | None) -> None:
        self._seen[place.section or place.path.name] = ((), count)
        if kind is not None:
            self._places.setdefault(kind, []).append(place)

    def _names(self) -> list[str]:
        """Return the files as a mapping names them: without their suffix."""
        return [split_name(Path(name))[0] if split_name(Path(name))[1] else name for name in self._seen]

    def _is_used(self, name: str) -> bool:
        return any(name == (place.section or place.path.name) for some in self._places.values() for place in some)

    def _kind_of(self, name: str) -> Entity | None:
        mapping = self._converter.mapping
        return next((kind for kind in HELD if recognised(mapping, kind, [name])), None)

    def _check_fields(self) -> None:
        """A field that the mapping names, and that no row has, is a mistake. Mostly the first row has them all."""
        for kind, places in self._places.items():
            if not is_asked(kind, self._wanted):
                continue
            there: dict[str, None] = {}
            for row in self._rows(kind):
                there |= dict.fromkeys(row.fields)
                if row.fields and not absent(self._converter.mapping, kind, "", there, needed=False):
                    break
            where = ", ".join(dict.fromkeys(place.section or place.path.name for place in places))
            problem = absent(self._converter.mapping, kind, where, there, needed=False)
            if there and problem:
                raise SourceRefused(f"{self.name}: {problem.replace('has no column', 'has no field')}")

    def _rows(self, entity: Entity) -> Generator[_Row, None, None]:
        before = 0
        for place in self._places_of(entity):
            for row in self._rows_in(place):
                yield row._replace(done=before + row.done)
            before += place.path.stat().st_size

    def _rows_in(self, place: _FilePosition) -> Iterator[_Row]:
        if split_name(place.path)[1] == "csv":
            return _cells(place.path, self._encoding)
        return _lines(place.path, self._encoding) if _is_lines(place.path, self._encoding) else self._elements(place)

    def _elements(self, place: _FilePosition) -> Generator[_Row, None, None]:
        with opened(place.path, self._encoding) as file:
            try:
                yield from _in_section(place, JsonStream(file.text), file)
            except InvalidInput as error:
                raise InvalidInput(f"{place.path}: {error}") from None

    def _sections(self, path: Path) -> dict[str, int]:
        """Return the sections of a document, each with its size; empty where it has none that may be known."""
        found: dict[str, int] = {}
        with opened(path, self._encoding) as file:
            stream = JsonStream(file.text)
            try:
                if stream.peek() != "{":
                    return {}
                for name in stream.elements():
                    holds = stream.peek() in ("[", "{")
                    found[str(name)] = stream.skip() if holds else -1
                    if len(found) >= _MOST_SECTIONS and not any(map(self._kind_of, found)):
                        return {}  # keyed by ids, then
                stream.end()
            except InvalidInput as error:
                raise InvalidInput(f"{path}: {error}") from None
        if any(map(self._kind_of, found)):
            return found
        is_keyed = self._only or self._kind_of(split_name(path)[0])
        return {} if is_keyed else {name: max(0, count) for name, count in found.items()}


def _is_lines(path: Path, encoding: str) -> bool:
    """Tell by its suffix; a `.json` that begins with one whole object in a line, and has more of them, is lines too."""
    kind = split_name(path)[1]
    with opened(path, encoding, errors="replace") as file:
        if kind in ("jsonl", "csv"):
            return True
        first, second = file.text.readline(MAX_ELEMENT), file.text.readline(MAX_ELEMENT)
    try:
        return bool(second.strip()) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _lines(path: Path, encoding: str) -> Generator[_Row, None, None]:
    with opened(path, encoding, errors="surrogateescape") as file:
        number = 0
        while line := file.text.readline(MAX_ELEMENT + 1):
            number += 1
            is_whole = line.endswith("\n")
            fields, problem = _object(line, encoding)
            if len(line) > MAX_ELEMENT and not is_whole:
                problem = f"is longer than {MAX_ELEMENT} characters"
                while (rest := file.text.readline(MAX_ELEMENT)) and not rest.endswith("\n"):
                    pass
            if number == 1 and line.lstrip().startswith("["):
                raise InvalidInput(f"{path} is one JSON list, and no lines; name it .json")
            if line.strip():
                text = line.encode(errors="backslashreplace").decode()
                yield _Row(f"{path.name} line {number}", fields, problem, text[:_SHOWN], file.raw.tell())


def _object(line: str, encoding: str) -> tuple[dict[str, Any], str]:
    problem = _bad_text(line, encoding)
    return ({}, problem) if problem else json_fields(line)


def _cells(path: Path, encoding: str) -> Generator[_Row, None, None]:
    with opened(path, encoding, errors="surrogateescape") as file:
        first = file.text.readline()
        delimiter = max(_DELIMITERS, key=first.count)
        names = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if problem := _bad_text(first, encoding) or ("names a column twice" if len(set(names)) < len(names) else ""):
            raise InvalidInput(f"{path}, line 1: {problem}")
        for number, cells, text, problem in csv_records(file.text, delimiter):
            problem = problem or _bad_text(text, encoding)
            if not problem and len(cells) != len(names):
                problem = f"has {len(cells)} cells, and the header {len(names)}"
            fields = {} if problem else {name: _cell(cell) for name, cell in zip(names, cells, strict=True)}
            shown = text.rstrip("\r\n").encode(errors="backslashreplace").decode()[:_SHOWN]
            yield _Row(f"{path.name} line {number + 1}", fields, problem, shown, file.raw.tell())


def _cell(text: str) -> str | None:
    r"""Nothing, and MySQL's and PostgreSQL's `\N`, are null."""
    return None if text in ("", r"\N") else text


def _bad_text(text: str, encoding: str) -> str:
    """What was no text stands there in half surrogates."""
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        if "\udc80" <= text[error.start] <= "\udcff":
            return no_text(UnicodeDecodeError(encoding, b"", error.start, error.end, ""), encoding)
    return ""


def _in_section(place: _FilePosition, stream: JsonStream, file: OpenFile) -> Generator[_Row, None, None]:
    if place.section is None:
        yield from _records(place.path.name, stream, file.raw.tell)
        stream.end()
        return
    for name in stream.elements():
        if name == place.section:
            yield from _records(f"{place.path.name} {name}", stream, file.raw.tell)
            return  # nothing behind it is of any concern
        stream.skip()


def _records(where: str, stream: JsonStream, tell: Callable[[], int]) -> Generator[_Row, None, None]:
    """Yield the elements of a list, or of an object whose keys are the ids."""
    for number, key in enumerate(stream.elements(), 1):
        here = f"{where} [{number}]" if key is None else f"{where} {key!r}"
        try:
            value = stream.value()
        except UnreadableJson as error:
            yield _Row(here, {}, str(error), "", tell())
            continue
        if not isinstance(value, dict):
            yield _Row(here, {}, "is no JSON object", json.dumps(value)[:_SHOWN], tell())
        else:
            yield _Row(here, value if key is None else {"id": key, **value}, "", "", tell())
