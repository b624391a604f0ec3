"""The processes that `proxy` measures, each on one core: `python -m loadtest.bench.proxy_server VARIANT [UPSTREAM]`.

Prints its port; then, for each line on its standard input, the seconds of CPU that it has used; and serves until that
ends. `upstream` is what the others stand in front of: it answers at once; `app` takes bodies and websockets as well.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, cast

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.config import Config
from ratelimit.policy import Policy
from ratelimit.server.factory import proxy_app
from ratelimit.server.http_protocol import HttpProtocol
from ratelimit.server.proxy import Proxy
from ratelimit.server.request_id import RequestIdMiddleware

OURS: Final = ("off", "limited", "logged")
VARIANTS: Final = (*OURS, "usual")
"""Ours without the middleware, with it, with the usage log as well; and Starlette with httpx."""

_BODY: Final = b"hello"
_ANSWER: Final = (
    b"HTTP/1.1 200 OK\r\nserver: stub\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\ncontent-type: text/plain\r\n"
    b"cache-control: no-store\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})


def build(variant: str, upstream: str) -> ASGIApp:
    """The app of a variant."""
    if variant == "app":
        return _app
    if variant == "usual":
        return usual(upstream)
    if variant == "off":
        return RequestIdMiddleware(Proxy(upstream))
    policy = Policy("api", "1000000000/hour", match="/**")
    usage = "memory" if variant == "logged" else "off"
    return proxy_app(Config(policies=(policy,), user_from=("header:x-user",), usage=usage), upstream)


async def _app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads what there is to read, and answers then."""
    if scope["type"] == "http":
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.request":
            headers = [(b"content-length", b"%d" % len(_BODY))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": _BODY})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass


def usual(upstream: str) -> Starlette:
    """A streaming proxy as it is commonly written: one client, `send(stream=True)`, a `StreamingResponse`."""
    import httpx

    # httpcore tries this import anew with every request, where it is not installed.
    sys.modules.setdefault("sniffio", None)  # type: ignore[arg-type]
    # Its own bounds (100 connections, 20 of them kept) would be the bottleneck.
    limits = httpx.Limits(max_connections=2000, max_keepalive_connections=2000)
    client = httpx.AsyncClient(base_url=upstream, timeout=60, limits=limits)

    async def forward(request: Request) -> StreamingResponse:
        headers = [(name, value) for name, value in request.headers.raw if name.decode() not in _HOP_BY_HOP]
        body = request.stream() if request.method not in ("GET", "HEAD") else None
        asked = client.build_request(request.method, str(request.url.path), headers=headers, content=body)
        answer = await client.send(asked, stream=True)
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        return StreamingResponse(answer.aiter_raw(), answer.status_code, kept, background=BackgroundTask(answer.aclose))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(routes=[Route("/{path:path}", forward, methods=methods)], lifespan=lifespan)


class _Upstream(asyncio.Protocol):
    """Requests have no body."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._pending = b""

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\r\n\r\n")) > 0:
            self._pending = self._pending[end + 4 :]
            self._transport.write(_ANSWER)


async def _serve(variant: str, upstream: str) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if variant == "upstream":
            async with await loop.create_server(_Upstream, sock=listening):
                await _report(listening.getsockname()[1])
            return
        config = uvicorn.Config(
            build(variant, upstream), loop="none", http=HttpProtocol if variant in OURS else "httptools",
            ws="websockets-sansio", log_level="warning", access_log=False, proxy_headers=False, server_header=False,
            date_header=False, timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not (server.started or serving.done()):  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        # For all alike, as in `worker`.
        gc.collect()
        gc.freeze()
        await _report(listening.getsockname()[1])
        server.should_exit = True
        await serving


async def _report(port: int) -> None:
    print(port, flush=True)  # noqa: T201
    while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
        print(time.process_time(), flush=True)  # noqa: T201


def main(variant: str, upstream: str = "") -> None:
    """On uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(variant, upstream))


if __name__ == "__main__":
    main(*sys.argv[1:])
