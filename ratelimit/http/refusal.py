"""A refusal on the wire: 429 or 503 with a problem body, for requests and for websocket handshakes."""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.types import Scope, Send

from ratelimit.decision import Decision
from ratelimit.http.headers import Headers, HeaderWriter
from ratelimit.http.problems import CONTENT_TYPE, problem_of

POLICY_VIOLATION: Final = 1008
"""The websocket close code (RFC 6455, 7.4.1) of a refusal."""


class Refusal(msgspec.Struct, frozen=True):
    """The answer to a refused request."""

    status: int
    headers: Headers
    body: bytes

    @classmethod
    def of(cls, decision: Decision, writer: HeaderWriter) -> Refusal:
        """The answer that a refused decision is."""
        problem = problem_of(decision)
        body = problem.encode()
        headers = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(body)), *writer.refusal(decision)]
        return cls(problem.status, headers, body)

    async def send(self, scope: Scope, send: Send) -> None:
        """Answer a request, or a handshake that was not accepted yet, without reading anything of it."""
        if scope["type"] == "http":
            await self._respond(send, "http.response")
        elif "websocket.http.response" in (scope.get("extensions") or {}):
            await self._respond(send, "websocket.http.response")
        else:
            # Servers make a 403 of it: without the extension there is no way to say more.
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "quota exceeded"})

    async def _respond(self, send: Send, kind: str) -> None:
        await send({"type": f"{kind}.start", "status": self.status, "headers": self.headers})
        await send({"type": f"{kind}.body", "body": self.body})
