"""The apps under load: one that says hello, and everything that can stand in front of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from ratelimit import RateLimitMiddleware, limited
from ratelimit.config import Config
from ratelimit.factory import MiddlewareArgs, middleware_args
from ratelimit.server.factory import decision_service
from ratelimit.server.listener import Service
from ratelimit.server.proxy import Proxy

from .books import Books

_CONFIG: Final = Config(user_from=("header:x-user",))


def bare(books: Books, upstream: str) -> ASGIApp:
    del books, upstream
    return _hello_app()


def limited_app(books: Books, upstream: str) -> ASGIApp:
    """Behind the middleware, which logs every request; and what reads the log back."""
    del upstream
    reading = _Reading(books)
    app = _hello_app(
        Route("/orders", _order, methods=["POST"]),
        Route("/events", reading.events),
        Route("/totals", reading.totals),
    )
    app.add_middleware(RateLimitMiddleware, **_args(books, "limited"))
    return app


def proxy(books: Books, upstream: str) -> Service:
    """The sidecar's proxy, as `ratelimit serve` builds it."""
    return Proxy(f"http://{upstream}", _args(books, "proxy"))


def decision(books: Books, upstream: str) -> Service:
    """The decision endpoint, and the native API on the same limiter."""
    del upstream
    return decision_service(_CONFIG, books.log_store, _args(books, "decision"))


APPS: Final[dict[str, Callable[[Books, str], ASGIApp]]] = {"bare": bare, "limited": limited_app}
"""What uvicorn serves."""
SERVICES: Final[dict[str, Callable[[Books, str], Service]]] = {"proxy": proxy, "decision": decision}
"""What `ratelimit serve` serves."""


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
