"""How much memory an export takes: so many events from a stub that makes them as they are asked for, into a file.

The stub is another process, and everything else is real: the client, the scan, the pages, the file and its checkpoints.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer

from loadtest.bench.report import BenchTarget, Figure, Findings, Row
from loadtest.bench.servers import megabytes_of
from loadtest.bench.stub import Asked, response, running, serve
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.events import event_item
from ratelimit.dynamodb.schema import table_definition
from ratelimit.event import UsageEvent
from ratelimit.store.base import SCAN_PAGE
from ratelimit.usage.export import ExportQuery, File, Sink, export_events
from ratelimit.usage.formats import Csv, Jsonl

_MB: Final = 1024 * 1024
_MOST: Final = 50
_TABLE: Final = {"Table": {**table_definition("bench"), "TableStatus": "ACTIVE"}}


def run(
    events: Annotated[int, typer.Option(help="How many.")] = 1_000_000,
    format: Annotated[str, typer.Option(help="jsonl, csv or parquet.")] = "jsonl",
    parts: Annotated[int, typer.Option(help="Parts read side by side.")] = 1,
) -> Findings:
    """Memory of an export: the peak must stay within 50 MB of the start."""
    with running("loadtest.bench.export", str(events // parts)) as server, TemporaryDirectory() as directory:
        row = asyncio.run(_exported(server.endpoint, Path(directory) / "events", format, parts=parts))
    grown = (row.figures["MB at the peak"] or 0.0) - (row.figures["MB at the start"] or 0.0)
    return Findings([row], [BenchTarget("MB of memory more than at the start", grown, "at most", _MOST)])


async def _exported(endpoint: str, path: Path, format: str, *, parts: int) -> Row:
    sink = _sink(path, format)
    async with DynamoDBStore(table="bench", region="eu-west-1", endpoint=endpoint) as store:
        # The first page brings in what a client loads once; the start is a client that is at work.
        await store.scans.events(since=0, until=10**13)
        start, began = megabytes_of("VmRSS"), time.monotonic()
        done = await export_events(
            store, ExportQuery(store="bench", format=format, parts=parts), sink, progress=lambda events, size: None
        )
        took = time.monotonic() - began
    figures: dict[str, Figure] = {
        "events": done.events, "MB": done.bytes / _MB, "events/s": done.events / took,
        "MB at the start": start, "MB at the peak": megabytes_of("VmHWM"),
    }  # fmt: skip
    return Row(format, figures)


def _sink(path: Path, format: str) -> Sink:
    if format == "parquet":
        from ratelimit.usage.parquet import ParquetFile

        return ParquetFile(path)
    return File(path, Csv() if format == "csv" else Jsonl(), resume=False)


class _Pages:
    """Answers to scans: a thousand events each, all different from those of other pages."""

    def __init__(self, events: int) -> None:
        self._pages = max(1, events // SCAN_PAGE)
        now = time.time_ns() // 1000
        self._items = [event_item(_event(number, now)) for number in range(SCAN_PAGE)]

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        key = body.get("ExclusiveStartKey", {}).get("SK", {}).get("S", "0")
        page = int(key)
        for item in self._items:
            item["PK"] = {"S": f"USR#user-{page}#ULOG#{item['PK']['S'][-8:]}"}
        more = {"LastEvaluatedKey": {"PK": {"S": "x"}, "SK": {"S": str(page + 1)}}} if page + 1 < self._pages else {}
        return {"Items": self._items, "Count": SCAN_PAGE, "ScannedCount": SCAN_PAGE, **more}


def _event(number: int, now: int) -> UsageEvent:
    return UsageEvent.of(
        f"user-{number}", "hint", now=now - number, status=200, duration=1.5, resource=f"problem-{number}",
        request_id=os.urandom(8).hex(), metadata={"difficulty": number % 5, "tags": ["a", "b"]},
    )  # fmt: skip


class _Scan(Asked):
    def __init__(self, pages: _Pages) -> None:
        super().__init__()
        self._pages = pages

    def asked(self, head: bytes, request: bytes) -> None:
        is_scan = b"_20120810.scan" in head
        self.transport.write(response(self._pages.answer(json.loads(request[len(head) + 4 :])) if is_scan else _TABLE))


if __name__ == "__main__":
    pages = _Pages(int(sys.argv[1]))
    asyncio.run(serve(lambda: _Scan(pages)))
