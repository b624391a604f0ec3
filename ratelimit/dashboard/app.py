"""`Dashboard`: the page as an ASGI app: its files, its sessions, and below `v1/` the native API for whoever is let in.

The page has no data of its own: it asks for the live data, the native API and, where there is one, the admin listener's
routes below `admin/`. What changes something there is the operator's alone, has to come from the page itself, and is
logged; once done, the usage log has an event of it: the user's whom it concerns, which goes where the user is erased;
what concerns none (a plan, a reload, an erasure that is done) is kept under the name of the action itself.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from secrets import token_urlsafe
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.clock import SECOND
from ratelimit.dashboard.session import (
    COOKIE,
    SESSION_S,
    Auth,
    TokenLogin,
    Viewer,
    anybody,
    csrf_token,
    foreign_site,
    refusal,
)
from ratelimit.directory import Directory
from ratelimit.errors import RateLimitError
from ratelimit.http.addresses import Addresses
from ratelimit.http.api import Api
from ratelimit.http.api.app import UNEXPECTED, decode_body, headers_of, raw_path, read_body, without_user
from ratelimit.http.api.operation import package_version
from ratelimit.http.auth import FOREIGN
from ratelimit.http.lifespan import no_lifespan
from ratelimit.http.problems import Problem, ProblemError, ProblemResponse, answer_of, json_response
from ratelimit.limiter import Limiter
from ratelimit.live import AppLive
from ratelimit.usage import UsageLog

logger = logging.getLogger("ratelimit.dashboard")

_TYPES: Final = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_SAFE: Final = (
    (b"content-security-policy", CSP.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
# What the API needs of a request: neither the session, nor where it came from.
_PASSED_ON: Final = (b"content-type", b"content-length", b"idempotency-key")
_PEEK: Final = "/v1/peek"
"""Asked by POST, and changes nothing."""


AUDIT_ACTION: Final = "ratelimit.admin"
# Of what a change says, these are who it concerns, or who that is to others.
_UNSAID: Final = frozenset({"identities", "user", "actions", "quick", "decision", "checks"})
_NAMED: Final = re.compile(r"/v1/(?P<kind>users|plans)/(?P<name>[^/]+)(?P<verb>/[a-z]+)?")


Live: TypeAlias = Callable[[], Awaitable[Mapping[str, object]]]


class Parts(NamedTuple):
    """What the page is about."""

    api: Api
    limiter: Limiter
    usage: UsageLog | None


class LoginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who wants to be let in."""

    token: str


class Dashboard:
    """`parts` is asked with each request what is at work now, `live` for the live data; `admin` answers what else the
    page may ask, and `proxies` are the networks of those in front that say whom they stand for."""

    def __init__(
        self,
        parts: Callable[[], Parts],
        auth: Auth,
        live: Live,
        admin: ASGIApp | None = None,
        proxies: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._parts = parts
        self._auth = auth
        self._live = live
        self._admin = admin
        self._proxies = proxies
        folder = files("ratelimit.dashboard") / "static"
        self._files = {f"/{file.name}": file.read_bytes() for file in folder.iterdir()}
        self._files["/"] = self._files.pop("/index.html")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await no_lifespan(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1000, "reason": ""})
        else:
            await self._answer(Request(scope, receive), receive, _hardened(send))

    async def _answer(self, request: Request, receive: Receive, send: Send) -> None:
        path = raw_path(request.scope)
        try:
            if path in self._files:
                answer: ASGIApp = self._file(path, request)
            elif path == "/session":
                answer = await self._session(request)
            else:
                answer = await self._data(request, path)
        except ProblemError as error:
            answer = ProblemResponse(error.problem, ((b"cache-control", b"no-store"), *error.headers))
        await answer(request.scope, receive, send)

    def _file(self, path: str, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise _refused(405, "Method not allowed", "There is only GET here", (b"allow", b"GET, HEAD"))
        kind = _TYPES.get(PurePosixPath(path).suffix, "text/html")
        return Response(self._files[path], headers={"cache-control": "no-cache"}, media_type=kind)

    def _address(self, request: Request) -> str:
        return Addresses(self._proxies()).of(request.scope)

    # Sessions.

    async def _session(self, request: Request) -> Response:
        if request.method in ("GET", "HEAD"):
            if isinstance(self._auth, TokenLogin) and self._auth.is_needed and self._auth(request) is None:
                return json_response({"login": True, "role": None})
            viewer = await self._viewer(request)
            cookie = request.cookies.get(COOKIE)
            return self._opened(request, viewer, cookie or token_urlsafe(16), is_new=not cookie)
        if request.method not in ("POST", "DELETE"):
            allow = b"GET, HEAD, POST, DELETE"
            raise _refused(405, "Method not allowed", "A session takes GET, POST and DELETE", (b"allow", allow))
        if (why := foreign_site(request)) is not None:
            raise self._refuse(request, 403, why)
        if request.method == "DELETE":
            answer = Response(status_code=204, headers={"cache-control": "no-store"})
            answer.delete_cookie(COOKIE, path=None, httponly=True, samesite="strict")  # type: ignore[arg-type]
            return answer
        return await self._log_in(request)

    async def _log_in(self, request: Request) -> Response:
        if not isinstance(self._auth, TokenLogin):
            raise _refused(404, "Not found", "No token is asked for here")
        decision = await self._auth.limiter.check(self._address(request), "login")
        if not decision.allowed:
            wait = b"%d" % (1 + int(decision.retry_after or 0))
            raise self._refuse(request, 429, "too many attempts to log in; wait a minute", (b"retry-after", wait))
        body = decode_body(LoginBody, await read_body(request.scope, request.receive))
        role = self._auth.role_of(body.token)
        if role is None:
            raise self._refuse(request, 401, "this is not the token")
        await self._auth.limiter.refund(decision)
        logger.info("logged in from %s, as %s", self._address(request), role)
        return self._opened(request, Viewer(role, role), self._auth.cookie(role), is_new=True)

    def _opened(self, request: Request, viewer: Viewer, cookie: str, *, is_new: bool) -> Response:
        parts = self._parts()
        document = {
            "name": viewer.name,
            "role": viewer.role,
            "csrf": csrf_token(cookie),
            "login": isinstance(self._auth, TokenLogin) and self._auth.is_needed,
            "now": parts.limiter.clock.now() / SECOND,
            "version": package_version(),
            "has": {
                "admin": self._admin is not None,
                "directory": parts.limiter.directory is not None,
                "usage": parts.usage is not None,
            },
        }
        answer = json_response(document)
        if is_new:
            # No path is said: it is the page's own, as the browser sees it, whatever stands in front.
            secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
            answer.set_cookie(
                COOKIE, cookie, max_age=SESSION_S, path=None, secure=secure, httponly=True, samesite="strict"
            )  # fmt: skip
        return answer

    async def _viewer(self, request: Request) -> Viewer:
        found = self._auth(request)
        viewer = await found if inspect.isawaitable(found) else found
        if viewer is not None:
            return viewer
        if isinstance(self._auth, TokenLogin) and not self._auth.is_needed:
            raise ProblemError(FOREIGN)
        raise _refused(401, "Unauthorized", "Log in first")

    # Data, and what changes it.

    async def _data(self, request: Request, path: str) -> ASGIApp:
        looks = request.method in ("GET", "HEAD")
        if looks and (why := foreign_site(request)) is not None:
            raise self._refuse(request, 403, why)
        try:
            viewer = await self._viewer(request)
        except ProblemError as error:
            raise error if looks else self._refuse(request, error.problem.status, "nobody is logged in") from None
        if not looks and (why := refusal(request)) is not None:
            raise self._refuse(request, 403, why)
        changes = not looks and path != _PEEK
        if changes and viewer.role != "operator":
            raise self._refuse(request, 403, f"{viewer.name} may look, and change nothing")
        body = b"" if looks else await _body(request)
        if path == "/live" and looks:
            answer = json_response(await self._live())
        elif path.startswith("/v1/"):
            answer = await self._ask_api(request, path, body)
        elif path.startswith("/admin/") and self._admin is not None:
            answer = await answer_of(self._admin, _scope(request, path.removeprefix("/admin")), body)
        else:
            raise _refused(404, "Not found", "There are the page, session, live, v1/ and admin/")
        if changes:
            await _keep(self._parts().usage, viewer, request.method, path, body, answer.status_code)
        return answer

    async def _ask_api(self, request: Request, path: str, body: bytes) -> Response:
        async def read() -> bytes:
            return body

        scope = _scope(request, path)
        try:
            found = await self._parts().api.answer(scope, read)
        except Exception:
            logger.exception("the API failed with a request of the page")
            found = UNEXPECTED
        answer = Response(found.body, found.status)
        answer.raw_headers = headers_of(found)
        return answer

    def _refuse(self, request: Request, status: int, why: str, *headers: tuple[bytes, bytes]) -> ProblemError:
        """Log that something is refused, and return what to raise."""
        path = without_user(raw_path(request.scope))
        logger.warning("refused %s %s from %s: %s", request.method, path, self._address(request), why)
        return _refused(status, "Refused", why[:1].upper() + why[1:], *headers)


def dashboard(
    limiter: Limiter, *, usage: UsageLog | None = None, directory: Directory | None = None, auth: Auth | Literal["none"]
) -> Dashboard:
    """Return the page as an ASGI app to be mounted: `app.mount("/limits", dashboard(limiter, auth=…))`.

    `auth` is called with each request (a Starlette `Request`), and says who sent it: a `Viewer`, or None for somebody
    who is not to see the page; it may be a coroutine function. `"none"` admits everybody who gets to the app, as an
    operator: for where something in front has asked. `usage` and `directory` are those of the limiter. What the page
    shows of the last minutes is of this process: make it beside the limiter, as it counts the checks from then on.
    """
    if directory is None and isinstance(limiter.directory, Directory):
        directory = limiter.directory
    parts = Parts(Api(limiter, limiter.store, usage=usage, directory=directory), limiter, usage)  # type: ignore[arg-type]
    return Dashboard(lambda: parts, anybody if auth == "none" else auth, AppLive(limiter, usage))


def _hardened(send: Send) -> Send:
    async def send_hardened(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_SAFE]}
        await send(message)

    return send_hardened


async def _body(request: Request) -> bytes:
    """Read it; what has none need not say that it is JSON."""
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return b""
    return await read_body(request.scope, request.receive)


def _scope(request: Request, path: str) -> Scope:
    headers = [(name, value) for name, value in request.headers.raw if name in _PASSED_ON]
    return {**request.scope, "headers": headers, "path": path, "raw_path": path.encode("latin-1"), "root_path": ""}


def _refused(status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> ProblemError:
    return ProblemError(Problem(title=title, status=status, detail=detail), headers)


# What was changed.


async def _keep(usage: UsageLog | None, viewer: Viewer, method: str, path: str, body: bytes, status: int) -> None:
    """Log what was changed, or was to be; and have the usage log keep what was."""
    logger.info("%s (%s) %s %s: %d", viewer.name, viewer.role, method, without_user(path), status)
    if usage is None or status >= 400:
        return
    user, metadata = _event(method, path, _said(body))
    metadata = {"who": viewer.name, "role": viewer.role, **metadata}
    try:
        await usage.record(user, AUDIT_ACTION, cost=0, status=status, metadata=metadata)
    except RateLimitError as error:
        logger.error("the usage log did not keep that %s did %s: %s", viewer.name, metadata["what"], error)


def _event(method: str, path: str, said: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    found = _NAMED.fullmatch(path)
    if found is None:
        user, metadata = said.get("user"), {"what": f"{method} {path}"}
    elif found["kind"] == "plans":
        user, metadata = None, {"what": f"{method} /v1/plans", "plan": unquote(found["name"])}
    else:
        # Who was erased leaves no trace here either.
        user = None if found["verb"] == "/erase" else unquote(found["name"])
        metadata = {"what": f"{method} {without_user(path)}"}
    values = {name: value for name, value in said.items() if name not in _UNSAID}
    return AUDIT_ACTION if user is None else str(user), {**metadata, **({"set": values} if values else {})}


def _said(body: bytes) -> Mapping[str, Any]:
    try:
        said = msgspec.json.decode(body) if body else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}
