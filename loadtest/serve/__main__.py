"""One server: `python -m ratelimit.loadtest.serve NAME STORE HOST [UPSTREAM]`; NAME is `driver` or one of the apps."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.util import find_spec
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from ratelimit import RateLimitMiddleware, limited
from ratelimit.config import Config
from ratelimit.factory import MiddlewareArgs, middleware_args
from ratelimit.server.factory import decision_service
from ratelimit.server.listener import Listener, Service
from ratelimit.server.proxy import Proxy

from ..talking import obey
from . import driver
from .books import Books

_GRACE_S: Final = 1.0

# The apps under load: one that says hello, and everything that can stand in front of it.

_CONFIG: Final = Config(user_from=("header:x-user",))


def _app(books: Books) -> Starlette:
    """Behind the middleware, which logs every request; and what reads the log back."""
    reading = _Reading(books)
    app = _hello_app(
        Route("/orders", _order, methods=["POST"]),
        Route("/events", reading.events),
        Route("/totals", reading.totals),
    )
    app.add_middleware(RateLimitMiddleware, **_args(books, "limited"))
    return app


def _service(name: str, books: Books, upstream: str) -> Service:
    """The sidecar's proxy, or its decision endpoint with the native API, as `ratelimit serve` builds them."""
    args = _args(books, name)
    if name == "proxy":
        return Proxy(f"http://{upstream}", args)
    return decision_service(_CONFIG, books.log_store, args)


def _args(books: Books, meter: str) -> MiddlewareArgs:
    return middleware_args(_CONFIG, books.limiter(meter, ["hello", "order"]), books.usage)


def _hello_app(*routes: Route) -> Starlette:
    return Starlette(routes=[Route("/hello", _hello), *routes])


async def _hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def _order(request: Request) -> PlainTextResponse:
    """Asked and recorded in a view."""
    await limited("order")(request)
    return PlainTextResponse("ordered")


class _Reading:
    """What a user sees of their own usage."""

    def __init__(self, books: Books) -> None:
        self._usage = books.usage

    async def events(self, request: Request) -> JSONResponse:
        """The latest twenty of a day: without a beginning, whoever has fewer costs a read for each day that is kept."""
        since = datetime.now(UTC) - timedelta(days=1)
        page = await self._usage.events(request.headers["x-user"], since=since, limit=20)
        return JSONResponse([event.id for event in page.events])

    async def totals(self, request: Request) -> JSONResponse:
        """A week's."""
        return JSONResponse(await self._usage.summary(request.headers["x-user"], days=7))


async def _serve(name: str, url: str, host: str, upstream: str) -> None:
    """On one worker, on any free port."""
    with socket.create_server((host, 0), backlog=2048) as listening:
        bound, port = listening.getsockname()[:2]
        address = f"{bound}:{port}"
        if name == "bare":
            await _by_uvicorn(_hello_app(), listening, partial(obey, address, _no_books))
            return
        books = Books(url)
        await books.open()
        obeying = partial(obey, address, books.count)
        if name == "limited":
            await _by_uvicorn(_app(books), listening, obeying)
        else:
            listener = Listener(_service(name, books, upstream), listening)
            await listener.start()
            await obeying()
            await listener.drain(linger=0, grace=_GRACE_S)
            await listener.stop()
        await books.close()


async def _no_books(prefix: str) -> dict[str, Any]:
    return {}


async def _by_uvicorn(app: ASGIApp, listening: socket.socket, obeying: Callable[[], Awaitable[None]]) -> None:
    server = uvicorn.Server(uvicorn.Config(
        app, loop="none", http="httptools", log_level="warning", access_log=False, lifespan="on", timeout_keep_alive=75,
    ))  # fmt: skip
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not (server.started or serving.done()):  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    await obeying()
    server.should_exit = True
    await serving


def main(name: str, url: str, host: str, upstream: str = "") -> None:
    factory = None
    if find_spec("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(driver.serve(url, host) if name == "driver" else _serve(name, url, host, upstream))


if __name__ == "__main__":
    main(*sys.argv[1:])
