"""`Authz`: the decision endpoint. A gateway asks it about each request, and does as it answers.

    200                    let it pass, with the RateLimit fields for those gateways that can hand them on
    429                    refuse it, with the fields, Retry-After and the problem body
    429, type …reduced-…   the store cannot be asked, and the policy says `deny`: never a 5xx, which Envoy takes for a
                           fault of this endpoint and then, by its `failure_mode_allow`, lets the request pass
    400                    the question makes no sense; the detail says why
    403 + X-RL-Status      with `?dialect=nginx` in the place of every refusal: `auth_request` knows no other

It is the middleware around an app that says yes. What the upstream will answer is not known here, so whatever is
allowed counts, also for policies with `count = "success"` or `"failure"`. The request is rebuilt from what the gateway
says of it:

    path suffix          Envoy appends the original path, and keeps the method: `POST /v1/authz/hints?a=1`
    X-Forwarded-Uri      Traefik, Caddy; with X-Forwarded-Method, -Host, -Proto
    X-Original-URI       nginx, HAProxy; with X-Original-Method, -Host

A client may send any of these fields itself. So one of them is believed only where the gateway overwrites it: the
suffix is looked at first, with `?dialect=nginx` or `haproxy` only `X-Original-*`, and else only `X-Forwarded-*`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, Literal, TypeAlias, TypedDict, Unpack, cast, get_args
from urllib.parse import parse_qsl, unquote

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.errors import InvalidInput
from ratelimit.http.addresses import TrustedProxies
from ratelimit.http.body import no_body
from ratelimit.http.headers import HeaderStyle
from ratelimit.http.identity import named_by_connection
from ratelimit.http.lifespan import no_lifespan
from ratelimit.http.middleware import RateLimitMiddleware
from ratelimit.http.problems import Problem, ProblemResponse
from ratelimit.http.request_handler import RateLimitState
from ratelimit.http.routing import WEBSOCKET, ambiguity
from ratelimit.limiter import Limiter
from ratelimit.policy import Exempt, UserFrom
from ratelimit.usage import UsageLog

PREFIX: Final = "/v1/authz"
STATUS: Final = b"x-rl-status"
"""Carries the real status where the gateway does not understand it."""

REDUCED: Final = 503
"""The status of a refusal because the store cannot be asked, which no gateway is to see."""

Dialect: TypeAlias = Literal["plain", "nginx", "haproxy"]

_DIALECTS: Final = get_args(Dialect)
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}")
_KNOWN_PATHS: Final = 1024
_MAX_KNOWN_PATH: Final = 256
# Of an address that begins with one: a URL further in is a part of the path.
_ORIGIN = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class GatewayQuestion(msgspec.Struct, frozen=True):
    """A question of a gateway."""

    scope: Scope
    """The original request, as a server would have shown it to the app."""
    dialect: Dialect


def asked(scope: Scope, prefix: str) -> GatewayQuestion:
    """Read the question in a request. Raises `InvalidInput` where it is unclear: no limit is off by accident."""
    headers = _Fields(scope)
    suffix = _suffix(scope, prefix)
    if suffix:
        if suffix == "/" and ("x-forwarded-uri" in headers or "x-original-uri" in headers):
            raise InvalidInput(f"write the address without the slash at its end: {prefix}, or send no X-*-Uri fields")
        method, query = scope.get("method", "GET"), scope["query_string"]
        return GatewayQuestion(_original(scope, headers, method, suffix, query, host=None), "plain")
    dialect = dialect_of(scope)
    family = "x-forwarded" if dialect == "plain" else "x-original"
    uri = headers[f"{family}-uri"]
    if uri is None:
        raise InvalidInput(
            f"which request is this about? Send its path as {family.title()}-Uri, or append it to {prefix}"
            + (" (with X-Original-URI, write ?dialect=nginx)" if "x-original-uri" in headers else "")
        )
    method = headers[f"{family}-method"] or ("GET" if scope["type"] == "websocket" else None)
    if method is None:
        raise InvalidInput(f"which method did the request have? Send it as {family.title()}-Method")
    path, _, text = _ORIGIN.sub("", uri).partition("#")[0].partition("?")
    query, host = text.encode("latin-1"), headers[f"{family}-host"]
    return GatewayQuestion(_original(scope, headers, method, path, query, host=host), dialect)


def dialect_of(scope: Scope) -> Dialect:
    """Read the dialect off the address. Raises `InvalidInput` for one that is not known."""
    pairs = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    dialect = pairs.get("dialect", "plain")
    if dialect not in _DIALECTS:
        raise InvalidInput(f"dialect: unknown value {dialect!r}; use one of {', '.join(map(repr, _DIALECTS))}")
    return cast(Dialect, dialect)


class _Fields:
    """The fields by name. Of one that comes twice the last counts, as gateways append theirs."""

    def __init__(self, scope: Scope) -> None:
        self._found: dict[bytes, bytes] = dict(scope["headers"])

    def __getitem__(self, name: str) -> str | None:
        value = self._found.get(name.encode())
        return None if value is None else value.decode("latin-1").strip()

    def __contains__(self, name: str) -> bool:
        return name.encode() in self._found


def _suffix(scope: Scope, prefix: str) -> str:
    raw: bytes | None = scope.get("raw_path")
    path = scope["path"] if raw is None else raw.partition(b"?")[0].decode("latin-1")
    root: str = scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return cast(str, path[len(prefix) :])


def _original(scope: Scope, headers: _Fields, method: str, raw_path: str, query: bytes, *, host: str | None) -> Scope:
    path, problem = _read_path_again(raw_path) if len(raw_path) <= _MAX_KNOWN_PATH else _read_path(raw_path)
    if problem:
        raise InvalidInput(problem)
    if not _METHOD.fullmatch(method):
        raise InvalidInput(f"{method[:40]!r} is no method")
    upgrades = scope["type"] == "websocket" or (headers["upgrade"] or "").lower() == "websocket"
    # Patterns take a handshake for a GET as well.
    method = WEBSOCKET if upgrades and method.upper() == "GET" else method.upper()
    fields = scope["headers"]
    if "connection" in headers:
        named = named_by_connection(fields)
        fields = [field for field in fields if field[0] not in named or field[0].startswith(b"x-forwarded-")]
    if host is not None:
        fields = [(name, value) for name, value in fields if name != b"host"]
        fields.append((b"host", host.encode("latin-1")))
    return {
        **scope,
        "type": "http",
        "method": method,
        "scheme": headers["x-forwarded-proto"] or "http",
        "root_path": "",
        "path": path,
        "raw_path": raw_path.encode("latin-1", "replace"),
        "query_string": query,
        "headers": fields,
    }


def _read_path(raw_path: str) -> tuple[str, str]:
    """Return a path, decoded, and what is wrong with it."""
    path = unquote(raw_path)
    if not path.startswith("/"):
        return path, f"the original path must start with /, not {path[:40]!r}"
    if (problem := ambiguity(path)) is not None:
        # Gateways and apps differ in what they make of it: a way around a pattern.
        return path, f"the original path {problem}, or let the gateway do so"
    return path, ""


_read_path_again = lru_cache(_KNOWN_PATHS)(_read_path)


class SurfaceArgs(TypedDict, total=False):
    """What `SurfaceOptions` is made of."""

    user_from: UserFrom | Iterable[UserFrom]
    trusted_proxies: TrustedProxies
    ipv6_prefix: int
    headers: HeaderStyle
    exempt: Exempt | Iterable[Exempt]
    max_body_bytes: int


class Authz:
    """An ASGI app that answers requests to `prefix` and below it, whatever their method; others are `fallback`'s.

    The other options are those of `RateLimitMiddleware`. The gateway is a proxy in front: `trusted_proxies` has to
    count it, or all clients share its address. The limiter is opened with the lifespan, or by the first request.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        usage: UsageLog | None = None,
        prefix: str = PREFIX,
        fallback: ASGIApp | None = None,
        **options: Unpack[SurfaceArgs],
    ) -> None:
        self.prefix = prefix
        self.middleware = RateLimitMiddleware(_Allowed(fallback), limiter=limiter, usage=usage, **options)
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
        answer = _Answer(scope, send)
        try:
            question = asked(scope, self.prefix)
        except InvalidInput as error:
            answer.dialect = dialect_or_plain(scope)
            await no_question(error)({**scope, "type": "http"}, receive, answer.send)
            return
        answer.dialect = question.dialect
        await self.middleware(question.scope, no_body, answer.send)


class _Allowed:
    """The app behind the middleware: everything that gets here may pass. The lifespan is the fallback's."""

    def __init__(self, fallback: ASGIApp | None) -> None:
        self._fallback = fallback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await (self._fallback or no_lifespan)(scope, receive, send)
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
    status = 429 if status == REDUCED else status
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
        if message["type"] == "http.response.start":
            await self._start(message["status"], message["headers"])
        else:
            body: bytes = message.get("body", b"")
            if self._reduced:
                body = reduced_body(body)
            await self._send({**message, "type": f"{self._kind}.body", "body": body if self._has_body else b""})

    async def _start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._reduced = status == REDUCED
        status, fields = for_gateway(status, headers, self.dialect)
        await self._send({"type": f"{self._kind}.start", "status": status, "headers": fields})


def dialect_or_plain(scope: Scope) -> Dialect:
    """Read the dialect off the address; plain where it says another one."""
    try:
        return dialect_of(scope)
    except InvalidInput:
        return "plain"


_not_found: Final = ProblemResponse(Problem(title="Not found", status=404, detail=f"Ask {PREFIX}."))
