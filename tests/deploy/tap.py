"""A tap on the wire between the code and its engine: what was asked for, whichever client asked.

AWS's own client, the fast lane, a command: on the wire all of them say what they want in the same words, and those are
what IAM decides by.
"""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import httptools

_CHUNK: Final = 65_536
# The parts of a transaction are what its permission is asked for: AWS has no action `dynamodb:TransactWriteItems`.
_PARTS: Final = {
    "Put": "PutItem",
    "Update": "UpdateItem",
    "Delete": "DeleteItem",
    "ConditionCheck": "ConditionCheckItem",
}


class Call(NamedTuple):
    """What a policy has to allow: an action on a table, or on its index."""

    action: str
    table: str
    gsi: str = ""
    select: str = ""
    """Of a scan, what it asks for, where it says so: `COUNT`."""

    @property
    def resource(self) -> str:
        """The end of the ARN."""
        return f"table/{self.table}" + (f"/index/{self.gsi}" if self.gsi else "")


def calls_of(operation: str, request: Mapping[str, Any]) -> list[Call]:
    """What one request asks for."""
    if operation == "TransactWriteItems":
        parts = [(_PARTS[kind], part) for item in request["TransactItems"] for kind, part in item.items()]
        return [Call(f"dynamodb:{action}", part["TableName"]) for action, part in parts]
    if operation in ("BatchWriteItem", "BatchGetItem"):
        return [Call(f"dynamodb:{operation}", table) for table in request["RequestItems"]]
    table = request.get("TableName") or request["ResourceArn"].rpartition("/")[2]
    return [Call(f"dynamodb:{operation}", table, request.get("IndexName", ""), request.get("Select", ""))]


class Tap:
    """`calls` is all that went by."""

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        self._engine = (parts.hostname or "", parts.port or 80)
        self.calls: list[Call] = []
        self.endpoint = ""

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One connection, both ways."""
        engine_reader, engine_writer = await asyncio.open_connection(*self._engine)
        listening = _Listening(self.calls)
        parser = httptools.HttpRequestParser(listening)

        async def there() -> None:
            while data := await reader.read(_CHUNK):
                parser.feed_data(data)
                engine_writer.write(data)
                await engine_writer.drain()
            engine_writer.close()

        async def back() -> None:
            while data := await engine_reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()
            writer.close()

        try:
            with suppress(ConnectionError):
                await asyncio.gather(there(), back())
        finally:
            writer.close()
            engine_writer.close()


class _Listening:
    """httptools' callbacks; requests follow one another on a connection."""

    def __init__(self, calls: list[Call]) -> None:
        self._calls = calls
        self._operation = ""
        self._body = b""

    def on_message_begin(self) -> None:
        self._operation, self._body = "", b""

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-amz-target":
            self._operation = value.decode().rpartition(".")[2]

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._calls += calls_of(self._operation, json.loads(self._body))


@asynccontextmanager
async def tapped(endpoint: str) -> AsyncIterator[Tap]:
    """A tap on an engine, on a free port of loopback."""
    tap = Tap(endpoint)
    server = await asyncio.start_server(tap.serve, "127.0.0.1", 0)
    tap.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield tap
    finally:
        server.close()
