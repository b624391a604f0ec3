"""What every misbehaving server here is made of: sockets on loopback, one task per connection, gone when told."""

from __future__ import annotations

import asyncio
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from ssl import SSLContext
from typing import Final, NamedTuple, Self

# Of the loop, until a connection that was just accepted has a task that can be cancelled and closes it.
_TURNS_TO_START: Final = 3


class Received(NamedTuple):
    """A request, whole."""

    operation: str
    """DynamoDB's name for it, from its target; empty where it has none."""
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


class Listening:
    """`async with` listens on a free loopback port. A subclass says how a request is answered."""

    def __init__(self, tls: SSLContext | None = None) -> None:
        self._tls = tls
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

    async def refuse(self) -> None:
        """Stop listening, and drop every connection, answered or not: what a crashed server looks like."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for _ in range(_TURNS_TO_START):
            await asyncio.sleep(0)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def listen(self) -> None:
        """Listen (again), on the same port."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self._port, ssl=self._tls, limit=2**20
            )
            self._port = self._server.sockets[0].getsockname()[1]

    async def answer(self, request: Received, writer: StreamWriter) -> bool:
        """False when the connection is to be closed afterwards."""
        raise NotImplementedError

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
            while await self.answer(await _receive(reader), writer):
                pass
        except (IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()


async def _receive(reader: StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(headers.get("x-amz-target", "").partition(".")[2], headers, body)
