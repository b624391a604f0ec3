"""`Token`: who may ask, by a bearer token (RFC 6750)."""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from ratelimit.config import check_token
from ratelimit.errors import ConfigError


class Token:
    """Admits requests that carry this token; all, where there is none. Raises `ConfigError` for a weak one."""

    __slots__ = ("_expected",)

    def __init__(self, token: str | None) -> None:
        try:
            checked = check_token(token)
        except ConfigError as error:
            raise error.under("token") from None
        self._expected = None if checked is None else f"Bearer {checked}".encode()

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
