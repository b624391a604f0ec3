"""A proxy in front of an engine, that fails a share of the writes, each in one of the ways in which DynamoDB may."""

from __future__ import annotations

import asyncio
import json
import random
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections import Counter
from typing import Any, Final, Self

import aiohttp

_WRITES: Final = ("BatchWriteItem", "PutItem")
_PREFIX: Final = "com.amazonaws.dynamodb.v20120810#"


class FlakyProxy:
    """`async with FlakyProxy(engine.endpoint, share=0.1, seed=1) as proxy:` listens on `proxy.endpoint`."""

    def __init__(self, engine: str, *, share: float, seed: int) -> None:
        self._engine = engine
        self._share = share
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[Any]] = set()
        self._port = 0
        self.answered: Counter[str] = Counter()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, limit=2**20)
        self._port = self._server.sockets[0].getsockname()[1]

    async def go_down(self) -> None:
        """Refuse connections, and drop those that are open, answered or not."""
        assert self._server is not None
        self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_down()
        await self._session.close()

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: StreamReader, writer: StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        operation = headers["x-amz-target"].partition(".")[2]
        kind = "well"
        if operation in _WRITES and self._random.random() < self._share:
            kind = self._random.choice(["throttled", "unprocessed", "failed", "lost", "hung up"])
        self.answered[kind] += 1
        status, answer = await self._answer(kind, operation, headers, body)
        if kind == "hung up":
            return False
        writer.write(f"HTTP/1.1 {status} -\r\nContent-Length: {len(answer)}\r\n\r\n".encode() + answer)
        await writer.drain()
        return True

    async def _answer(self, kind: str, operation: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if kind == "throttled":
            return 400, _error("ProvisionedThroughputExceededException")
        if kind == "failed":
            return 500, _error("InternalServerError")
        if kind == "unprocessed" and operation == "BatchWriteItem":
            return await self._half(headers, json.loads(body))
        status, answer = await self._forward(headers, body)
        return (500, _error("InternalServerError")) if kind == "lost" else (status, answer)

    async def _half(self, headers: dict[str, str], body: dict[str, Any]) -> tuple[int, bytes]:
        ((table, requests),) = body["RequestItems"].items()
        self._random.shuffle(requests)
        half = len(requests) // 2
        if half:
            await self._forward(headers, json.dumps({"RequestItems": {table: requests[:half]}}).encode())
        return 200, json.dumps({"UnprocessedItems": {table: requests[half:]}}).encode()

    async def _forward(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        kept = {name: headers[name] for name in ("content-type", "x-amz-target", "x-amz-date", "authorization")}
        async with self._session.post(self._engine, data=body, headers=kept) as response:
            return response.status, await response.read()


def _error(code: str) -> bytes:
    return json.dumps({"__type": _PREFIX + code, "message": "because"}).encode()
