"""`Door`: who gets in. Anybody to the health of the service; to the rest, whoever the token admits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

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
        guarded = scope["type"] == "http" and scope["path"] not in OPEN
        why = self._token().turns_away(scope["headers"]) if guarded else None
        if why is None:
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in why.headers}
        await problem(why.status, why.title, why.detail, headers)(scope, receive, send)
