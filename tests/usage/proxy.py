"""A proxy in front of an engine, that fails a share of the writes, each in one of the ways in which DynamoDB may."""

from __future__ import annotations

import json
import random
from asyncio import StreamWriter
from collections import Counter
from typing import Any, Final, Self

import aiohttp

from tests.faults.listening import Listening, Received

_WRITES: Final = ("BatchWriteItem", "PutItem")
_PREFIX: Final = "com.amazonaws.dynamodb.v20120810#"


class FlakyProxy(Listening):
    """`async with FlakyProxy(engine.endpoint, share=0.1, seed=1) as proxy:` listens on `proxy.endpoint`."""

    def __init__(self, engine: str, *, share: float, seed: int) -> None:
        super().__init__()
        self._engine = engine
        self._share = share
        self._random = random.Random(seed)
        self.answered: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession()
        return await super().__aenter__()

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        await self._session.close()

    async def answer(self, request: Received, writer: StreamWriter) -> bool:
        """See `Listening`."""
        kind = "well"
        if request.operation in _WRITES and self._random.random() < self._share:
            kind = self._random.choice(["throttled", "unprocessed", "failed", "lost", "hung up"])
        self.answered[kind] += 1
        status, answer = await self._answer(kind, request.operation, request.headers, request.body)
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
