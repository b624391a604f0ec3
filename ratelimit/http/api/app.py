"""`Api`: routes, bodies and errors of the native API. What each verb does is in `ratelimit.http.api.verbs`.

A decision is data here: a refused check is a 200 with `"allowed": false`. Bodies have to be declared as JSON, which
also keeps forms of foreign web pages out.
"""

from __future__ import annotations

from typing import Final

from starlette.types import Receive, Scope, Send

from ratelimit.errors import RateLimitError
from ratelimit.http.admin.token import Token
from ratelimit.http.api.bodies import ApiProblem, to_json
from ratelimit.http.api.idempotency import Answer, Replays
from ratelimit.http.api.problems import RETRY_AFTER, Refused, problem_of_error, refused
from ratelimit.http.api.verbs import Verbs
from ratelimit.http.problems import CONTENT_TYPE
from ratelimit.limiter import Limiter
from ratelimit.usage import UsageLog

MOST_BODY: Final = 256 * 1024
_JSON: Final = b"application/json"


class Api:
    """An ASGI app. The limiter, and the usage log if there is one, are opened and closed by whoever mounts it.

    `token`     asked of every caller, as `Authorization: Bearer …`; None admits all who can reach the listener.
    `max_body`  bytes of a body at most.
    """

    def __init__(
        self, limiter: Limiter, *, usage: UsageLog | None = None, token: str | None = None, max_body: int = MOST_BODY
    ) -> None:
        self.replays = Replays(limiter.clock)
        self._verbs = Verbs(limiter, usage)
        self._token = Token(token)
        self._max_body = max_body

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
        headers = [(b"content-length", b"%d" % len(answer.body)), (b"cache-control", b"no-store"), *answer.headers]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not self._token.admits(scope["headers"]):
            challenge = (b"www-authenticate", b"Bearer")
            raise refused(401, "Unauthorized", "A valid token is needed: Authorization: Bearer …", challenge)
        verb = self._verbs.named.get(path)
        if verb is None:
            raise refused(404, "Not found", f"There are: {', '.join(self._verbs.named)}")
        if scope["method"] != "POST":
            raise refused(405, "Method not allowed", f"{path} takes POST", (b"allow", b"POST"))
        body = await self._body(scope, receive)

        async def act() -> Answer:
            try:
                return _success(await verb(body))
            except RateLimitError as error:
                return _problem(problem_of_error(error))

        key = _field(scope, b"idempotency-key")
        if key is None or path == "/v1/peek":
            return await act()
        return await self.replays.answer(key.decode("latin-1"), path, body, act)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        kind = (_field(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
        if kind != _JSON:
            raise refused(415, "Unsupported media type", "Send JSON, with Content-Type: application/json")
        length = _field(scope, b"content-length") or b"0"
        body, more = b"", int(length) <= self._max_body if length.isdigit() else True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise refused(400, "Bad input", "the body ended early")
            body += message.get("body", b"")
            more = message.get("more_body", False) and len(body) <= self._max_body
        if len(body) > self._max_body or (length.isdigit() and int(length) > self._max_body):
            raise refused(413, "Too large", f"A body may have {self._max_body} bytes", (b"connection", b"close"))
        return body


def _success(value: object) -> Answer:
    if value is None:
        return Answer(204, b"")
    return Answer(200, to_json(value), ((b"content-type", _JSON),))


def _problem(problem: ApiProblem, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    wait = ((b"retry-after", RETRY_AFTER),) if problem.status == 503 else ()
    return Answer(problem.status, to_json(problem), ((b"content-type", CONTENT_TYPE), *headers, *wait))


def _field(scope: Scope, name: bytes) -> bytes | None:
    for field, value in scope["headers"]:
        if field == name:
            found: bytes = value
            return found
    return None


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
