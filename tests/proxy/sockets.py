"""Servers on real sockets: upstreams that answer in a script of bytes, and the sidecar in front of them."""

from __future__ import annotations

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from ratelimit.http import RateLimitMiddleware
from ratelimit.limiter import Limiter
from ratelimit.proxy import Front, Proxy, ProxySettings
from tests.http.apps import limiter_of

Script = Callable[[StreamReader, StreamWriter], Awaitable[None]]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[str]:
    """An upstream that does what the script says with every connection."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def in_front_of(
    upstream: str, settings: ProxySettings | None = None, *, limiter: Limiter | None = None
) -> AsyncIterator[str]:
    """The sidecar; yields `127.0.0.1:PORT`."""
    proxy = Proxy(upstream if ":/" in upstream else f"http://{upstream}", settings)
    app: ASGIApp = Front(RateLimitMiddleware(proxy, limiter=limiter or limiter_of(), user_from="header:x-api-key"))
    async with plainly_served(app) as address:
        yield address


@asynccontextmanager
async def plainly_served(app: ASGIApp) -> AsyncIterator[str]:
    """As `ratelimit serve` does: the server believes no `X-Forwarded-For`."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            app, log_level="critical", ws="websockets-sansio", proxy_headers=False, server_header=False,
            date_header=False, timeout_graceful_shutdown=2,
        )  # fmt: skip
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            while not server.started:
                await asyncio.sleep(0.005)
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


async def ask(address: str, request: bytes) -> bytes:
    """Everything that comes back until the connection closes."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()
