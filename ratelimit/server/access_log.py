"""`AccessLog`: write a line for each request when it is over. No query strings, headers, users: those may be secrets.

The id is the one that the request went on with: its own, or the one that `RequestIdMiddleware` gave it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.http.request_handler import RateLimitState
from ratelimit.server.http_protocol import REFUSED_KEY
from ratelimit.server.request_id import request_id

logger = logging.getLogger("ratelimit.access")

AccessFormat: TypeAlias = Literal["text", "json", "off"]

_encoder = msgspec.json.Encoder()


class AccessLog:
    """The outermost middleware. It writes to the logger `ratelimit.access`, at INFO.

    `shown` is how a path is written; where `client` says no, no address is, which may be what a user is known by.
    """

    def __init__(
        self,
        app: ASGIApp,
        form: AccessFormat,
        *,
        shown: Callable[[str], str] = str,
        client: Callable[[], bool] = lambda: True,
    ) -> None:
        self.app = app
        self._client = client
        self._form = form
        self._shown = shown

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._form == "off" or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        since, status, sent = time.perf_counter(), 0, 0

        async def count(message: Message) -> None:
            nonlocal status, sent
            kind = message["type"]
            if kind in ("http.response.body", "websocket.http.response.body"):
                sent += len(message.get("body", b""))
            elif kind in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status = message.get("status", 101)
            await send(message)

        try:
            await self.app(scope, receive, count)
        finally:
            if REFUSED_KEY in scope:
                status, sent = scope[REFUSED_KEY]
            self._write(scope, status, sent, time.perf_counter() - since)

    def refused(self, scope: Scope, status: int, sent: int, span: float) -> None:
        """Log a request that the server has answered itself, as no app could have read it."""
        if self._form != "off":
            self._write(scope, status, sent, span)

    def _write(self, scope: Scope, status: int, sent: int, span: float) -> None:
        # Status 0: the client left, or was cut off, before there was one.
        state = RateLimitState.of(scope)
        decisions = [] if state is None else state.decisions
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": scope["client"][0] if scope.get("client") and self._client() else None,
            "method": scope.get("method", "WEBSOCKET"),
            "path": self._shown(scope["raw_path"].decode("latin-1")),
            "status": status,
            "bytes": sent,
            "ms": round(span * 1000, 1),
            "request_id": (request_id(scope) or b"-").decode(),
            "policies": {decision.policy: _outcome(decision) for decision in decisions},
        }
        logger.info(_encoder.encode(entry).decode() if self._form == "json" else _line(entry))


def _outcome(decision: Any) -> str:
    if decision.shadow_denied:
        return "shadow_denied"
    return "allowed" if decision.allowed else "denied"


def _line(entry: dict[str, Any]) -> str:
    policies = ",".join(f"{name}={outcome}" for name, outcome in entry["policies"].items()) or "-"
    return (
        f"{entry['time']} {entry['client'] or '-'} {entry['method']} {entry['path']} {entry['status']} "
        f"{entry['bytes']}B {entry['ms']}ms {policies} {entry['request_id']}"
    )
