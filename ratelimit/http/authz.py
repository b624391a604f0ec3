"""`Authz`: the decision endpoint. A gateway asks it about each request, and does as it answers.

    200                    let it pass, with the RateLimit fields for those gateways that can hand them on
    429                    refuse it, with the fields, Retry-After and the problem body
    429, type …reduced-…   the store cannot be asked, and the policy says `deny`: never a 5xx, which Envoy takes for a
                           fault of this endpoint and then, by its `failure_mode_allow`, lets the request pass
    400                    the question makes no sense; the detail says why
    403 + X-RL-Status      with `?dialect=nginx` in the place of every refusal: `auth_request` knows no other

It is the middleware around an app that says yes. What the upstream will answer is not known here, so whatever is
allowed counts, also for policies with `count = "success"` or `"failure"`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.errors import InvalidInput
from ratelimit.http.addresses import DEFAULT_IPV6_PREFIX, TrustedProxies
from ratelimit.http.authz_request import Dialect, asked, dialect_of
from ratelimit.http.headers import HeaderStyle
from ratelimit.http.identity import DEFAULT_USER_FROM
from ratelimit.http.middleware import RateLimitMiddleware
from ratelimit.http.problems import CONTENT_TYPE, Problem
from ratelimit.http.state import RateLimitState
from ratelimit.limiter import Limiter
from ratelimit.policy import Exempt, UserFrom
from ratelimit.usage import UsageLog

PREFIX: Final = "/v1/authz"
STATUS: Final = b"x-rl-status"
"""Carries the real status where the gateway does not understand it."""


class Authz:
    """An ASGI app that answers requests to `prefix` and below it, whatever their method; others are `fallback`'s.

    The other options are those of `RateLimitMiddleware`. The gateway is a proxy in front: `trusted_proxies` has to
    count it, or all clients share its address. The limiter is opened with the lifespan, or by the first request.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        user_from: UserFrom | Iterable[UserFrom] = DEFAULT_USER_FROM,
        trusted_proxies: TrustedProxies = 0,
        ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
        headers: HeaderStyle = "draft",
        exempt: Exempt | Iterable[Exempt] = (),
        usage: UsageLog | None = None,
        prefix: str = PREFIX,
        fallback: ASGIApp | None = None,
    ) -> None:
        self.prefix = prefix
        self.middleware = RateLimitMiddleware(
            _Allowed(fallback),
            limiter=limiter,
            user_from=user_from,
            trusted_proxies=trusted_proxies,
            ipv6_prefix=ipv6_prefix,
            headers=headers,
            exempt=exempt,
            usage=usage,
        )
        self._fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a question, or run the lifespan."""
        if scope["type"] == "lifespan":
            await self.middleware(scope, receive, send)
        elif not self.covers(scope):
            await (self._fallback or _not_found)(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    def covers(self, scope: Scope) -> bool:
        """Whether a request is for this endpoint."""
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        return path == self.prefix or path.startswith(f"{self.prefix}/")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(scope, send)
        try:
            question = asked(scope, self.prefix)
        except InvalidInput as error:
            answer.dialect = _dialect_or_plain(scope)
            await answer.refuse(str(error))
            return
        answer.dialect = question.dialect
        await self.middleware(question.scope, receive, answer.send)


class _Allowed:
    """The app behind the middleware: everything that gets here may pass. The lifespan is the fallback's."""

    def __init__(self, fallback: ASGIApp | None) -> None:
        self._fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await (self._fallback or _lifespan)(scope, receive, send)
            return
        state = RateLimitState.of(scope)
        assert state is not None
        state.receipts.keep()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


class _Answer:
    """Turns the middleware's answer into one that the gateway understands."""

    __slots__ = ("_has_body", "_kind", "_reduced", "_send", "dialect")

    def __init__(self, scope: Scope, send: Send) -> None:
        self.dialect: Dialect = "plain"
        self._send = send
        # A gateway may pass a handshake on as one; then the server has to be told which answer is meant.
        self._kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        self._has_body = scope.get("method") != "HEAD"
        self._reduced = False

    async def send(self, message: Message) -> None:
        """The middleware's `send`."""
        if message["type"] == "http.response.start":
            await self._start(message["status"], message["headers"])
        else:
            body: bytes = message.get("body", b"")
            if self._reduced:
                # Of the same length, which has been announced already.
                body = body.replace(b'"status":503', b'"status":429', 1)
            await self._send({**message, "type": f"{self._kind}.body", "body": body if self._has_body else b""})

    async def refuse(self, detail: str) -> None:
        """Say what is wrong with the question."""
        body = Problem("about:blank", "This is no question about a request", 400, detail, []).encode()
        length = (b"content-length", b"%d" % len(body))
        await self._start(400, [(b"content-type", CONTENT_TYPE), length])
        await self._send({"type": f"{self._kind}.body", "body": body if self._has_body else b""})

    async def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._reduced = status == 503
        status = 429 if self._reduced else status
        fields = [*headers, (b"cache-control", b"no-store")]
        if self.dialect == "nginx" and status >= 400:
            fields.append((STATUS, b"%d" % status))
            status = 403
        await self._send({"type": f"{self._kind}.start", "status": status, "headers": fields})


def _dialect_or_plain(scope: Scope) -> Dialect:
    try:
        return dialect_of(scope)
    except InvalidInput:
        return "plain"


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    body = Problem("about:blank", "Not found", 404, f"Ask {PREFIX}.", []).encode()
    headers = [(b"content-type", CONTENT_TYPE), (b"content-length", b"%d" % len(body))]
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{kind}.start", "status": 404, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})


async def _lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
