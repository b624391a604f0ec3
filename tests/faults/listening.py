"""What every misbehaving server here is made of: sockets on loopback, one task per connection, gone when told."""

from __future__ import annotations

import asyncio
import socket
from asyncio import IncompleteReadError, StreamReader, StreamReaderProtocol, StreamWriter
from ssl import SSLContext
from typing import NamedTuple, Self


class Received(NamedTuple):
    """A request, whole."""

    operation: str
    """DynamoDB's name for it, from its target; empty where it has none."""
    headers: dict[str, str]
    """By lower-case name."""
    body: bytes


class Listening:
    """`async with` listens on a free loopback port. A subclass says how a request is answered."""

    # It accepts by itself, as `asyncio.Server` leaks what arrives while it closes (python/cpython#109564).

    def __init__(self, tls: SSLContext | None = None) -> None:
        self._tls = tls
        self._listening: socket.socket | None = None
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
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        await asyncio.sleep(0)  # A task cancelled before its first step would not close its connection.
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def listen(self) -> None:
        """Listen (again), on the same port."""
        if self._listening is None:
            self._listening = socket.create_server(("127.0.0.1", self._port))
            self._listening.setblocking(False)
            self._port = self._listening.getsockname()[1]
            asyncio.get_running_loop().add_reader(self._listening, self._accept, self._listening)

    async def answer(self, request: Received, writer: StreamWriter) -> bool:
        """False when the connection is to be closed afterwards."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()

    def _accept(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        task = asyncio.create_task(self._serve(connection))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        loop, reader = asyncio.get_running_loop(), StreamReader(limit=2**20)
        try:
            transport, protocol = await loop.connect_accepted_socket(
                lambda: StreamReaderProtocol(reader), connection, ssl=self._tls
            )
        except (OSError, asyncio.CancelledError):
            return
        writer = StreamWriter(transport, protocol, reader, loop)
        try:
            while await self.answer(await _receive(reader), writer):
                pass
        except (IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def _receive(reader: StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Received(headers.get("x-amz-target", "").partition(".")[2], headers, body)
