"""Clients that keep their connections, and know of every request that they have sent what became of it."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections import Counter
from contextlib import suppress

from tests.server.processes import until


class Clients:
    """So many connections at once, each asking again as soon as it is answered, until nobody listens any more.

    A connection that closes between an answer and the next request is opened again. `cut` holds what became of requests
    that were sent whole and got no whole answer.
    """

    def __init__(self, host: str, port: int, path: str = "/", *, reconnect: bool = False) -> None:
        self._address = host, port
        self._path = path
        self._closing = "connection: close\r\n" if reconnect else ""
        self.statuses: Counter[int] = Counter()
        self.last_ones = 0
        """Answers that said so."""
        self.cut: list[str] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stop = False

    @property
    def answered(self) -> int:
        return self.statuses.total()

    def start(self, number: int) -> None:
        self._tasks += [asyncio.create_task(self._keep_asking(f"user-{each}")) for each in range(number)]

    async def get(self, number: int) -> None:
        """Returns when so many more are answered."""
        enough = self.answered + number
        await until(lambda: self.answered >= enough)

    async def refused(self) -> None:
        """Returns when nobody listens any more."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Ends each when its answer is there."""
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _keep_asking(self, user: str) -> None:
        while not self._stop:
            try:
                reader, writer = await asyncio.open_connection(*self._address)
            except OSError:
                return
            try:
                while not (self._stop or reader.at_eof()) and await self._ask(reader, writer, user):
                    pass
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()

    async def _ask(self, reader: StreamReader, writer: StreamWriter, user: str) -> bool:
        """Whether the connection may be used again."""
        fields = f"host: a\r\nx-api-key: {user}\r\n{self._closing}\r\n"
        writer.write(f"GET {self._path} HTTP/1.1\r\n{fields}".encode())
        try:
            await writer.drain()
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.cut.append(repr(error))
            return False
        self.statuses[int(head.split()[1])] += 1
        if b"\r\nconnection: close\r\n" in head:
            self.last_ones += 1
            return False
        return True
