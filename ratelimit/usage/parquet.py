"""Parquet, written by `ParquetFile` and read by `read_rows`, for which it needs pyarrow (the extra `parquet`).

A file of this kind has its directory at its end, so that one which was cut short is worth nothing: an export to it
begins anew, and appears under its name when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ratelimit.clock import instant
from ratelimit.errors import ConfigError, InvalidInput
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.usage.export import ExportCheckpoint, beside
from ratelimit.usage.formats import COLUMNS, FileLine, check_columns, to_json

ROW_GROUP: Final = 10_000
"""Events in memory at most, and rows in a group."""


class ParquetFile:
    """Columns as in `ratelimit.usage.formats`; `time` is a timestamp in UTC, `metadata` JSON text."""

    def __init__(self, path: Path) -> None:
        self._arrow = _pyarrow()
        self._path = path
        self._part = beside(path, ".part")
        self._schema = _schema(self._arrow)
        self._writer: Any = None
        self._waiting: list[UsageEvent] = []

    def begin(self, checkpoint: ExportCheckpoint) -> ExportCheckpoint:
        self._writer = self._arrow.parquet.ParquetWriter(self._part, self._schema)
        return checkpoint

    def write(self, events: Sequence[UsageEvent]) -> int:
        """Keep the events until a group is full, and return the bytes that it took."""
        self._waiting += events
        if len(self._waiting) < ROW_GROUP:
            return 0
        return self._write_group()

    def save(self, checkpoint: ExportCheckpoint) -> None:
        """Do nothing: no export could go on from there."""

    def finish(self) -> int:
        if self._waiting:
            self._write_group()
        self._writer.close()
        size = self._part.stat().st_size
        os.replace(self._part, self._path)
        return size

    def abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._part.unlink(missing_ok=True)

    def _write_group(self) -> int:
        before = self._part.stat().st_size
        columns = {name: [_cell(event, name) for event in self._waiting] for name in self._schema.names}
        self._writer.write_table(self._arrow.table(columns, schema=self._schema), row_group_size=ROW_GROUP * 2)
        self._waiting.clear()
        return max(0, self._part.stat().st_size - before)


def read_rows(path: Path) -> Iterator[FileLine]:
    """Yield every row of a file, numbered from 1. Raise `OSError`, and `InvalidInput` for a file of another kind."""
    arrow = _pyarrow()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            rows = arrow.parquet.ParquetFile(file)
            names = check_columns(str(path), rows.schema_arrow.names)
            number, total = 0, max(1, rows.metadata.num_rows)
            for batch in rows.iter_batches(batch_size=ROW_GROUP):
                columns = [_values(arrow, path, name, batch.column(at)) for at, name in enumerate(names)]
                for values in zip(*columns, strict=True):
                    number += 1
                    fields = dict(zip(names, values, strict=True))
                    yield FileLine(number, str(fields), _as_line(fields), end=size * number // total)
        except arrow.ArrowException as error:
            raise InvalidInput(f"{path} is no Parquet file that can be read: {error}") from None


def _values(arrow: Any, path: Path, name: str, column: Any) -> list[Any]:
    if name == "time" and arrow.types.is_timestamp(column.type):
        if column.type.tz is None:
            raise InvalidInput(f"{path}: the column time has no time zone; make it a timestamp in UTC")
        column = column.cast(arrow.timestamp("ms", tz="UTC"), safe=False).cast(arrow.int64())
    return list(column.to_pylist())


def _as_line(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what a line of JSONL would say: a timestamp as `at`, and metadata that is text as the JSON it is."""
    if type(fields.get("time")) is int:
        moment = fields.pop("time")
        if fields.setdefault("at", moment) is None:
            fields["at"] = moment
        elif fields["at"] != moment:
            fields["time"] = instant(moment * 1000).isoformat()
    if type(fields.get("metadata")) is str:
        fields["metadata"] = to_json(fields["metadata"])
    return fields


def _cell(event: UsageEvent, column: str) -> object:
    if column == "time":
        return event.at_ms
    if column == "metadata":
        return encode_metadata(event.metadata).decode()
    return getattr(event, column)


def _schema(arrow: Any) -> Any:
    types = {
        "time": arrow.timestamp("ms", tz="UTC"),
        "cost": arrow.int64(),
        "allowed": arrow.bool_(),
        "status": arrow.int16(),
        "duration": arrow.float64(),
    }
    optional = ("status", "duration", "resource", "request_id")
    fields = [arrow.field(name, types.get(name, arrow.string()), nullable=name in optional) for name in COLUMNS]
    return arrow.schema(fields)


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("format", "parquet needs pyarrow; pip install 'ratelimit-dynamodb[parquet]'") from None
    return pyarrow
