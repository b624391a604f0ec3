"""Files of events, read line by line: JSONL, CSV, Parquet (a row is a line), each either fields or a reason why not.

A file that holds something else altogether is refused as a whole, by `InvalidInput`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TypeAlias

from ratelimit.errors import InvalidInput
from ratelimit.numerals import to_float, to_int
from ratelimit.usage.formats import COLUMNS, without_mark

LineFormat: TypeAlias = Literal["jsonl", "csv", "parquet"]

MAX_LINE: Final = 64 * 1024
FIELDS: Final = (*COLUMNS, "at")
"""What a line may say: an event's columns, and its time in milliseconds instead of `time`."""

_SUFFIXES: Final[dict[str, LineFormat]] = {
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
_SHOWN: Final = 1000
_TRUNCATED: Final = "; the file ends in the middle of it, so it was cut short"


class Line(NamedTuple):
    """One record of a file."""

    number: int
    """Of its first line in the file, from 1."""
    text: str
    fields: dict[str, Any]
    """What it says; empty where there is a `problem`."""
    problem: str = ""
    end: int = 0
    """Bytes of the file up to and including it."""


def format_of(path: Path) -> LineFormat:
    """By the file's suffix. Raises `InvalidInput`."""
    try:
        return _SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise InvalidInput(f"{path} could be anything; say --format jsonl or --format csv (or parquet)") from None


def read_lines(path: Path, format: LineFormat, *, longest: int | None = None) -> Iterator[Line]:
    """Every record of a file, empty lines left out. Raises `OSError`, and `InvalidInput` for a foreign file.

    A JSON line of more than `longest` bytes has a problem. Without it, one of more than `MAX_LINE` is a sign of a
    foreign file.
    """
    if format == "parquet":
        from ratelimit.usage.parquet import read_rows

        yield from read_rows(path)
        return
    with path.open("rb") as file:
        start = file.read(4)
        for magic, what in _MAGIC.items():
            if start.startswith(magic):
                raise InvalidInput(f"{path} is {what}")
        file.seek(0)
        yield from _read_csv(path, file) if format == "csv" else _read_jsonl(path, file, longest)


def _read_jsonl(path: Path, file: BinaryIO, longest: int | None) -> Iterator[Line]:
    for number, raw, end in _raw_lines(path, file, longest):
        text = raw.decode(errors="backslashreplace")
        if longest is not None and len(raw) > longest:
            yield Line(number, text[:_SHOWN], {}, f"is longer than {longest} bytes", end)
            continue
        if number == 1 and text.startswith("["):
            raise InvalidInput(f"{path} is one JSON list; write one object a line, as `jq -c '.[]'` does")
        if not text.strip():
            continue
        try:
            fields = json.loads(raw.decode(), object_pairs_hook=_fields_once)
            problem = "" if isinstance(fields, dict) else "is no JSON object"
        except UnicodeDecodeError as error:
            fields, problem = {}, _no_utf8(error)
        except (ValueError, RecursionError) as error:
            fields, problem = {}, f"is not JSON: {error}" + ("" if raw.endswith(b"\n") else _TRUNCATED)
        yield Line(number, text, {} if problem else fields, problem, end)


def _read_csv(path: Path, file: BinaryIO) -> Iterator[Line]:
    """The reader takes the lines that it needs; `taken` is what it took for the record that it is at."""
    taken: list[bytes] = []
    number, end = 1, 0

    def supply() -> Iterator[str]:
        nonlocal end
        for _, raw, end in _raw_lines(path, file):  # noqa: B007 - `end` is for the one outside
            taken.append(raw)
            yield raw.decode(errors="surrogateescape")

    reader = csv.reader(supply(), strict=True)
    header: list[str] | None = None
    while True:
        number += len(taken)
        taken.clear()
        cells: list[str] = []
        problem = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"is not CSV: {error}" + (_TRUNCATED if "unexpected end" in str(error) else "")
        whole = b"".join(taken)
        text = whole.decode(errors="backslashreplace")
        if not cells and not problem:
            continue
        if header is None:
            header = _header(path, cells, problem)
            continue
        problem = problem or _bad_cells(cells, header, whole)
        yield Line(number, text, {} if problem else _fields(header, cells), problem, end)


def _raw_lines(path: Path, file: BinaryIO, longest: int | None = None) -> Iterator[tuple[int, bytes, int]]:
    """Number, bytes (one more than the longest of a line that is longer), and where it ends; a byte order mark is not
    among them."""
    number, end, most = 0, 0, (longest or MAX_LINE) + 1
    while raw := file.readline(most):
        number += 1
        end += len(raw)
        if len(raw) == most and longest is None:
            raise InvalidInput(f"{path}, line {number}: longer than {MAX_LINE} bytes; this is no file of events")
        last = raw
        while len(last) == most and not last.endswith(b"\n"):  # the rest of it
            last = file.readline(most)
            end += len(last)
        if number == 1 and b"\0" in raw:  # later on it may stand in a cell: a path can have one
            raise InvalidInput(f"{path}, line 1: holds NUL bytes; this is no text")
        yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw, end


def _header(path: Path, cells: list[str], problem: str) -> list[str]:
    if problem:
        raise InvalidInput(f"{path}, line 1: {problem}")
    return check_columns(f"{path}, line 1", [cell.strip().lower() for cell in cells])


def check_columns(where: str, names: list[str]) -> list[str]:
    """The columns of a file, if its rows can be events. Raises `InvalidInput`."""
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


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands in it twice")
    return fields


def _number(cell: str) -> object:
    """Left as text where it is none: the event says what would be right."""
    try:
        return to_int(cell.strip())
    except ValueError:
        return cell


def _decimal(cell: str) -> object:
    try:
        return to_float(cell.strip())
    except ValueError:
        return cell


def to_json(cell: str) -> object:
    """Left as text where it is none."""
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        return cell


def _no_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8 at byte {error.start + 1}"


_KNOWN: Final = f"there are: {', '.join(FIELDS)}"
_TRUTH: Final = {"true": True, "false": False, "1": True, "0": False}
_VALUES: Final[dict[str, Callable[[str], object]]] = {
    "cost": _number,
    "status": _number,
    "at": _number,
    "duration": _decimal,
    "allowed": lambda cell: _TRUTH.get(cell.lower(), cell),
    "metadata": to_json,
}
