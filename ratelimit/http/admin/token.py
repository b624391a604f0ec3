"""`Token`: who may ask, by a bearer token (RFC 6750)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from typing import Final

from ratelimit.errors import ConfigError

MIN_LENGTH: Final = 16


class Token:
    """Admits requests that carry this token; all, where there is none. Raises `ConfigError` for a weak one."""

    __slots__ = ("_expected",)

    def __init__(self, token: str | None) -> None:
        if token is not None and (len(token) < MIN_LENGTH or not token.isascii() or not token.isprintable()):
            # Not quoted: it is a secret.
            raise ConfigError("token", f"expected at least {MIN_LENGTH} printable ASCII characters, as a secret should")
        self._expected = None if token is None else f"Bearer {token}".encode()

    def __bool__(self) -> bool:
        return self._expected is not None

    def admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """In a time that says nothing about the token."""
        if self._expected is None:
            return True
        given = [value for name, value in headers if name == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, value = given[0].partition(b" ")
        # The scheme's case does not count, and is no secret.
        return scheme.lower() == b"bearer" and hmac.compare_digest(b"Bearer " + value.strip(), self._expected)
