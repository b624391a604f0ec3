"""Events as lines of a file: JSONL for programs, CSV for spreadsheets. The columns keep their names and their order.

    id, user, action, time, cost, allowed, status, duration, resource, request_id, metadata

`time` is UTC, to the millisecond (`2026-01-05T12:00:00.000Z`), `duration` milliseconds. In JSONL every line has every
column, `null` where there is nothing. In CSV nothing is an empty cell, `allowed` is `true` or `false`, and `metadata`
is JSON in a cell. A text that a spreadsheet would run as a formula has a `'` before it, which `import` takes off again;
so has an empty text, which is not nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from typing import Any, Final, Literal, Protocol, TypeAlias, get_args

import msgspec

from ratelimit.event import UsageEvent, encode_metadata

FormatName: TypeAlias = Literal["jsonl", "csv", "parquet"]
FORMATS: Final[tuple[FormatName, ...]] = get_args(FormatName)

COLUMNS: Final = (
    "id", "user", "action", "time", "cost", "allowed", "status", "duration", "resource", "request_id", "metadata",
)  # fmt: skip

# What makes a cell a formula (OWASP, "CSV Injection"), the full-width forms included; and the mark itself, so that
# taking it off is always right.
_FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠'")  # noqa: RUF001
_MARK: Final = "'"
# Besides being the standard, it makes the writer quote a cell that holds either of them.
_END: Final = "\r\n"


class Encoder(Protocol):
    """How a format is written."""

    def head(self) -> bytes:
        """What comes before the first event."""
        ...

    def encode(self, events: Sequence[UsageEvent]) -> bytes:
        """Whole lines."""
        ...


class Jsonl:
    """One JSON object a line."""

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode_lines

    def head(self) -> bytes:
        """Nothing."""
        return b""

    def encode(self, events: Sequence[UsageEvent]) -> bytes:
        """See `Encoder.encode`."""
        return self._encode([{**_plain(event), "metadata": _raw(event)} for event in events])


class Csv:
    """RFC 4180, in UTF-8."""

    def head(self) -> bytes:
        """The names of the columns."""
        return (",".join(COLUMNS) + _END).encode()

    def encode(self, events: Sequence[UsageEvent]) -> bytes:
        """See `Encoder.encode`."""
        lines = StringIO(newline="")
        csv.writer(lines, lineterminator=_END).writerows(map(_row, events))
        return lines.getvalue().encode()


def document(event: UsageEvent) -> dict[str, Any]:
    """An event for programs: all columns."""
    return {**_plain(event), "metadata": event.metadata}


def text_of_time(event: UsageEvent) -> str:
    """UTC, to the millisecond."""
    return event.at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def without_mark(cell: str) -> str:
    """A cell that is not empty, as it was before `'` kept a spreadsheet from running it."""
    return cell[1:] if cell[0] == _MARK and (len(cell) == 1 or cell[1] in _FORMULA) else cell


def _plain(event: UsageEvent) -> dict[str, Any]:
    return {
        "id": event.id,
        "user": event.user,
        "action": event.action,
        "time": text_of_time(event),
        "cost": event.cost,
        "allowed": event.allowed,
        "status": event.status,
        "duration": event.duration,
        "resource": event.resource,
        "request_id": event.request_id,
    }


def _raw(event: UsageEvent) -> msgspec.Raw:
    """As it is stored, to the letter: `msgspec` spells some numbers otherwise."""
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
