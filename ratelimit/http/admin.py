"""`admin_app`: the routes of the admin listener. What they show is a `Board`'s to know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Lifespan

from ratelimit.errors import ConfigError, StoreMisconfigured, StoreUnavailable
from ratelimit.http.auth import Door, Token, answer, problem

PATHS: Final = ("/health", "/health/live", "/health/ready", "/metrics", "/config", "/reload")


class Board(Protocol):
    """Everything there is to see and to do."""

    async def health(self) -> Mapping[str, object]:
        """What is known, without secrets and without names: anybody may ask."""
        ...

    async def unready(self) -> str | None:
        """Why requests should go elsewhere; None where they should come."""
        ...

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """A body and its content type."""
        ...

    def config(self) -> Mapping[str, object]:
        """The configuration in effect, secrets masked."""
        ...

    async def reload(self) -> Mapping[str, object]:
        """What has changed. Raises `ConfigError`, `StoreUnavailable`; then nothing has."""
        ...


def admin_app(board: Board, token: Callable[[], Token], lifespan: Lifespan[Starlette] | None = None) -> ASGIApp:
    """An ASGI app. `token` is asked with each request which one holds now; `lifespan` is what the board needs."""
    routes = _Routes(board)
    app = Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/health/live", routes.live),
            Route("/health/ready", routes.ready),
            Route("/metrics", routes.metrics),
            Route("/config", routes.config),
            Route("/reload", routes.reload, methods=["POST"]),
        ],
        lifespan=lifespan,
        exception_handlers={HTTPException: _no_route, Exception: _bug},
    )
    app.router.redirect_slashes = False
    return Door(app, token)


class _Routes:
    def __init__(self, board: Board) -> None:
        self._board = board

    async def health(self, request: Request) -> Response:
        return answer(await self._board.health())

    async def live(self, request: Request) -> Response:
        return answer({"status": "live"})

    async def ready(self, request: Request) -> Response:
        reason = await self._board.unready()
        if reason is None:
            return answer({"status": "ready"})
        return problem(503, "Not ready", reason, {"retry-after": "1"})

    async def metrics(self, request: Request) -> Response:
        body, content_type = await self._board.metrics(request.headers.get("accept", ""))
        return Response(body, headers={"cache-control": "no-store", "content-type": content_type})

    async def config(self, request: Request) -> Response:
        return answer(self._board.config())

    async def reload(self, request: Request) -> Response:
        try:
            return answer(await self._board.reload())
        except (ConfigError, StoreMisconfigured) as error:
            return problem(422, "The configuration was not taken over", str(error))
        except StoreUnavailable as error:
            return problem(503, "The configuration was not taken over", str(error))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        detail = f"{request.url.path} takes {allowed}"
        return problem(405, "Method not allowed", detail, {"allow": allowed})
    return problem(error.status_code, "Not found", f"There are: {', '.join(PATHS)}")


async def _bug(request: Request, error: Exception) -> Response:
    """The server writes the traceback to its log."""
    return problem(500, "A fault of ours", "What it was is in the log.")
