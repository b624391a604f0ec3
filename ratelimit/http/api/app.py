"""`Api`: the native API as an ASGI app. What there is to ask is in `verbs`, `directory` and `usage`.

A decision is data here: a refused check is a 200 with `"allowed": false`. Bodies have to be declared as JSON, which
also keeps forms of foreign web pages out.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.types import Receive, Scope, Send

from ratelimit.directory import Directory
from ratelimit.errors import RateLimitError
from ratelimit.http.admin.token import Token
from ratelimit.http.api.bodies import ApiProblem, to_json
from ratelimit.http.api.directory import People
from ratelimit.http.api.idempotency import Answer, Replays
from ratelimit.http.api.intake import JSON, decode_body, decode_part, decode_query, field, read_body
from ratelimit.http.api.openapi import openapi
from ratelimit.http.api.operation import Found, Operation, Router, arguments, operation
from ratelimit.http.api.problems import RETRY_AFTER, Refused, problem_of_error, refused
from ratelimit.http.api.usage import Used
from ratelimit.http.api.verbs import Verbs
from ratelimit.http.problems import CONTENT_TYPE
from ratelimit.limiter import Limiter
from ratelimit.store import TableStore
from ratelimit.usage import UsageLog
from ratelimit.usage.reports import Reports

MOST_BODY: Final = 256 * 1024
_UNEXPECTED: Final = ApiProblem(title="Internal error", status=500, detail="A fault of the server; it is logged.")


class Document(msgspec.Struct, frozen=True):
    """An OpenAPI document."""

    openapi: str
    info: dict[str, Any]
    paths: dict[str, Any]
    components: dict[str, Any]


class Api:
    """Everything here is opened and closed by whoever mounts it.

    `store`      the limiter's: where events, users and plans live as well.
    `usage`      the log that checks are written to; None writes nothing.
    `directory`  the limiter's, so that a change made here is seen by it at once.
    `token`      asked of every caller, as `Authorization: Bearer …`; None admits all who can reach the listener, but
                 for pages of other sites (see `ratelimit.http.admin.token`).
    `max_body`   bytes of a body at most.
    `replays`    what was answered to keyed requests before, where another `Api` was in this one's place.
    """

    def __init__(
        self,
        limiter: Limiter,
        store: TableStore,
        *,
        usage: UsageLog | None = None,
        directory: Directory | None = None,
        token: str | None = None,
        max_body: int = MOST_BODY,
        replays: Replays | None = None,
    ) -> None:
        self.replays = Replays(limiter.clock) if replays is None else replays
        directory = Directory(store.directory, clock=limiter.clock) if directory is None else directory
        reports = Reports(store, limiter.policies, limiter.clock) if usage is None else usage
        self._token = Token(token)
        self._max_body = max_body
        self.operations: tuple[Operation, ...] = (
            *Verbs(limiter, usage).operations(),
            *Used(reports, directory).operations(),
            *People(directory).operations(),
            operation("GET", "/v1/openapi.json", self.document, open=True),
        )
        self._router = Router(self.operations)
        self._document = msgspec.convert(openapi(self.operations, token=bool(self._token)), Document)

    async def document(self) -> Document:
        """This document."""
        return self._document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or run the lifespan, in which there is nothing to do."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        try:
            answer = await self._answer(scope, receive)
        except Refused as error:
            answer = _problem(error.problem, error.headers)
        except RateLimitError as error:
            answer = _problem(problem_of_error(error))
        except Exception:
            await _send(_problem(_UNEXPECTED), scope, send)
            raise  # For the server's log.
        await _send(answer, scope, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        found = self._router.find(_raw_path(scope))
        one = None if found is None else _chosen(found, scope["method"])
        is_open = one is not None and one.open
        if not is_open and (why := self._token.turns_away(scope["headers"])) is not None:
            # Before anything is said about what there is.
            raise refused(why.status, why.title, why.detail, *why.headers)
        if found is None:
            raise refused(404, "Not found", f"There are: {', '.join(self._router.templates)}")
        if one is None:
            allow = ", ".join([*found.by_method, *(["HEAD"] if "GET" in found.by_method else [])])
            raise refused(405, "Method not allowed", f"{found.template} takes {allow}", (b"allow", allow.encode()))
        return await self._carry_out(one, found.raw_part, scope, receive)

    async def _carry_out(self, one: Operation, raw_part: str | None, scope: Scope, receive: Receive) -> Answer:
        part = None if raw_part is None else decode_part(one, raw_part)
        query = decode_query(one.query, scope)
        raw = b"" if one.body is None else await read_body(scope, receive, most=self._max_body)
        body = None if one.body is None else decode_body(one.body, raw)

        async def act() -> Answer:
            try:
                return _success(await one.act(**arguments(one, part, query, body)))
            except RateLimitError as error:
                return _problem(problem_of_error(error))

        key = field(scope, b"idempotency-key") if one.repeatable else None
        if key is None:
            return await act()
        return await self.replays.answer(key.decode("latin-1"), _raw_path(scope), raw, act)


def _chosen(found: Found, method: str) -> Operation | None:
    return found.by_method.get("GET" if method == "HEAD" else method)


def _raw_path(scope: Scope) -> str:
    raw: bytes | None = scope.get("raw_path")
    path: str = scope["path"] if raw is None else raw.partition(b"?")[0].decode("latin-1")
    return path.removeprefix(scope.get("root_path", ""))


async def _send(answer: Answer, scope: Scope, send: Send) -> None:
    length = [] if answer.status == 204 else [(b"content-length", b"%d" % len(answer.body))]
    headers = [*length, (b"cache-control", b"no-store"), *answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})


def _success(value: object) -> Answer:
    if value is None:
        return Answer(204, b"")
    return Answer(200, to_json(value), ((b"content-type", JSON),))


def _problem(problem: ApiProblem, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    wait = ((b"retry-after", RETRY_AFTER),) if problem.status == 503 else ()
    return Answer(problem.status, to_json(problem), ((b"content-type", CONTENT_TYPE), *headers, *wait))


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
