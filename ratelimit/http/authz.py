"""`Authz`: the decision endpoint. A gateway asks it about each request, and does as it answers.

    200                    let it pass, with the RateLimit fields for those gateways that can hand them on
    429                    refuse it, with the fields, Retry-After and the problem body
    429, type …reduced-…   the store cannot be asked, and the policy says `deny`: never a 5xx, which Envoy takes for a
                           fault of this endpoint and then, by its `failure_mode_allow`, lets the request pass
    429                    a function of the app fails: a fault of ours lets nobody pass either
    400                    the question makes no sense; the detail says why
    403 + X-RL-Status      with `?dialect=nginx` in the place of every refusal: `auth_request` knows no other

It is the middleware around an app that says yes. What the upstream will answer is not known here, so whatever is
allowed counts, also for policies with `count = "success"` or `"failure"`.
"""

from __future__ import annotations

import logging
from typing import Final, Unpack

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.errors import InvalidInput
from ratelimit.http.gateway_question import Dialect, asked, dialect_or_plain
from ratelimit.http.headers import Headers
from ratelimit.http.lifespan import no_lifespan
from ratelimit.http.middleware import RateLimitMiddleware, SurfaceArgs
from ratelimit.http.problems import Problem, ProblemResponse, answer_of
from ratelimit.http.request_handler import RateLimitState
from ratelimit.limiter import Limiter
from ratelimit.usage import UsageLog

PREFIX: Final = "/v1/authz"
STATUS: Final = b"x-rl-status"
"""Carries the real status where the gateway does not understand it."""

REDUCED: Final = 503
"""The status of a refusal because the store cannot be asked, which no gateway is to see."""

UNDECIDED: Final = ProblemResponse(
    Problem(title="The request could not be checked", status=429, detail="A fault of the server; it is logged.")
)

logger = logging.getLogger("ratelimit")


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
        try:
            question = asked(scope, self.prefix)
        except InvalidInput as error:
            answer, dialect = await answer_of(no_question(error), {**scope, "type": "http"}), dialect_or_plain(scope)
        else:
            answer, dialect = await self._decide(question.scope), question.dialect
        status, headers, body = for_gateway(answer, [], dialect)
        # A gateway may pass a handshake on as one; then the server has to be told which answer is meant.
        kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
        await send({"type": f"{kind}.start", "status": status, "headers": headers})
        await send({"type": f"{kind}.body", "body": b"" if scope.get("method") == "HEAD" else body})

    async def _decide(self, scope: Scope) -> Response:
        try:
            return await answer_of(self.middleware, scope, None)
        except Exception:
            logger.exception("a request could not be checked")
            return UNDECIDED

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


def for_gateway(answer: Response, fields: Headers, dialect: Dialect) -> tuple[int, Headers, bytes]:
    """Return status, fields and body of an answer, with these fields as well, as the gateway understands them."""
    status, body = answer.status_code, bytes(answer.body)
    if status == REDUCED:  # of the same length, which has been announced already
        body = body.replace(b'"status":503', b'"status":429', 1)
    status = 429 if status >= 500 else status  # 503, or what a policy's template says
    headers = [*answer.raw_headers, *fields, (b"cache-control", b"no-store")]
    if dialect == "nginx" and status >= 400:
        headers.append((STATUS, b"%d" % status))
        status = 403
    return status, headers, body


def no_question(error: InvalidInput) -> ProblemResponse:
    """Return the answer to a question that makes no sense."""
    return ProblemResponse(Problem(title="This is no question about a request", status=400, detail=str(error)))


_not_found: Final = ProblemResponse(Problem(title="Not found", status=404, detail=f"Ask {PREFIX}."))
