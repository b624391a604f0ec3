"""What a forwarded request costs at least in Python: httptools on both sides, pooled connections, no safety at all.

`python -m loadtest.bench.proxy_floor PORT UPSTREAM_PORT`: a yardstick, not a proxy. No flow control, no check of what
it reads, no answer without a body, no error handled.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Final, cast

import httptools

_FORWARDED: Final = b"x-forwarded-for: 127.0.0.1\r\nvia: 1.1 x\r\nx-ratelimit-user: k\r\n\r\n"
_LIMITS: Final = b'ratelimit-policy: "api";q=100;w=86400\r\nratelimit: "api";r=9;t=60\r\n\r\n'


class _Upstream(asyncio.Protocol):
    def __init__(self, idle: list[_Upstream]) -> None:
        self.client: _Client | None = None
        self.transport: asyncio.Transport
        self._idle = idle
        self._headers: list[tuple[bytes, bytes]] = []
        self._pieces: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._idle:
            self._idle.remove(self)

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        kept = [b"%b: %b\r\n" % (name, value) for name, value in self._headers if name.lower() != b"connection"]
        self._pieces = [b"HTTP/1.1 %d OK\r\n" % self._parser.get_status_code(), *kept, _LIMITS]

    def on_body(self, body: bytes) -> None:
        self._pieces.append(body)

    def on_message_complete(self) -> None:
        assert self.client is not None
        self.client.transport.write(b"".join(self._pieces))
        self.client = None
        self._idle.append(self)


class _Client(asyncio.Protocol):
    def __init__(self, idle: list[_Upstream], dial: Callable[[_Client, bytes], None]) -> None:
        self.transport: asyncio.Transport
        self._idle = idle
        self._dial = dial

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        kept = [b"%b: %b\r\n" % (name, value) for name, value in self._headers if name != b"connection"]
        request = b"".join([b"%b %b HTTP/1.1\r\n" % (self._parser.get_method(), self._url), *kept, _FORWARDED])
        if self._idle:
            upstream = self._idle.pop()
            upstream.client = self
            upstream.transport.write(request)
        else:
            self._dial(self, request)


async def _serve(port: int, upstream: int) -> None:
    loop = asyncio.get_running_loop()
    idle: list[_Upstream] = []
    dialling: set[asyncio.Task[None]] = set()

    async def connect(client: _Client, request: bytes) -> None:
        _, protocol = await loop.create_connection(lambda: _Upstream(idle), "127.0.0.1", upstream)
        protocol.client = client
        protocol.transport.write(request)

    def dial(client: _Client, request: bytes) -> None:
        task = loop.create_task(connect(client, request))
        dialling.add(task)
        task.add_done_callback(dialling.discard)

    server = await loop.create_server(lambda: _Client(idle, dial), "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
