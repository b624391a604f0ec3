"""How much memory an export takes: so many events from a stub that makes them as they are asked for, into a file.

The stub is another process, and everything else is real: the client, the scan, the pages, the file and its checkpoints.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import typer
from rich.console import Console

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


def command(
    events: Annotated[int, typer.Option(help="How many.")] = 1_000_000,
    format: Annotated[str, typer.Option(help="jsonl, csv or parquet.")] = "jsonl",
    parts: Annotated[int, typer.Option(help="Parts read side by side.")] = 1,
) -> None:
    """Memory of an export: the peak must stay within 50 MB of the start (exit status 1 if it does not)."""
    with _stub(events // parts) as endpoint, TemporaryDirectory() as directory:
        grown = asyncio.run(_run(endpoint, Path(directory) / "events", format, parts=parts))
    raise typer.Exit(grown > _MOST)


async def _run(endpoint: str, path: Path, format: str, *, parts: int) -> float:
    """Megabytes that it took on top of those at the start."""
    sink = _sink(path, format)
    async with DynamoDBStore(table="bench", region="eu-west-1", endpoint=endpoint) as store:
        # The first page brings in what a client loads once; the start is a client that is at work.
        await store.scans.events(since=0, until=10**13)
        start, peak, began = _rss(), _rss(), time.monotonic()

        def watch(_events: int, _size: int) -> None:
            nonlocal peak
            peak = max(peak, _rss())

        done = await export_events(store, ExportQuery(store="bench", format=format, parts=parts), sink, progress=watch)
        took = time.monotonic() - began
    high = _high_water()
    Console(soft_wrap=True).print(
        f"{done.events:,} events, {done.bytes / _MB:,.0f} MB of {format}, {took:.0f} s ({done.events / took:,.0f}/s)\n"
        f"memory: {start:.1f} MB at the start, {peak:.1f} MB at the peak between pages, {high:.1f} MB high-water mark: "
        f"{high - start:+.1f} MB",
        highlight=False,
    )
    return high - start


def _sink(path: Path, format: str) -> Sink:
    if format == "parquet":
        from ratelimit.usage.parquet import ParquetFile

        return ParquetFile(path)
    return File(path, Csv() if format == "csv" else Jsonl(), resume=False)


def _status(name: str) -> float:
    """A line of this process's /proc/self/status, in megabytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise LookupError(name)


def _rss() -> float:
    return _status("VmRSS")


def _high_water() -> float:
    return _status("VmHWM")


@contextmanager
def _stub(events: int) -> Iterator[str]:
    line = [sys.executable, "-m", "loadtest.bench.export", str(events)]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.stdin.close()


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


async def _serve(events: int) -> None:
    pages = _Pages(events)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                start = head.index(b"content-length:") + 15
                body = await reader.readexactly(int(head[start : head.index(b"\r", start)]))
                answer = json.dumps(pages.answer(json.loads(body)) if b"_20120810.scan" in head else _TABLE).encode()
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("events", type=int)
    asyncio.run(_serve(parser.parse_args().events))
