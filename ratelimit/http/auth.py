"""`Token`: who may ask, by a bearer token (RFC 6750); where there is none, whoever is on this machine.

Without one the listener is on loopback only, and yet within reach of every page that a browser on this machine shows.
So a request that a page of somebody else's sent is refused: it carries an `Origin`, or comes by a name that its author
has pointed here.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Final, NamedTuple

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.config import check_token
from ratelimit.errors import ConfigError
from ratelimit.http.problems import CONTENT_TYPE


class TurnedAway(NamedTuple):
    """Why somebody is not let in, as a problem."""

    status: int
    title: str
    detail: str
    headers: tuple[tuple[bytes, bytes], ...] = ()


NO_TOKEN: Final = TurnedAway(
    401,
    "Unauthorized",
    "A valid token is needed: Authorization: Bearer …",
    ((b"www-authenticate", b"Bearer"),),
)
FOREIGN: Final = TurnedAway(
    403,
    "Forbidden",
    "Without a token this listener answers no pages of other sites: ask it by its address or as localhost, with no "
    "Origin, or configure a token.",
)


class Token:
    """Admits requests that carry this token. Raises `ConfigError` for a weak one."""

    __slots__ = ("_expected",)

    def __init__(self, token: str | None) -> None:
        try:
            checked = check_token(token)
        except ConfigError as error:
            raise error.under("token") from None
        self._expected = None if checked is None else f"Bearer {checked}".encode()

    def __bool__(self) -> bool:
        return self._expected is not None

    def turns_away(self, headers: Iterable[tuple[bytes, bytes]]) -> TurnedAway | None:
        """Why a request is not let in; None where it is. In a time that says nothing about the token."""
        if self._expected is None:
            return FOREIGN if _is_foreign(headers) else None
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            return NO_TOKEN
        scheme, _, value = given[0].partition(b" ")
        # The scheme's case does not count, and is no secret.
        if scheme.lower() == b"bearer" and hmac.compare_digest(b"Bearer " + value.strip(), self._expected):
            return None
        return NO_TOKEN


def _is_foreign(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    return any(name == b"origin" or (name == b"host" and not _is_address(value)) for name, value in headers)


def _is_address(host: bytes) -> bool:
    text = host.decode("latin-1")
    name = text.rpartition(":")[0] if text.isascii() and text.rpartition(":")[2].isdecimal() else text
    if name in ("", "localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


# Answers of the admin listener: JSON that nobody keeps, and problem bodies (RFC 9457).

_encoder = msgspec.json.Encoder()


def answer(value: object, status: int = 200) -> Response:
    """As JSON."""
    return Response(_encoder.encode(value), status, {"cache-control": "no-store"}, "application/json")


def problem(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """What is wrong, and what would be right."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    fields = {"cache-control": "no-store", **(headers or {})}
    return Response(_encoder.encode(body), status, fields, CONTENT_TYPE.decode())


# `Door`: who gets in. Anybody to the health of the service; to the rest, whoever the token admits.

OPEN: Final = frozenset({"/health", "/health/live", "/health/ready"})


class Door:
    """Around an app. `token` is asked each time which one holds now."""

    def __init__(self, app: ASGIApp, token: Callable[[], Token]) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        guarded = scope["type"] == "http" and scope["path"] not in OPEN
        why = self._token().turns_away(scope["headers"]) if guarded else None
        if why is None:
            await self._app(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in why.headers}
        await problem(why.status, why.title, why.detail, headers)(scope, receive, send)
