"""`Decisions`: the decision endpoint and the native API. Gateways' questions and plain checks are answered by the
connection itself; all else is an ASGI app's behind it."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any, Final

from starlette.responses import Response
from starlette.types import ASGIApp

from ratelimit.decision import Decision
from ratelimit.errors import InvalidInput
from ratelimit.http.admission import Admission, Answer
from ratelimit.http.api import Api
from ratelimit.http.api.app import JSON, MAX_BODY, MAX_BODY_S, UNEXPECTED, headers_of
from ratelimit.http.authz import UNDECIDED, Authz, for_gateway, no_question
from ratelimit.http.gateway_question import Dialect, asked, dialect_or_plain
from ratelimit.server.asgi import AsgiService
from ratelimit.server.connection import NEVER, ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.problems import SLOW
from ratelimit.server.request import RawHeader, Request
from ratelimit.store.memory import MemoryStore
from ratelimit.tasks import start_now

logger = logging.getLogger("ratelimit.serving")

_CHECK: Final = b"/v1/check"
_UNANSWERED: Final = "a request could not be answered"


class Decisions(AsgiService):
    """`app`: what serves everything else."""

    def __init__(self, authz: Authz, app: ASGIApp) -> None:
        super().__init__(app)
        self.prefix = authz.prefix
        assert isinstance(authz.fallback, Api)
        self.api = authz.fallback
        self.state = authz.middleware._state
        self._lifespan = authz.middleware._lifespan
        self.is_local = isinstance(self.state.limiter.store, MemoryStore)
        """Whether checks are answered without waiting."""

    async def start(self) -> None:
        await self._lifespan.open()

    async def end(self) -> None:
        await self._lifespan.close()

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        if not self._lifespan.ready:
            return super().exchange(connection, request)
        path: str = request.scope["path"]
        if path.startswith(self.prefix) and path[len(self.prefix) : len(self.prefix) + 1] in ("", "/"):
            return Question(connection, request, self)
        if request.target == _CHECK and request.method == b"POST" and _is_plain(request):
            return CheckRequest(connection, request, self)
        return super().exchange(connection, request)


def _is_plain(request: Request) -> bool:
    """Return whether it has a body of JSON of a length that is told, and is not one that may be sent again."""
    is_small = is_json = False
    for name, value in request.headers:
        if name == b"content-length":
            is_small = int(value) <= MAX_BODY
        elif name == b"content-type":
            if value != JSON:
                return False
            is_json = True
        elif name == b"idempotency-key":
            return False
    return is_small and is_json and not request.is_chunked and not request.expects_continue


class Decided(Exchange):
    """Answered as soon as something is decided."""

    def __init__(self, connection: ClientConnection, request: Request, service: Decisions) -> None:
        self.connection = connection
        self.request = request
        self._service = service

    def on_lost(self) -> None:
        self._is_lost = True
        if self._task is None or self._task.done():
            self.over()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self.connection.due = NEVER
        self._task = start_now(work) if self._service.is_local else self.connection.loop.create_task(work)


class Question(Decided):
    """A gateway's. Its body, if there is any, is nothing to us."""

    def begin(self) -> None:
        self.connection.due = NEVER
        scope = self.request.scope
        try:
            question = asked(scope, self._service.prefix)
        except InvalidInput as error:
            self._respond(no_question(error), [], dialect_or_plain(scope))
            return
        self._admission = admission = Admission(self._service.state, question.scope)
        try:
            answer = admission.begin()
        except Exception:
            logger.exception(_UNANSWERED)
            self._respond(UNDECIDED, [], question.dialect)
            return
        if answer is None and self._service.state.recorder is None:
            self._allow(admission)
        else:
            self._run(self._decide(admission, answer, question.dialect))

    async def _decide(self, admission: Admission, answer: Answer, dialect: Dialect) -> None:
        try:
            refused = answer if answer is None or isinstance(answer, Decision) else await answer
            if refused is None:
                admission.status = 200
                await admission.record()
                self._allow(admission)
            else:
                self._respond(*await admission.refuse(refused), dialect)
        except Exception:
            logger.exception(_UNANSWERED)
            self._respond(UNDECIDED, [], dialect)

    def _allow(self, admission: Admission) -> None:
        # What the upstream will answer is not known here.
        admission.charges.settle_unanswered()
        admission.leave()
        if not self._is_lost:
            lines = [b"content-length: 0\r\n"]
            for name, value in admission.fields(()):
                lines += (name, b": ", value, b"\r\n")
            lines.append(b"cache-control: no-store\r\n")
            self.connection.write_head(200, b"OK", lines, has_length=True, has_date=False)
            self.connection.finish()
        self.over()

    def _respond(self, response: Response, fields: list[RawHeader], dialect: Dialect) -> None:
        self.write(*for_gateway(response, fields, dialect))


class CheckRequest(Decided):
    """`POST /v1/check`, with its body."""

    def __init__(self, connection: ClientConnection, request: Request, service: Decisions) -> None:
        super().__init__(connection, request, service)
        self._body: list[bytes] = []

    def begin(self) -> None:
        if self.is_complete:
            self._run(self._answer())
        else:
            self.connection.due = self.connection.loop.time() + MAX_BODY_S

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_complete(self, trailers: list[RawHeader]) -> None:
        self.is_complete = True
        if self.is_begun:
            self._run(self._answer())

    def on_due(self) -> None:
        self.problem(SLOW)

    async def _answer(self) -> None:
        try:
            answer = await self._service.api.check(self.request.headers, b"".join(self._body))
        except Exception:
            logger.exception("a check could not be answered")
            answer = UNEXPECTED
        self.write(answer.status, headers_of(answer), answer.body)
