"""Events as lines of a file: JSONL for programs, CSV for spreadsheets. The columns keep their names and their order.

    id, user, action, time, cost, allowed, status, duration, resource, request_id, metadata

`time` is UTC, to the millisecond (`2026-01-05T12:00:00.000Z`), `duration` milliseconds. In JSONL every line has every
column, `null` where there is nothing. In CSV nothing is an empty cell, `allowed` is `true` or `false`, and `metadata`
is JSON in a cell. A text that a spreadsheet would run as a formula has a `'` before it, which reading takes off again;
so has an empty text, which is not nothing.

A line that is read is either fields or a reason why not. A file that holds something else altogether is refused as a
whole, by `InvalidInput`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, Protocol, TypeAlias

import msgspec

from ratelimit.errors import InvalidInput, there_are
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.numerals import to_float, to_int

FormatName: TypeAlias = Literal["jsonl", "csv", "parquet"]

COLUMNS: Final = (
    "id", "user", "action", "time", "cost", "allowed", "status", "duration", "resource", "request_id", "metadata",
)  # fmt: skip

# What makes a cell a formula (OWASP, "CSV Injection"), the full-width forms included; and the mark itself, so that
# taking it off is always right.
_FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠'")  # noqa: RUF001
_MARK: Final = "'"
# Besides being the standard, it makes the writer quote a cell that holds either of them.
_END: Final = "\r\n"

MAX_LINE_BYTES: Final = 64 * 1024
FIELDS: Final = (*COLUMNS, "at")
"""What a line may say: an event's columns, and its time in milliseconds instead of `time`."""

SUFFIXES: Final[dict[str, FormatName]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
_MAGIC: Final = {
    b"PAR1": "a Parquet file; say --format parquet, or end its name in .parquet",
    b"\x1f\x8b": "compressed; unpack it first",
    b"PK\x03\x04": "a ZIP archive (or a spreadsheet); save it as CSV in UTF-8",
    b"\xff\xfe": "text in UTF-16; save it in UTF-8",
}
_TRUNCATED: Final = "; the file ends in the middle of it, so it was cut short"


class Encoder(Protocol):
    """How a format is written."""

    head: bytes
    """What stands before the first event."""

    def encode(self, events: Sequence[UsageEvent]) -> bytes:
        """Return the events as whole lines."""


class Jsonl:
    """One JSON object a line."""

    head = b""
    _encode = staticmethod(msgspec.json.Encoder().encode_lines)

    def encode(self, events: Sequence[UsageEvent]) -> bytes:
        return self._encode([{**_plain(event), "metadata": _raw(event)} for event in events])


class Csv:
    """RFC 4180, in UTF-8; the names of the columns first."""

    head = (",".join(COLUMNS) + _END).encode()

    def encode(self, events: Sequence[UsageEvent]) -> bytes:
        lines = StringIO(newline="")
        csv.writer(lines, lineterminator=_END).writerows(map(_row, events))
        return lines.getvalue().encode()


def document(event: UsageEvent) -> dict[str, Any]:
    return {**_plain(event), "metadata": event.metadata}


def text_of_time(event: UsageEvent) -> str:
    return event.at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def without_mark(cell: str) -> str:
    """Return a cell that is not empty as it was before `'` kept a spreadsheet from running it."""
    return cell[1:] if cell[0] == _MARK and (len(cell) == 1 or cell[1] in _FORMULA) else cell


def _plain(event: UsageEvent) -> dict[str, Any]:
    return {name: text_of_time(event) if name == "time" else getattr(event, name) for name in COLUMNS[:-1]}


def _raw(event: UsageEvent) -> msgspec.Raw:
    return msgspec.Raw(encode_metadata(event.metadata))


def _row(event: UsageEvent) -> tuple[object, ...]:
    return (
        _marked(event.id),
        _marked(event.user),
        _marked(event.action),
        text_of_time(event),
        event.cost,
        "true" if event.allowed else "false",
        event.status,
        event.duration,
        _marked(event.resource),
        _marked(event.request_id),
        encode_metadata(event.metadata).decode() if event.metadata else None,
    )


def _marked(text: str | None) -> str | None:
    return _MARK + text if text is not None and (not text or text[0] in _FORMULA) else text


class FileLine(NamedTuple):
    """One record of a file."""

    number: int
    """Of its first line in the file, from 1."""
    text: str
    fields: dict[str, Any]
    """What it says; empty where there is a `problem`."""
    problem: str = ""
    end: int = 0
    """Bytes of the file up to and including it."""


def format_of(path: Path) -> FormatName:
    """Return the format that the file's suffix says. Raise `InvalidInput`."""
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise InvalidInput(f"{path} could be anything; say --format jsonl or --format csv (or parquet)") from None


def read_lines(path: Path, format: Literal["jsonl", "csv"]) -> Iterator[FileLine]:
    """Yield every record of a file, empty lines left out. Raise `OSError`, and `InvalidInput` for a foreign file.

    A line of more than `MAX_LINE_BYTES` is a sign of one.
    """
    check_lasts(path)
    with path.open("rb") as file:
        start = file.read(4)
        for magic, what in _MAGIC.items():
            if start.startswith(magic):
                raise InvalidInput(f"{path} is {what}")
        file.seek(0)
        yield from _read_csv(path, file) if format == "csv" else _read_jsonl(path, file)


def check_lasts(path: Path) -> None:
    """Raise `InvalidInput` for a pipe, of which nothing is left for those who read it again."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InvalidInput(f"{path} is no file, and is read more than once; write it into one first")


def _read_jsonl(path: Path, file: BinaryIO) -> Iterator[FileLine]:
    for number, raw, end in _raw_lines(path, file):
        text = raw.decode(errors="backslashreplace")
        if number == 1 and text.startswith("["):
            raise InvalidInput(f"{path} is one JSON list; write one object a line, as `jq -c '.[]'` does")
        if not text.strip():
            continue
        try:
            fields, problem = json_fields(raw.decode())
        except UnicodeDecodeError as error:
            fields, problem = {}, _no_utf8(error)
        yield FileLine(number, text, fields, problem, end)


def json_fields(line: str) -> tuple[dict[str, Any], str]:
    """Return what a line says as a JSON object, and what is wrong with it."""
    try:
        fields = json.loads(line, object_pairs_hook=fields_once)
    except (ValueError, RecursionError) as error:
        return {}, f"is not JSON: {error}" + ("" if line.endswith("\n") else _TRUNCATED)
    return (fields, "") if isinstance(fields, dict) else ({}, "is no JSON object")


def csv_records(lines: Iterable[str], delimiter: str = ",") -> Iterator[tuple[int, list[str], str, str]]:
    """Yield the number of its first line, the cells, the text, and what is wrong, of each record; empty lines are none.

    The reader takes the lines that it needs: `taken` is what it took.
    """
    taken: list[str] = []

    def supply() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    reader = csv.reader(supply(), delimiter=delimiter, strict=True)
    number = 1
    while True:
        cells, problem = [], ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"is not CSV: {error}" + (_TRUNCATED if "unexpected end" in str(error) else "")
        if cells or problem:
            yield number, cells, "".join(taken), problem
        number += len(taken)
        taken.clear()


def _read_csv(path: Path, file: BinaryIO) -> Iterator[FileLine]:
    end = 0

    def supply() -> Iterator[str]:
        nonlocal end
        for _, raw, end in _raw_lines(path, file):  # noqa: B007 - `end` is for the one outside
            yield raw.decode(errors="surrogateescape")

    header: list[str] | None = None
    for number, cells, text, problem in csv_records(supply()):
        if header is None:
            header = _header(path, cells, problem)
            continue
        whole = text.encode(errors="surrogateescape")
        problem = problem or _bad_cells(cells, header, whole)
        shown = whole.decode(errors="backslashreplace")
        yield FileLine(number, shown, {} if problem else _fields(header, cells), problem, end)


def _raw_lines(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes, int]]:
    """Yield the number, the bytes (without a byte order mark), and where it ends in the file, of each line."""
    number, end = 0, 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        end += len(raw)
        if len(raw) > MAX_LINE_BYTES:
            raise InvalidInput(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes; this is no file of events")
        if number == 1 and b"\0" in raw:  # later on it may stand in a cell: a path can have one
            raise InvalidInput(f"{path}, line 1: holds NUL bytes; this is no text")
        yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, end


def _header(path: Path, cells: list[str], problem: str) -> list[str]:
    if problem:
        raise InvalidInput(f"{path}, line 1: {problem}")
    return check_columns(f"{path}, line 1", [cell.strip().lower() for cell in cells])


def check_columns(where: str, names: list[str]) -> list[str]:
    """Return the columns of a file, if its rows can be events. Raise `InvalidInput`."""
    missing = [name for name in ("user", "action") if name not in names]
    if not {"time", "at", "id"} & set(names):
        missing.append("time")
    if missing:
        found = ", ".join(names)[:100]
        raise InvalidInput(f"{where}: the header lacks {', '.join(missing)} (it has: {found}); {_KNOWN}")
    if unknown := [name for name in names if name not in FIELDS]:
        raise InvalidInput(f"{where}: unknown columns {', '.join(unknown)}; {_KNOWN}")
    if len(set(names)) < len(names):
        raise InvalidInput(f"{where}: a column is named twice")
    return names


def _bad_cells(cells: list[str], header: list[str], raw: bytes) -> str:
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return _no_utf8(error)
    ended = raw.endswith(b"\n")
    if len(cells) != len(header):
        cut = "" if ended or len(cells) > len(header) else _TRUNCATED
        return f"has {len(cells)} cells, and the header {len(header)}{cut}"
    # A number that lost its last digits, or a text its end, would still be a whole line.
    return "" if ended else "has no line feed at its end, so it may be cut short; if it is whole, add one"


def _fields(header: list[str], cells: list[str]) -> dict[str, Any]:
    return {name: _VALUES.get(name, without_mark)(cell) for name, cell in zip(header, cells, strict=True) if cell}


def fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON. Raises `ValueError` where a name stands in it twice: who knows which is meant?"""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return fields


def to_json(cell: str) -> object:
    """Return what the text says; itself where it is no JSON: the event says what would be right."""
    return _or_text(lambda text: json.loads(text, object_pairs_hook=fields_once), cell)


def _or_text(parse: Callable[[str], object], cell: str) -> object:
    try:
        return parse(cell)
    except (ValueError, RecursionError):
        return cell


def _number(parse: Callable[[str], object]) -> Callable[[str], object]:
    return lambda cell: _or_text(lambda text: parse(text.strip()), cell)


def _no_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 at byte {error.start + 1}"


_KNOWN: Final = there_are(FIELDS)
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}
_VALUES: Final[dict[str, Callable[[str], object]]] = {
    **dict.fromkeys(("cost", "status", "at"), _number(to_int)),
    "duration": _number(to_float),
    "allowed": lambda cell: _TRUTH.get(cell.lower(), cell),
    "metadata": to_json,
}
