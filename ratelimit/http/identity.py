"""Where the user of a request comes from, in a configured order; the last resort is always the client's address.

    "user"              the authenticated `scope["user"]` (Starlette's, or one like Django's)
    "header:x-api-key"  a header, believed as it is: something in front should have checked it
    "cookie:session"    a cookie, likewise
    "address"           the client's address (`ratelimit.http.addresses`)
    a function          of the `HTTPConnection`, sync or async, that returns a user, or None to ask the next source

A value that cannot be a user, or that poses as an address (`ip:…`) or as the hash of a user (`h:…`), does not count,
nor do values that differ under one name, of which an app may take another one than is counted here; the next source is
asked then, so nobody is unlimited. A function's value is the app's own and is not second-guessed: what cannot be a user
raises `InvalidUser`.

All sources name users alike: the header's `alice` is the `alice` who logged in, and spends her quota. So a source is
believed no less than the others beside it: list none that is checked less, or mark its users by a function.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from inspect import isawaitable
from typing import Final, TypeAlias

from starlette.requests import HTTPConnection, cookie_parser
from starlette.types import Scope

from ratelimit.errors import ConfigError, InvalidUser
from ratelimit.http.addresses import PREFIX, Addresses
from ratelimit.names import HASH_PREFIX, check_user, is_hash
from ratelimit.policy import UserFrom

DEFAULT_USER_FROM: Final[tuple[UserFrom, ...]] = ("user", "address")

_Reader: TypeAlias = Callable[[Scope], str | None]
_SOURCES: Final = ("user", "header:", "cookie:", "address")
_POSING: Final = (PREFIX, HASH_PREFIX)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Identity:
    """Says who a request is from. Raises `ConfigError` with the path to a source that makes no sense."""

    __slots__ = ("_addresses", "_readers", "_sources", "headers", "is_plain")

    def __init__(self, user_from: UserFrom | Iterable[UserFrom], addresses: Addresses) -> None:
        self._addresses = addresses
        self._sources: list[tuple[_Reader | None, Callable[..., object] | None]] = []
        listed = _listed(user_from)
        for number, source in enumerate(listed):
            if source == "address":
                # It always answers: what comes after it is never asked.
                break
            if callable(source):
                self._sources.append((None, source))
            else:
                self._sources.append((_reader(source, f"user_from[{number}]"), None))
        self.headers = frozenset(
            source.removeprefix("header:").lower().encode()
            for source in listed
            if isinstance(source, str) and source.startswith("header:")
        )
        """The names of those that may say who somebody is."""
        self._readers = [read for read, _ in self._sources if read is not None]
        self.is_plain = len(self._readers) == len(self._sources)
        """Whether no function has to be asked, so that `read` knows it all."""

    def read(self, scope: Scope) -> str:
        """The user of a request, one that can be stored, where this `is_plain`."""
        for read in self._readers:
            if (user := read(scope)) is not None and _usable(user):
                return user
        return self._addresses.of(scope)

    async def user_of(self, connection: HTTPConnection) -> str:
        """A user that can be stored. Raises `InvalidUser` where a function of the app returned one that cannot."""
        for read, function in self._sources:
            if read is not None:
                user = read(connection.scope)
                if user is not None and _usable(user):
                    return user
            elif function is not None:
                answer = function(connection)
                if isawaitable(answer):
                    answer = await answer
                if answer is not None:
                    return check_user(answer)
        return self._addresses.of(connection.scope)


def _listed(user_from: object) -> list[object]:
    if isinstance(user_from, str) or callable(user_from):
        return [user_from]
    if not isinstance(user_from, Iterable):
        raise ConfigError("user_from", f"expected a list of sources, as in ['user', 'address'], not {user_from!r}")
    return list(user_from)


def _reader(source: object, path: str) -> _Reader:
    if source == "user":
        return _authenticated
    kind, _, name = source.partition(":") if isinstance(source, str) else ("", "", "")
    if kind not in ("header", "cookie"):
        near = get_close_matches(kind or str(source), _SOURCES, n=1)
        known = "use 'user', 'header:NAME', 'cookie:NAME', 'address' or a function"
        hint = f"did you mean {near[0]!r}?" if near else known
        raise ConfigError(path, f"unknown source {source!r}; {hint}")
    if not _TOKEN.fullmatch(name):
        example = "header:x-api-key" if kind == "header" else "cookie:session"
        raise ConfigError(path, f"{source!r} needs a name, as in {example!r}")
    return _header(name) if kind == "header" else _cookie(name)


def _header(name: str) -> _Reader:
    wanted = name.lower().encode()

    def read(scope: Scope) -> str | None:
        found: bytes | None = None
        for header, value in scope["headers"]:
            if header == wanted:
                if found is not None and found != value:
                    return None
                found = value
        return None if found is None else found.decode("latin-1").strip()

    return read


def _cookie(name: str) -> _Reader:
    def read(scope: Scope) -> str | None:
        found: str | None = None
        for header, value in scope["headers"]:
            if header == b"cookie":
                for part in value.decode("latin-1").split(";"):
                    if part.partition("=")[0].strip() == name:
                        one = cookie_parser(part).get(name)
                        if found is not None and found != one:
                            return None
                        found = one
        return found

    return read


def _authenticated(scope: Scope) -> str | None:
    user = scope.get("user")
    if user is None or not getattr(user, "is_authenticated", False):
        return None
    for attribute in ("identity", "display_name", "pk"):
        try:
            value = getattr(user, attribute, None)
        except NotImplementedError:
            # Starlette's own `SimpleUser` has no identity and says so in this way.
            continue
        if value is not None and value != "":
            return str(value)
    return None


def _usable(user: str) -> bool:
    if user.startswith(_POSING) and (user.startswith(PREFIX) or is_hash(user)):
        return False
    try:
        check_user(user)
    except InvalidUser:
        return False
    return True
