"""Servers on real sockets: upstreams that answer in a script of bytes, and the sidecar in front of them."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from ratelimit.limiter import Limiter
from ratelimit.server.address import Address
from ratelimit.server.listener import Listener, Service
from ratelimit.server.proxy import Proxy
from ratelimit.server.upstream import ProxySettings
from tests.http.apps import limiter_of

Script = Callable[[StreamReader, StreamWriter], Awaitable[None]]

SOON_S = 30
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
GET = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@asynccontextmanager
async def scripted(script: Script, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """An upstream that does what the script says with every connection. What the script raises is raised at the end."""
    tasks: set[asyncio.Task[None]] = set()
    errors: list[Exception] = []

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except Exception as error:  # noqa: BLE001 (the test is told, and not the event loop)
            errors.append(error)
        finally:
            await close(writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context, limit=1 << 20)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if errors:
        raise errors[0]


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """An upstream that answers each request with the next of these and closes then; and the heads it was sent."""
    heads: list[bytes] = []

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answers[min(len(heads), len(answers)) - 1])

    async with scripted(script) as address:
        yield address, heads


@asynccontextmanager
async def in_front_of(
    upstream: str, settings: ProxySettings | None = None, *, limiter: Limiter | None = None, **options: Any
) -> AsyncIterator[str]:
    """The sidecar; yields `127.0.0.1:PORT`. `options` are the middleware's."""
    where = upstream if ":/" in upstream else f"http://{upstream}"
    args = {"limiter": limiter or limiter_of(), "user_from": "header:x-api-key", **options}
    async with listening(Proxy(where, args, settings)) as address:  # type: ignore[arg-type]
        yield address


@asynccontextmanager
async def listening(service: Service) -> AsyncIterator[str]:
    """Served as by `ratelimit serve`."""
    place = Address(port=0).bind()
    listener = Listener(service, place.socket)
    await listener.start()
    try:
        yield place.where.removeprefix("http://")
    finally:
        await listener.drain(linger=0, grace=0.1)
        await listener.stop()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    """A client's connection."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(SOON_S):
            yield reader, writer
    finally:
        await close(writer)


async def ask(address: str, request: bytes) -> bytes:
    """Everything that comes back until the connection closes."""
    async with connected(address) as (reader, writer):
        writer.write(request)
        return await reader.read()


async def until_gone(reader: StreamReader) -> bytes:
    """What still comes until the peer is gone, by whatever way."""
    came = bytearray()
    try:
        while piece := await reader.read(65536):
            came += piece
    except ConnectionError:
        pass
    return bytes(came)


async def close(writer: StreamWriter) -> None:
    """Wait for it, too."""
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()
