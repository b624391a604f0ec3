"""`ParquetFile`: a sink that writes Parquet, for which it needs pyarrow (the extra `parquet`).

A file of this kind has its directory at its end, so that one which was cut short is worth nothing: an export to it
begins anew, and appears under its name when it is complete.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ratelimit.errors import ConfigError
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.usage.sinks import Checkpoint, beside

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

    def begin(self, checkpoint: Checkpoint) -> Checkpoint:
        """See `Sink.begin`."""
        self._writer = self._arrow.parquet.ParquetWriter(self._part, self._schema)
        return checkpoint

    def write(self, events: Sequence[UsageEvent]) -> int:
        """See `Sink.write`."""
        self._waiting += events
        if len(self._waiting) < ROW_GROUP:
            return 0
        return self._write_group()

    def save(self, checkpoint: Checkpoint) -> None:
        """Nothing could go on from there."""

    def finish(self) -> int:
        """See `Sink.finish`."""
        if self._waiting:
            self._write_group()
        self._writer.close()
        size = self._part.stat().st_size
        os.replace(self._part, self._path)
        return size

    def abandon(self) -> None:
        """See `Sink.abandon`."""
        if self._writer is not None:
            self._writer.close()
        self._part.unlink(missing_ok=True)

    def _write_group(self) -> int:
        """Bytes that the group took."""
        before = self._part.stat().st_size
        columns = {name: [_cell(event, name) for event in self._waiting] for name in self._schema.names}
        self._writer.write_table(self._arrow.table(columns, schema=self._schema), row_group_size=ROW_GROUP * 2)
        self._waiting.clear()
        return max(0, self._part.stat().st_size - before)


def _cell(event: UsageEvent, column: str) -> object:
    if column == "time":
        return event.at
    if column == "metadata":
        return encode_metadata(event.metadata).decode()
    return getattr(event, column)


def _schema(arrow: Any) -> Any:
    text, required = arrow.string(), {"nullable": False}
    return arrow.schema([
        arrow.field("id", text, **required),
        arrow.field("user", text, **required),
        arrow.field("action", text, **required),
        arrow.field("time", arrow.timestamp("ms", tz="UTC"), **required),
        arrow.field("cost", arrow.int64(), **required),
        arrow.field("allowed", arrow.bool_(), **required),
        arrow.field("status", arrow.int16()),
        arrow.field("duration", arrow.float64()),
        arrow.field("resource", text),
        arrow.field("request_id", text),
        arrow.field("metadata", text, **required),
    ])  # fmt: skip


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("format", "parquet needs pyarrow; pip install 'ratelimit-dynamodb[parquet]'") from None
    return pyarrow
