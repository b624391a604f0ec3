"""A refusal as it is answered: 429 or 503 with a problem body, or as the app wants it; for requests and handshakes.

Where the app has Starlette's `CORSMiddleware` further in, it adds its fields here too, so that a page can read the
refusal; and preflights, which that one answers by itself, are no requests to count.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import cached_property, partial
from http import HTTPStatus
from inspect import isawaitable
from math import ceil
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from starlette.applications import Starlette
from starlette.datastructures import Headers as RequestHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.decision import Decision
from ratelimit.errors import QuotaExceeded, RateLimitError
from ratelimit.http.headers import Headers, HeaderWriter, unsaid
from ratelimit.http.problems import Problem, ProblemResponse, problem_of
from ratelimit.http.routing import overriding_methods
from ratelimit.policy import PLACEHOLDER, Policy, RefusalTemplate

if TYPE_CHECKING:
    from ratelimit.http.admission import Admission

OnRefused: TypeAlias = "Callable[[HTTPConnection, Decision], Response | Awaitable[Response]]"

POLICY_VIOLATION: Final = 1008
"""The websocket close code (RFC 6455, 7.4.1) of a refusal."""
TOO_MANY_REQUESTS: Final = 4429
"""The same for servers that let an app close with 1000 and 3000 to 4999 only."""
_MAX_DEPTH: Final = 100
_BY_TEMPLATE: Final = ("quota", "concurrency", "too_large")
"""What a policy's template answers; whoever is not known to be over a quota is told the truth."""


class Refusals:
    """How one middleware answers what it refuses. `app` is what stands further in."""

    def __init__(
        self, writer: HeaderWriter, app: ASGIApp, on_refused: OnRefused | None, policies: Iterable[Policy]
    ) -> None:
        self._writer = writer
        self._templates = {policy.name: policy.refusal for policy in policies if policy.refusal is not None}
        self._app = app
        self._on_refused = on_refused
        self._inner = next((one for one in stack(app) if isinstance(one, Starlette)), None)

    def is_preflight(self, scope: Scope) -> bool:
        """Return whether the app's `CORSMiddleware` will answer this request, and nobody behind it will see it."""
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            return False
        names = {name.lower() for name, _ in scope["headers"]}
        is_one = {b"origin", b"access-control-request-method"} <= names and not overriding_methods(scope)
        return is_one and self._cors is not None

    async def of(self, decision: Decision, asked: Admission) -> tuple[Response, Headers]:
        """Return the answer to a request that was refused so, and what fields to add. Raises what the app's function
        does."""
        response: Response | None
        if (template := self._templates.get(decision.policy)) is not None and decision.reason in _BY_TEMPLATE:
            response = _filled(template, decision)
        elif self._on_refused is None:
            response = await self._by_the_app(decision, asked)
        else:
            answer = self._on_refused(asked.connection, decision)
            response = await answer if isawaitable(answer) else answer
        if response is None:
            return refusal(decision, self._writer), []
        if not isinstance(response, Response):
            raise RateLimitError(
                f"what answers a refusal of {decision.policy!r} must return a Response, not {response!r}"
            )
        return response, unsaid(self._writer.refusal(decision), [name.lower() for name, _ in response.raw_headers])

    async def _by_the_app(self, decision: Decision, asked: Admission) -> Response | None:
        """Return the answer of the handler that the app has for what a view raises; None where there is none."""
        app = self._inner or asked.scope.get("app")
        if asked.scope["type"] != "http" or not isinstance(app, Starlette):
            return None
        handlers = app.exception_handlers
        handler: Any = handlers.get(QuotaExceeded) or handlers.get(RateLimitError)
        if handler is None:
            return None
        error = QuotaExceeded(decision)
        try:
            answer = handler(asked.connection, error)
            response: Response = await answer if isawaitable(answer) else answer
        except QuotaExceeded:
            return None
        return response

    async def send(self, response: Response, fields: Headers, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or a handshake that was not accepted yet, without reading anything of it."""
        if (cors := self._cors) is not None and scope["type"] == "http":
            send = partial(cors.send, send=send, request_headers=RequestHeaders(scope=scope))
        if fields:
            send = partial(_send_with, fields, send)
        await respond(response, scope, receive, send)

    @cached_property
    def _cors(self) -> CORSMiddleware | None:
        """Return the first one further in: as Starlette has built its stack, or is going to."""
        for one in stack(self._app):
            if isinstance(one, CORSMiddleware):
                return one
            if isinstance(one, Starlette):
                kinds: list[Any] = one.user_middleware
                for own in kinds:
                    if isinstance(own.cls, type) and issubclass(own.cls, CORSMiddleware):
                        make: Any = own.cls
                        cors: CORSMiddleware = make(one.router, *own.args, **own.kwargs)
                        return cors
        return None


async def _send_with(fields: Headers, send: Send, message: Message) -> None:
    # Not into the response, which the app may keep and return again.
    if message["type"].endswith("http.response.start"):
        message = {**message, "headers": [*message["headers"], *fields]}
    await send(message)


def _filled(template: RefusalTemplate, decision: Decision) -> Response:
    is_json = "json" in template.content_type
    never = "null" if is_json else ""
    values = {
        # As what stands between quotes.
        "policy": json.dumps(decision.policy)[1:-1] if is_json else decision.policy,
        "limit": str(decision.limit or 0),
        "remaining": str(decision.remaining or 0),
        "retry_after": never if decision.retry_after is None else str(max(1, ceil(decision.retry_after))),
    }
    body = PLACEHOLDER.sub(lambda found: values[found[1]], template.body)
    return Response(body, template.status, {"content-type": template.content_type})


def refusal(decision: Decision, writer: HeaderWriter) -> Response:
    """Return the problem that a refused decision is."""
    return ProblemResponse(problem_of(decision, writer), writer.refusal(decision))


def rejection(error: HTTPException) -> Response:
    """Return as a problem what a function of the app has raised about a request."""
    status = error.status_code
    title = HTTPStatus(status).phrase if status in set(HTTPStatus) else "The request was rejected"
    fields = [(name.lower().encode(), value.encode("latin-1")) for name, value in (error.headers or {}).items()]
    return ProblemResponse(Problem(title=title, status=status, detail=str(error.detail)), fields)


async def respond(response: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the answer to a request, or to a handshake, which is closed where its server cannot say more."""
    if scope["type"] == "http" or "websocket.http.response" in (scope.get("extensions") or {}):
        await response(scope, receive, send)
    else:
        await send(closing(scope))  # servers make a 403 of it, whatever the code


def closing(scope: Scope) -> Message:
    """Return the message that closes a websocket for a refusal."""
    asgi: dict[str, Any] | None = scope.get("asgi")
    # Who names no version of the specification goes by that of 2018, as Daphne does, which refuses to send others.
    code = POLICY_VIOLATION if asgi is None or "spec_version" in asgi else TOO_MANY_REQUESTS
    return {"type": "websocket.close", "code": code, "reason": "quota exceeded"}


def stack(app: object) -> Iterator[object]:
    """Yield an app, and what stands directly further in, as far as each of them tells by its `app`."""
    for _ in range(_MAX_DEPTH):
        yield app
        app = getattr(app, "app", None)
