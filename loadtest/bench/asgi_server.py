"""ASGI apps on one uvicorn worker, each a process of its own: `python -m loadtest.bench.asgi_server PORT VARIANT`.

`app` is an upstream that takes bodies and websockets and answers at once; `proxy UPSTREAM_PORT` is a proxy built the
usual way, with Starlette and httpx.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

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


def main(port: int, variant: str, upstream: str = "") -> None:
    """On uvloop and httptools, until a signal comes."""
    uvicorn.run(
        app if variant == "app" else usual_proxy(f"http://127.0.0.1:{upstream}"), port=port, loop="uvloop",
        http="httptools", ws="websockets-sansio", log_level="warning", access_log=False, proxy_headers=False,
        server_header=False, date_header=False, timeout_graceful_shutdown=1,
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
