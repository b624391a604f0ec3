"""The server: real sockets, one task per connection, one behaviour per request."""

from __future__ import annotations

import asyncio
import json
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections import Counter, deque
from ssl import SSLContext
from typing import Self

from tests.faults.answers import TinyTable
from tests.faults.behaviours import Behaviour, Exchange, ok


class FaultServer:
    """`async with FaultServer() as server:` listens on a free loopback port, and is healthy until told otherwise."""

    def __init__(self, tls: SSLContext | None = None) -> None:
        self._tls = tls
        self.table = TinyTable()
        self.received: Counter[str] = Counter()
        """Requests that arrived, by operation."""
        self._always = ok()
        self._line: deque[Behaviour] = deque()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._port = 0

    @property
    def endpoint(self) -> str:
        """The URL, also while it refuses connections."""
        return f"https://localhost:{self._port}" if self._tls else f"http://127.0.0.1:{self._port}"

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    def then(self, *behaviours: Behaviour) -> None:
        """The next data requests are answered so, one each; `DescribeTable` stays healthy."""
        self._line.extend(behaviours)

    def always(self, behaviour: Behaviour) -> None:
        """Every data request is answered so, from now on, once the line is empty."""
        self._always = behaviour

    def recover(self) -> None:
        """Healthy again."""
        self._line.clear()
        self._always = ok()

    async def refuse(self) -> None:
        """Stop listening, and drop every connection: what a crashed server looks like."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def listen(self) -> None:
        """Listen (again), on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=self._tls)
            self._port = self._server.sockets[0].getsockname()[1]

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
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
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        body = json.loads(await reader.readexactly(int(headers.get("content-length", 0))) or b"{}")
        operation = headers.get("x-amz-target", "").partition(".")[2]
        self.received[operation] += 1
        behaviour = self._next(operation)
        return await behaviour(Exchange(operation, headers, body, writer, lambda: self.table.answer(operation, body)))

    def _next(self, operation: str) -> Behaviour:
        if operation == "DescribeTable":
            return ok()
        return self._line.popleft() if self._line else self._always
