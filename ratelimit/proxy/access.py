"""`AccessLog`: a line for each request when it is over. No query strings, no fields, no users: those may be secrets."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeAlias

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.http.state import RateLimitState
from ratelimit.proxy.front import REQUEST_ID

AccessFormat: TypeAlias = Literal["text", "json", "off"]

logger: Final = logging.getLogger("ratelimit.access")
_encoder = msgspec.json.Encoder()


class AccessLog:
    """The outermost of all. Writes to the logger `ratelimit.access`, at INFO."""

    def __init__(self, app: ASGIApp, form: AccessFormat) -> None:
        self.app = app
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        if self._form == "off" or scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        since, status, sent, number = time.perf_counter(), 0, 0, ""

        async def count(message: Message) -> None:
            nonlocal status, sent, number
            kind = message["type"]
            if kind in ("http.response.body", "websocket.http.response.body"):
                sent += len(message.get("body", b""))
            elif kind in ("http.response.start", "websocket.http.response.start", "websocket.accept"):
                status = message.get("status", 101)
                number = next((v.decode("latin-1") for n, v in message["headers"] if n == REQUEST_ID), "")
            await send(message)

        try:
            await self.app(scope, receive, count)
        finally:
            self._write(scope, status, sent, number, time.perf_counter() - since)

    def _write(self, scope: Scope, status: int, sent: int, number: str, span: float) -> None:
        """Status 0: the client left, or was cut off, before there was one."""
        state = RateLimitState.of(scope)
        decisions = [] if state is None else state.decisions
        entry: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": scope["client"][0] if scope.get("client") else None,
            "method": scope.get("method", "WEBSOCKET"),
            "path": scope["raw_path"].decode("latin-1"),
            "status": status,
            "bytes": sent,
            "ms": round(span * 1000, 1),
            "request_id": number,
            "policies": {decision.policy: _outcome(decision) for decision in decisions},
        }
        logger.info(_encoder.encode(entry).decode() if self._form == "json" else _line(entry))


def _outcome(decision: Any) -> str:
    if decision.shadow_denied:
        return "shadow_denied"
    return "allowed" if decision.allowed else "refused"


def _line(entry: dict[str, Any]) -> str:
    policies = ",".join(f"{name}={outcome}" for name, outcome in entry["policies"].items()) or "-"
    return (
        f"{entry['time']} {entry['client'] or '-'} {entry['method']} {entry['path']} {entry['status']} "
        f"{entry['bytes']}B {entry['ms']}ms {policies} {entry['request_id']}"
    )
