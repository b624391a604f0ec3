"""`admin_app`: the routes of the admin listener. What they show is a `AdminBackend`'s to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from ratelimit.errors import ConfigError, StoreMisconfigured, StoreUnavailable
from ratelimit.http.auth import NO_STORE, BearerAuth, Token
from ratelimit.http.problems import Problem, ProblemResponse

PAGE: Final = "/dashboard/"
PATHS: Final = ("/health", "/health/live", "/health/ready", "/live", "/metrics", "/config", "/reload")
_encode: Final = msgspec.json.Encoder().encode


class AdminBackend(Protocol):
    """Everything there is to see and to do."""

    async def health(self) -> Mapping[str, object]:
        """Say what is known, without secrets and without names: anybody may ask."""
        ...

    async def unready(self) -> str | None:
        """Say why requests should go elsewhere; None where they should come."""
        ...

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return a body and its content type."""
        ...

    async def live(self) -> Mapping[str, object]:
        """Return the last minutes, and who is refused; it names users."""
        ...

    def config(self) -> Mapping[str, object]:
        """Return the configuration in effect, secrets masked."""
        ...

    async def preview(self) -> Mapping[str, object]:
        """Return what a reload would change. Raises `ConfigError`."""
        ...

    async def reload(self) -> Mapping[str, object]:
        """Return what has changed. Raises `ConfigError`, `StoreUnavailable`; then nothing has."""
        ...


def admin_app(
    backend: AdminBackend,
    token: Callable[[], Token],
    lifespan: Lifespan[Starlette] | None = None,
    page: Callable[[ASGIApp], ASGIApp] | None = None,
) -> ASGIApp:
    """Make the app. `token` is asked with each request which one holds now; `lifespan` is what the backend needs.

    `page` makes the app below `/dashboard/`: it is given the routes, and says itself whom it lets in.
    """
    routes = _Routes(backend)
    app = Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/health/live", routes.live),
            Route("/health/ready", routes.ready),
            Route("/live", routes.series),
            Route("/metrics", routes.metrics),
            Route("/config", routes.config),
            Route("/reload", routes.reload, methods=["GET", "POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_route, Exception: _bug},
    )
    app.router.redirect_slashes = False
    guarded = BearerAuth(app, token)
    return guarded if page is None else _WithPage(guarded, page(app))


class _WithPage:
    def __init__(self, app: ASGIApp, page: ASGIApp) -> None:
        self._app = app
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app, path = self._app, scope.get("path", "")
        if scope["type"] == "http" and path.startswith(PAGE):
            app, scope = self._page, {**scope, "root_path": PAGE.rstrip("/")}
        elif scope["type"] == "http" and path in ("/", PAGE.rstrip("/")):
            # Relative: a proxy in front may have it elsewhere.
            app = Response(status_code=307, headers={"location": PAGE.lstrip("/")})
        await app(scope, receive, send)


class _Routes:
    def __init__(self, backend: AdminBackend) -> None:
        self._backend = backend

    async def health(self, request: Request) -> Response:
        return _json(await self._backend.health())

    async def live(self, request: Request) -> Response:
        return _json({"status": "live"})

    async def ready(self, request: Request) -> Response:
        reason = await self._backend.unready()
        if reason is None:
            return _json({"status": "ready"})
        return _problem(503, "Not ready", reason, (b"retry-after", b"1"))

    async def metrics(self, request: Request) -> Response:
        body, content_type = await self._backend.metrics(request.headers.get("accept", ""))
        return Response(body, headers={"cache-control": "no-store", "content-type": content_type})

    async def series(self, request: Request) -> Response:
        return _json(await self._backend.live())

    async def config(self, request: Request) -> Response:
        return _json(self._backend.config())

    async def reload(self, request: Request) -> Response:
        try:
            return _json(await (self._backend.reload() if request.method == "POST" else self._backend.preview()))
        except (ConfigError, StoreMisconfigured) as error:
            return _problem(422, "The configuration was not taken over", str(error))
        except StoreUnavailable as error:
            return _problem(503, "The configuration was not taken over", str(error))


def _json(value: object) -> Response:
    return Response(_encode(value), headers={"cache-control": "no-store"}, media_type="application/json")


def _problem(status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> Response:
    return ProblemResponse(Problem(title=title, status=status, detail=detail), (NO_STORE, *headers))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.url.path} takes {allowed}"
        return _problem(405, "Method not allowed", detail, (b"allow", allowed.encode()))
    return _problem(error.status_code, "Not found", f"There are: {', '.join(PATHS)}")


async def _bug(request: Request, error: Exception) -> Response:
    """The server writes the traceback to its log."""
    return _problem(500, "A fault of ours", "What it was is in the log.")
