"""`Token`: who may ask, by a bearer token (RFC 6750); where there is none, whoever is on this machine.

Without one the listener is on loopback only, and yet within reach of every page that a browser on this machine shows.
So a request that a page of somebody else's sent is refused: it carries an `Origin`, or comes by a name that its author
has pointed here.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from ratelimit.config import check_token
from ratelimit.errors import within
from ratelimit.http.problems import Problem


class AuthFailure(Problem, frozen=True, kw_only=True):
    """Why somebody is not let in."""

    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """Return the fields that say so as well (RFC 9110, 11.6.1)."""
        return ((b"www-authenticate", b"Bearer"),) if self.status == 401 else ()


NO_TOKEN: Final = AuthFailure(
    title="Unauthorized", status=401, detail="A valid token is needed: Authorization: Bearer …"
)
FOREIGN: Final = AuthFailure(
    title="Forbidden",
    status=403,
    detail="Without a token this listener answers no pages of other sites: ask it by its address or as localhost, with "
    "no Origin, or configure a token.",
)


class Token:
    """Admits requests that carry this token, or `read_token` if they only read. Raises `ConfigError` for a weak one."""

    __slots__ = ("_expected", "_for_reading")

    def __init__(self, token: str | None, read_token: str | None = None) -> None:
        self._expected = _bearer(token)
        self._for_reading = _bearer(read_token)

    def __bool__(self) -> bool:
        return self._expected is not None

    def failure(self, headers: Iterable[tuple[bytes, bytes]], *, reads: bool = False) -> AuthFailure | None:
        """Return why a request is not let in; None where it is. The time that takes says nothing about the token."""
        if self._expected is None:
            foreign = (name == b"origin" or (name == b"host" and not _is_address(value)) for name, value in headers)
            return FOREIGN if any(foreign) else None
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            return NO_TOKEN
        scheme, _, value = given[0].partition(b" ")
        # The scheme's case does not count, and is no secret.
        if scheme.lower() != b"bearer":
            return NO_TOKEN
        accepted = [self._expected, *([self._for_reading] if reads and self._for_reading else [])]
        found = [hmac.compare_digest(b"Bearer " + value.strip(), each) for each in accepted]
        return None if any(found) else NO_TOKEN


def _bearer(token: str | None) -> bytes | None:
    with within("token"):
        checked = check_token(token)
    return None if checked is None else f"Bearer {checked}".encode()


_MAX_HOST: Final = 256
"""Bytes of a name with a port, and more."""


@lru_cache(256)
def _is_address(host: bytes) -> bool:
    if len(host) > _MAX_HOST:
        return False
    text = host.decode("latin-1")
    name = text.rpartition(":")[0] if text.isascii() and text.rpartition(":")[2].isdecimal() else text
    if name in ("", "localhost"):
        return True
    try:
        ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
