"""`Door`: who gets in. Anybody to the health of the service; to the rest, whoever has the token.

Where there is no token the listener is on loopback only, and yet within reach of every page that a browser on this
machine shows. So a request that a page of somebody else's sent is refused: it carries an `Origin`, or comes by a name
that its author has pointed here.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.http.admin.answers import problem
from ratelimit.http.admin.token import Token

OPEN: Final = frozenset({"/health", "/health/live", "/health/ready"})


class Door:
    """Around an app. `token` is asked each time which one holds now."""

    def __init__(self, app: ASGIApp, token: Callable[[], Token]) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            token = self._token()
            if not token.admits(scope["headers"]):
                detail = "A valid token is needed: Authorization: Bearer …"
                refusal = problem(401, "Unauthorized", detail, {"www-authenticate": "Bearer"})
                await refusal(scope, receive, send)
                return
            if not token and _is_foreign(Headers(scope=scope)):
                detail = "This listener answers no pages of other sites; ask it by its address, or set admin_token."
                await problem(403, "Forbidden", detail)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _is_foreign(headers: Headers) -> bool:
    return "origin" in headers or not _is_address(headers.get("host", ""))


def _is_address(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if name in ("", "localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
