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
from typing import Final, Unpack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.errors import InvalidInput
from ratelimit.http.body import no_body
from ratelimit.http.gateway_question import Dialect, asked, dialect_or_plain
from ratelimit.http.lifespan import no_lifespan
from ratelimit.http.middleware import RateLimitMiddleware, SurfaceArgs
from ratelimit.http.problems import Problem, ProblemResponse
from ratelimit.http.request_handler import RateLimitState
from ratelimit.limiter import Limiter
from ratelimit.usage import UsageLog

PREFIX: Final = "/v1/authz"
STATUS: Final = b"x-rl-status"
"""Carries the real status where the gateway does not understand it."""

REDUCED: Final = 503
"""The status of a refusal because the store cannot be asked, which no gateway is to see."""


class Authz:
    """An ASGI app that answers requests to `/v1/authz` and below it, whatever their method; others are `fallback`'s.

    The other options are those of `RateLimitMiddleware`. The gateway is a proxy in front: `trusted_proxies` has to
    count it, or all clients share its address. The limiter is opened with the lifespan, or by the first request.
    """

    prefix: Final = PREFIX

    def __init__(
        self,
        *,
        limiter: Limiter,
        usage: UsageLog | None = None,
        fallback: ASGIApp | None = None,
        **options: Unpack[SurfaceArgs],
    ) -> None:
        self.middleware = RateLimitMiddleware(self._allow, limiter=limiter, usage=usage, **options)
        self.fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.middleware(scope, receive, send)
        elif not self.covers(scope):
            await (self.fallback or _not_found)(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    def covers(self, scope: Scope) -> bool:
        path: str = scope["path"].removeprefix(scope.get("root_path", ""))
        return path == self.prefix or path.startswith(f"{self.prefix}/")

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A gateway may pass a handshake on as one; then the server has to be told which answer is meant.
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        dialect: Dialect = "plain"
        is_reduced = False

        async def pass_on(message: Message) -> None:
            """Turn the middleware's answer into one that the gateway understands."""
            nonlocal is_reduced
            if message["type"] == "http.response.start":
                is_reduced = message["status"] == REDUCED
                status, fields = for_gateway(message["status"], message["headers"], dialect)
                await send({"type": f"{kind}.start", "status": status, "headers": fields})
            else:
                body: bytes = message.get("body", b"") if scope.get("method") != "HEAD" else b""
                await send({**message, "type": f"{kind}.body", "body": reduced_body(body) if is_reduced else body})

        try:
            question = asked(scope, self.prefix)
        except InvalidInput as error:
            dialect = dialect_or_plain(scope)
            await no_question(error)({**scope, "type": "http"}, receive, pass_on)
        else:
            dialect = question.dialect
            await self.middleware(question.scope, no_body, pass_on)

    async def _allow(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Be the app behind the middleware: what gets here may pass. The lifespan is the fallback's."""
        if scope["type"] == "lifespan":
            await (self.fallback or no_lifespan)(scope, receive, send)
            return
        state = RateLimitState.of(scope)
        assert state is not None
        state.charges.settle_unanswered()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def for_gateway(
    status: int, headers: Iterable[tuple[bytes, bytes]], dialect: Dialect
) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return status and fields of an answer as the gateway understands them."""
    status = 429 if status >= 500 else status  # 503, or what a policy's template says
    fields = [*headers, (b"cache-control", b"no-store")]
    if dialect == "nginx" and status >= 400:
        fields.append((STATUS, b"%d" % status))
        status = 403
    return status, fields


def reduced_body(body: bytes) -> bytes:
    """Return the body of a `REDUCED` answer: of the same length, which has been announced already."""
    return body.replace(b'"status":503', b'"status":429', 1)


def no_question(error: InvalidInput) -> ProblemResponse:
    """Return the answer to a question that makes no sense."""
    return ProblemResponse(Problem(title="This is no question about a request", status=400, detail=str(error)))


_not_found: Final = ProblemResponse(Problem(title="Not found", status=404, detail=f"Ask {PREFIX}."))
