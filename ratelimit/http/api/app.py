"""`Api`: the native API as an ASGI app. What there is to ask is in `limiter`, `directory` and `usage`.

A decision is data here: a refused check is a 200 with `"allowed": false`. Bodies have to be declared as JSON, which
also keeps forms of foreign web pages out. What was answered to an `Idempotency-Key` is kept in this process
(`IdempotencyCache`): with several workers a repeat that reaches another one is decided anew. Route by the key, or run
one worker, where that matters.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from hashlib import blake2b
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, unquote, unquote_to_bytes

import msgspec
from starlette.types import Receive, Scope, Send

from ratelimit.clock import MINUTE, Clock
from ratelimit.directory import Directory
from ratelimit.errors import RateLimitError
from ratelimit.http.api.directory import DirectoryRoutes
from ratelimit.http.api.limiter import CheckBody, LimiterRoutes
from ratelimit.http.api.operation import (
    RETRY_AFTER,
    ApiProblem,
    Operation,
    Router,
    bad_input,
    invalid,
    openapi,
    problem_of_error,
    refused,
    to_json,
)
from ratelimit.http.api.usage import UsageRoutes
from ratelimit.http.auth import Token
from ratelimit.http.lifespan import no_lifespan
from ratelimit.http.problems import CONTENT_TYPE, Problem, ProblemError
from ratelimit.limiter import Limiter
from ratelimit.store import TableStore
from ratelimit.usage import UsageLog
from ratelimit.usage.reports import Reports

P = ParamSpec("P")
T = TypeVar("T")

JSON: Final = b"application/json"
_CLOSE: Final = (b"connection", b"close")
MAX_BODY: Final = 256 * 1024
MAX_BODY_S: Final = 30.0
"""Seconds for a body to arrive."""
# A query string longer than what our longest cursors and names come to is not ours.
_MAX_QUERY: Final = 16 * 1024
_UNQUOTED: Final = "/:@!$&'()*+,;="
KEPT_FOR: Final = 10 * MINUTE
"""How long an answer is kept to a keyed request."""
MAX_ANSWERS: Final = 10_000
MAX_BYTES: Final = 32 * 1024 * 1024
MAX_KEY: Final = 255


class ApiAnswer(msgspec.Struct, frozen=True):
    """What goes out."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()


def field(scope: Scope, name: bytes) -> bytes | None:
    """Return the first header field of this name."""
    for each, value in scope["headers"]:
        if each == name:
            found: bytes = value
            return found
    return None


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """Read the whole body, declared as JSON, of at most `MAX_BODY` bytes, in at most `MAX_BODY_S`."""
    kind = (field(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != JSON:
        raise refused(415, "Unsupported media type", "Send JSON, with Content-Type: application/json")
    length = field(scope, b"content-length") or b"0"
    announced = int(length) if length.isdigit() and len(length) < 20 else 0
    try:
        async with asyncio.timeout(MAX_BODY_S):
            body = b"" if announced > MAX_BODY else await _received(receive)
    except TimeoutError:
        raise refused(408, "Request timeout", f"A body has {MAX_BODY_S:g} s to arrive", _CLOSE) from None
    if max(len(body), announced) > MAX_BODY:
        raise refused(413, "Too large", f"A body may have {MAX_BODY} bytes", _CLOSE)
    return body


async def _received(receive: Receive) -> bytes:
    """Return all of it, or as soon as it is more than `MAX_BODY`, what there is by then."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refused(400, "Bad input", "the body ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False) and size <= MAX_BODY
    return b"".join(parts)


def decode_body(kind: type[T], body: bytes) -> T:
    """Decode JSON of the right shape."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise invalid(error) from None
    except UnicodeDecodeError:
        raise ProblemError(bad_input("", "not valid JSON: the text is not UTF-8")) from None
    except RecursionError:
        raise ProblemError(bad_input("", "not JSON that can be read: it is nested too deeply")) from None


def decode_query(kind: type[T], scope: Scope) -> T:
    """Decode the query string as a struct of texts and numbers."""
    raw: bytes = scope["query_string"]
    if len(raw) > _MAX_QUERY:
        raise ProblemError(bad_input("", f"the query string has more than {_MAX_QUERY} bytes"))
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise ProblemError(bad_input("", "the query string is not percent-encoded UTF-8")) from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise ProblemError(bad_input(name, "is given twice"))
        values[name] = value
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error) from None


def decode_part(one: Operation, raw: str) -> str:
    """Decode what stands in the path."""
    assert one.part is not None
    try:
        part: str = msgspec.convert(unquote_to_bytes(raw).decode(), one.part_type)
    except UnicodeDecodeError:
        raise ProblemError(bad_input(one.part, "is not percent-encoded UTF-8")) from None
    except msgspec.ValidationError as error:
        raise ProblemError(bad_input(one.part, str(error).replace("`", "'"))) from None
    return part


class _Kept(msgspec.Struct):
    digest: bytes
    expires: int
    task: asyncio.Task[ApiAnswer]
    size: int = 0
    """Bytes of the answer; 0 while there is none."""


class IdempotencyCache:
    """What was answered to keyed requests: a repeat spends nothing and reads the same. A request that failed may be
    tried again.

    At most `MAX_ANSWERS` of `MAX_BYTES` in all, each for `KEPT_FOR`; of more, the oldest give way.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    async def answer(self, key: str, path: str, body: bytes, act: Callable[[], Awaitable[ApiAnswer]]) -> ApiAnswer:
        """Return what `act` answers, or has answered to this key. Raise `ProblemError` for a bad key, or another body.

        A repeat that comes while the first is under way waits for it. The first goes on if its client gives up.
        """
        if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
            raise refused(400, "Bad input", f"Idempotency-Key: expected 1 to {MAX_KEY} printable ASCII characters")
        self._expire()
        digest = blake2b(body, digest_size=16).digest()
        kept = self._kept.get((path, key))
        if kept is None:
            task = asyncio.ensure_future(act())
            self._keep((path, key), _Kept(digest, self._clock.now() + KEPT_FOR, task))
            return await asyncio.shield(task)
        if kept.digest != digest:
            raise refused(422, "The key is taken", "Idempotency-Key: was used for a different body; make a new one")
        answer = await asyncio.shield(kept.task)
        return msgspec.structs.replace(answer, headers=(*answer.headers, (b"idempotency-replayed", b"true")))

    def __len__(self) -> int:
        return len(self._kept)

    def _keep(self, place: tuple[str, str], kept: _Kept) -> None:
        self._kept[place] = kept

        def settle(task: asyncio.Task[ApiAnswer]) -> None:
            if self._kept.get(place) is not kept:
                return
            if task.cancelled() or task.exception() is not None or task.result().status >= 400:
                self._forget(place)
                return
            kept.size = len(task.result().body)
            self._bytes += kept.size
            self._make_room()

        kept.task.add_done_callback(settle)
        self._make_room()

    def _make_room(self) -> None:
        while len(self._kept) > MAX_ANSWERS or self._bytes > MAX_BYTES:
            self._forget(next(iter(self._kept)))

    def _expire(self) -> None:
        now = self._clock.now()
        while self._kept:
            place, oldest = next(iter(self._kept.items()))
            if now < oldest.expires and now >= oldest.expires - 2 * KEPT_FOR:
                return
            self._forget(place)

    def _forget(self, place: tuple[str, str]) -> None:
        self._bytes -= self._kept.pop(place).size


Body: TypeAlias = Callable[[], Awaitable[bytes]]


def _answering(work: Callable[P, Awaitable[ApiAnswer]]) -> Callable[P, Awaitable[ApiAnswer]]:
    """Make answers of what the work raises."""

    @wraps(work)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> ApiAnswer:
        try:
            return await work(*args, **kwargs)
        except ProblemError as error:
            return _problem(error.problem, error.headers)
        except RateLimitError as error:
            return _problem(problem_of_error(error))

    return answer


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
                 for pages of other sites (see `ratelimit.http.auth`).
    `idempotency`  what was answered to keyed requests before, where another `Api` was in this one's place.
    """

    def __init__(
        self,
        limiter: Limiter,
        store: TableStore,
        *,
        usage: UsageLog | None = None,
        directory: Directory | None = None,
        token: str | None = None,
        idempotency: IdempotencyCache | None = None,
    ) -> None:
        self.idempotency = IdempotencyCache(limiter.clock) if idempotency is None else idempotency
        directory = Directory(store.directory, clock=limiter.clock) if directory is None else directory
        reports = Reports(store, limiter.policies, limiter.clock) if usage is None else usage
        self._token = Token(token)
        self._limiter = LimiterRoutes(limiter, usage)
        self.operations: tuple[Operation, ...] = (
            *self._limiter.operations(),
            *UsageRoutes(reports, directory).operations(),
            *DirectoryRoutes(directory, limiter.policies).operations(),
            Operation("GET", "/v1/openapi.json", self.document, open=True),
        )
        self._router = Router(self.operations)
        self._document = msgspec.convert(openapi(self.operations, token=bool(self._token)), Document)

    async def document(self) -> Document:
        """This document."""
        return self._document

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await no_lifespan(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
            return
        try:
            answer = await self.answer(scope, partial(read_body, scope, receive))
        except Exception:
            await _send(UNEXPECTED, scope, send)
            raise  # For the server's log.
        await _send(answer, scope, send)

    @_answering
    async def check(self, headers: list[tuple[bytes, bytes]], body: bytes) -> ApiAnswer:
        """Return the answer to a `POST /v1/check` of JSON that has no query and no key to repeat it by."""
        self._admit(headers)
        return _success(await self._limiter.check(decode_body(CheckBody, body)))

    def _admit(self, headers: list[tuple[bytes, bytes]]) -> None:
        if (failure := self._token.failure(headers)) is not None:
            raise refused(failure.status, failure.title, failure.detail, *failure.headers)

    @_answering
    async def answer(self, scope: Scope, body: Body) -> ApiAnswer:
        """Return the answer to a request; `body` reads its body, if that is wanted, and may raise `ProblemError`."""
        found = self._router.find(raw_path(scope))
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        one = None if found is None else found.by_method.get(method)
        if one is None or not one.open:
            self._admit(scope["headers"])  # before anything is said about what there is
        if found is None:
            raise refused(404, "Not found", f"There are: {', '.join(self._router.templates)}")
        if one is None:
            allow = ", ".join([*found.by_method, *(["HEAD"] if "GET" in found.by_method else [])])
            raise refused(405, "Method not allowed", f"{found.template} takes {allow}", (b"allow", allow.encode()))
        return await self._carry_out(one, found.raw_part, scope, body)

    async def _carry_out(self, one: Operation, raw_part: str | None, scope: Scope, read: Body) -> ApiAnswer:
        part = None if raw_part is None else decode_part(one, raw_part)
        query = decode_query(one.query, scope)
        raw = b"" if one.body is None else await read()
        body = None if one.body is None else decode_body(one.body, raw)

        async def act() -> ApiAnswer:
            try:
                return _success(await one.act(**one.arguments(part, query, body)))
            except RateLimitError as error:
                return _problem(problem_of_error(error))

        key = field(scope, b"idempotency-key") if one.repeatable else None
        if key is None:
            return await act()
        return await self.idempotency.answer(key.decode("latin-1"), raw_path(scope), raw, act)


def raw_path(scope: Scope) -> str:
    """Return the path as it was sent, less what the app is mounted under."""
    raw: bytes | None = scope.get("raw_path")
    # Not every server says how it was sent: behind AWS Lambda nobody does.
    path = quote(scope["path"], _UNQUOTED) if raw is None else raw.partition(b"?")[0].decode("latin-1")
    root: str = scope.get("root_path", "")
    mount = "/".join(path.split("/")[: root.count("/") + 1])
    return path[len(mount) :] if root and unquote(mount) == root else path


_USER: Final = re.compile(r"(?<=^/v1/users/)[^/]+")


def without_user(path: str) -> str:
    """Return a path fit for a log: the API's own say whom they are about."""
    return _USER.sub("*", path)


def headers_of(answer: ApiAnswer) -> list[tuple[bytes, bytes]]:
    """Return the fields that it is sent with."""
    length = [] if answer.status == 204 else [(b"content-length", b"%d" % len(answer.body))]
    return [*length, (b"cache-control", b"no-store"), *answer.headers]


async def _send(answer: ApiAnswer, scope: Scope, send: Send) -> None:
    await send({"type": "http.response.start", "status": answer.status, "headers": headers_of(answer)})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else answer.body})


def _success(value: object) -> ApiAnswer:
    if value is None:
        return ApiAnswer(204, b"")
    return ApiAnswer(200, to_json(value), ((b"content-type", JSON),))


def _problem(problem: Problem, headers: tuple[tuple[bytes, bytes], ...] = ()) -> ApiAnswer:
    wait = ((b"retry-after", RETRY_AFTER),) if problem.status == 503 else ()
    return ApiAnswer(problem.status, to_json(problem), ((b"content-type", CONTENT_TYPE), *headers, *wait))


UNEXPECTED: Final = _problem(
    ApiProblem(title="Internal error", status=500, detail="A fault of the server; it is logged.")
)
"""What is answered where something fails that nobody has thought of."""
