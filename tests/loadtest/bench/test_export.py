"""How much memory an export takes: events from a stub that makes them as they are asked for, into a file.

The stub is another process, and everything else is real: the client, the scan, the pages, the file and its checkpoints.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from loadtest.bench.servers import megabytes_of
from loadtest.bench.stub import Asked, response, running, serve
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.dynamodb.events import event_item
from ratelimit.dynamodb.schema import table_definition
from ratelimit.event import UsageEvent
from ratelimit.store.base import SCAN_PAGE
from ratelimit.usage.export import ExportQuery, File, export_events
from ratelimit.usage.formats import Csv, Jsonl
from tests.docs.pages import ROOT

HERE = "tests.loadtest.bench.test_export"
PAGES = 10
TABLE = {"Table": {**table_definition("bench"), "TableStatus": "ACTIVE"}}


@pytest.mark.slow
@pytest.mark.parametrize(("format", "parts"), [("jsonl", 1), ("csv", 2)])
def test_an_export_stays_within_50_mb(format: str, parts: int, tmp_path: Path) -> None:
    """In a process of its own, whose memory is its own."""
    line = [sys.executable, "-m", HERE, str(tmp_path / "events"), format, str(parts)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["events"] == PAGES * SCAN_PAGE * parts
    assert found["grown"] <= 50


async def _export(endpoint: str, path: Path, format: str, parts: int) -> None:
    sink = File(path, Csv() if format == "csv" else Jsonl(), resume=False)
    async with DynamoDBStore(table="bench", region="eu-west-1", endpoint=endpoint) as store:
        # The first page brings in what a client loads once; the start is a client that is at work.
        await store.scans.events(since=0, until=10**13)
        start = megabytes_of("VmRSS")
        done = await export_events(store, ExportQuery(store="bench", format=format, parts=parts), sink)
    print(json.dumps({"events": done.events, "grown": megabytes_of("VmHWM") - start}))  # noqa: T201


def _event(number: int) -> UsageEvent:
    return UsageEvent.of(
        f"user-{number}", "hint", now=time.time_ns() // 1000 - number, status=200, duration=1.5,
        resource=f"problem-{number}", request_id=os.urandom(8).hex(),
        metadata={"difficulty": number % 5, "tags": ["a", "b"]},
    )  # fmt: skip


class _Scan(Asked):
    """Answers with pages of a thousand events, all different from those of other pages."""

    items = [event_item(_event(number)) for number in range(SCAN_PAGE)]

    def asked(self, head: bytes, request: bytes) -> None:
        is_scan = b"_20120810.scan" in head
        self.transport.write(response(self._page(json.loads(request[len(head) + 4 :])) if is_scan else TABLE))

    def _page(self, body: dict[str, Any]) -> dict[str, Any]:
        page = int(body.get("ExclusiveStartKey", {}).get("SK", {}).get("S", "0"))
        for item in self.items:
            item["PK"] = {"S": f"USR#user-{page}#ULOG#{item['PK']['S'][-8:]}"}
        more = {"LastEvaluatedKey": {"PK": {"S": "x"}, "SK": {"S": str(page + 1)}}} if page + 1 < PAGES else {}
        return {"Items": self.items, "Count": SCAN_PAGE, "ScannedCount": SCAN_PAGE, **more}


if __name__ == "__main__":
    if sys.argv[1:]:
        with running(HERE) as server:
            asyncio.run(_export(server.endpoint, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    else:
        asyncio.run(serve(_Scan))
