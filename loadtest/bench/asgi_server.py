"""ASGI apps on one uvicorn worker, each a process of its own: `python -m loadtest.bench.asgi_server PORT VARIANT`.

`app` is an upstream that takes bodies and websockets and answers at once; `proxy UPSTREAM_PORT` is a proxy built the
usual way, with Starlette and httpx. Any other is the app that `loadtest.bench app` measures, on the stub at ENDPOINT.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.http import RateLimitMiddleware
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from ratelimit.store import MemoryStore

_BODY: Final = b"hello"
_HOP_BY_HOP: Final = frozenset({"connection", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})


async def app(scope: Scope, receive: Receive, send: Send) -> None:
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


def usual_proxy(upstream: str) -> Starlette:
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


def hello_app(variant: str, endpoint: str) -> Starlette:
    """The same app for all: `bare`, or with the middleware on the `embedded` store, the `fast` lane or the `slow` one;
    `frozen` is the fast lane in a process that calls `gc.freeze()` as it starts."""

    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if variant == "frozen":
            gc.collect()
            gc.freeze()
        yield

    app = Starlette(routes=[Route("/", hello)], lifespan=lifespan)
    if variant != "bare":
        policy = Policy("hello", "1000000000/hour", match="GET /", on_unavailable="deny")
        table = DynamoDBStore(table="bench", endpoint=endpoint, fast=variant != "slow")
        limiter = Limiter(MemoryStore() if variant == "embedded" else table, [policy], deadline=30)
        app.add_middleware(RateLimitMiddleware, limiter=limiter, user_from="header:x-user")
    return app


def main(port: int, variant: str, other: str = "") -> None:
    """On uvloop and httptools, until a signal comes."""
    served: ASGIApp = app
    if variant != "app":
        served = usual_proxy(f"http://127.0.0.1:{other}") if variant == "proxy" else hello_app(variant, other)
    with_headers = variant not in ("app", "proxy")
    uvicorn.run(
        served, port=port, loop="uvloop", http="httptools", ws="websockets-sansio", log_level="warning",
        access_log=False, proxy_headers=with_headers, server_header=with_headers, date_header=with_headers,
        timeout_graceful_shutdown=1,
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
