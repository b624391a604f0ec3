"""Who looks at the page, and whether a request is the page's own.

With tokens, a session is a cookie that is signed with the token it was opened with: every worker can read it, nothing
is kept, and it ends where the token is exchanged. Behind an app's own login the cookie admits nobody, and only ties
the page's requests to the page.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from secrets import token_urlsafe
from typing import Final, Literal, NamedTuple, TypeAlias

from starlette.requests import Request

from ratelimit.clock import SECOND, Clock
from ratelimit.http.auth import Token
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from ratelimit.store import MemoryStore

Role: TypeAlias = Literal["operator", "reader"]

COOKIE: Final = "ratelimit_session"
CSRF_HEADER: Final = "x-csrf-token"
SESSION_S: Final = 12 * 3600
LOGIN_POLICY: Final = Policy("login", "10/minute")
"""Of each address, in each worker: what fails counts."""
_SIGNED: Final = re.compile(
    r"(?P<said>(?P<role>operator|reader)\.(?P<until>\d{1,12})\.[\w-]{22})\.(?P<mac>[0-9a-f]{64})"
)


class Viewer(NamedTuple):
    """Who looks. A `reader` sees everything, and changes nothing."""

    name: str
    role: Role = "operator"


Auth: TypeAlias = Callable[[Request], Viewer | Awaitable[Viewer | None] | None]
"""Says who sent a request; None for somebody who is not to see the page."""
Tokens: TypeAlias = Mapping[Role, str]


def anybody(request: Request) -> Viewer:
    """Admit whoever gets here: somebody in front has asked already."""
    return Viewer("operator")


class TokenLogin:
    """An `Auth` by the admin listener's tokens, as they are now; where there are none, by where one is."""

    def __init__(self, tokens: Callable[[], Tokens], clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock
        self._nobody = Token(None)
        self.limiter = Limiter(MemoryStore(), [LOGIN_POLICY], clock=clock)

    @property
    def is_needed(self) -> bool:
        return bool(self._tokens())

    def __call__(self, request: Request) -> Viewer | None:
        """Say who has this session."""
        tokens = self._tokens()
        if not tokens:
            host = [(name, value) for name, value in request.headers.raw if name == b"host"]
            return None if self._nobody.failure(host) else Viewer("operator")
        found = _SIGNED.fullmatch(request.cookies.get(COOKIE, ""))
        if found is None or int(found["until"]) * SECOND <= self._clock.now():
            return None
        role: Role = "operator" if found["role"] == "operator" else "reader"
        if role not in tokens or not hmac.compare_digest(_mac(tokens[role], found["said"]), found["mac"]):
            return None
        return Viewer(role, role)

    def role_of(self, given: str) -> Role | None:
        """Return the role of who has this token; None where it is none."""
        for role, token in self._tokens().items():
            if hmac.compare_digest(given.encode(), token.encode()):
                return role
        return None

    def cookie(self, role: Role) -> str:
        said = f"{role}.{self._clock.now() // SECOND + SESSION_S}.{token_urlsafe(16)}"
        return f"{said}.{_mac(self._tokens()[role], said)}"


def tokens_of(operator: str | None, reader: str | None) -> Tokens:
    """Return the tokens that there are, by role."""
    given: dict[Role, str | None] = {"operator": operator, "reader": reader}
    return {role: token for role, token in given.items() if token is not None}


def csrf_token(cookie: str) -> str:
    """Return what the page sends along with each change: only who may read the session's answers knows it."""
    return _mac(cookie, "csrf")


def refusal(request: Request) -> str | None:
    """Return why a request that changes something is not the page's own; None where it is."""
    if (other := foreign_site(request)) is not None:
        return other
    if "origin" not in request.headers and "sec-fetch-site" not in request.headers:
        return "no Origin: a browser sends one"
    cookie, given = request.cookies.get(COOKIE, ""), request.headers.get(CSRF_HEADER, "")
    if not cookie or not hmac.compare_digest(given.encode(), csrf_token(cookie).encode()):
        return "the CSRF token is missing, or of another session"
    return None


def foreign_site(request: Request) -> str | None:
    """Return that a page of another site sent a request; None where none did.

    What the browser itself says (Fetch Metadata) goes before a comparison of hosts, which a proxy may have changed.
    """
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site is not None:
        return None if site in ("same-origin", "none") else f"sent by a page of another site ({site})"
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        return "sent by a page of another origin"
    return None


def _mac(key: str, said: str) -> str:
    return hmac.new(key.encode(), b"ratelimit dashboard: " + said.encode(), "sha256").hexdigest()
