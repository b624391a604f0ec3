"""Where the user of a request comes from, in a configured order; the last resort is always the client's address.

    "user"              the authenticated `scope["user"]`: an object (of Starlette, Django, Litestar), claims, or a name
    "header:x-api-key"  a header, believed as it is: something in front should have checked it
    "cookie:session"    a cookie, likewise; not one that is a session itself and so changes from answer to answer
    "address"           the client's address (`ratelimit.http.addresses`)
    a function          of the `HTTPConnection`, sync or async, that returns a user, or None to ask the next source

A value that cannot be a user, or that poses as an address (`ip:…`) or as the hash of a user (`h:…`), does not count,
nor do values that differ under one name, of which an app may take another one than is counted here; the next source is
asked then, so nobody is unlimited, and the log says once which source has a value that cannot be a user. A function's
value is the app's own and is not second-guessed: what cannot be a user raises `InvalidUser`.

What an app takes for one value is one name here: credentials in whatever case and spacing of their scheme (RFC 9110,
11.4), a JWT however its signature is written, a cookie quoted or percent-encoded, text in UTF-8 or Latin-1, composed or
not (`check_user`).

All sources name users alike: the header's `alice` is the `alice` who logged in, and spends her quota. So a source is
believed no less than the others beside it: list none that is checked less, or mark its users by a function.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterable
from inspect import isawaitable
from typing import Any, Final, TypeAlias
from urllib.parse import unquote_to_bytes
from uuid import UUID

from starlette.requests import HTTPConnection, cookie_parser
from starlette.types import Scope

from ratelimit.errors import ConfigError, InvalidUser, nearest
from ratelimit.http.addresses import PREFIX, Addresses, warn_once
from ratelimit.names import HASH_PREFIX, MAX_USER_BYTES, check_user, is_hash
from ratelimit.policy import UserFrom

DEFAULT_USER_FROM: Final[tuple[UserFrom, ...]] = ("user", "address")

_Reader: TypeAlias = Callable[[Scope], str | None]
_SOURCES: Final = ("user", "header:", "cookie:", "address")
_POSING: Final = (PREFIX, HASH_PREFIX)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAMES: Final = (str, int, UUID)
_BEARER = re.compile(r"Bearer [\w~+/-]+", re.ASCII)
# Of which each request, or each connection, has another one (RFC 4559).
_TICKETS: Final = ("Negotiate", "Ntlm")
_JWT: Final = "eyJ"
_CREDENTIALS: Final = ("authorization", "proxy-authorization")
# What identifies somebody and stays comes before what they may change.
_NAMED_BY: Final = ("identity", "pk", "id", "sub", "user_id", "username", "email", "display_name", "name")
# A session that is kept in the cookie itself, signed with the time or encrypted anew with each answer.
_MIN_ROLLING_LENGTH: Final = 36
_ROLLING = re.compile(
    r"(?:eyJpdiI6|gAAAAA|Fe26\.2\*)"  # Laravel, Fernet, iron
    r"|.*[.:][\w-]{6,7}[.:][\w+/-]{27,86}\Z"  # itsdangerous (Starlette, Flask), Django
    r"|.*--[\w+/]{16}--[\w+/]{22}\Z",  # Rails
    re.ASCII,
)
# What most decoders of base64 pass over.
_NO_BASE64 = re.compile(r"[^\w.:*+/-]", re.ASCII)


class UserResolver:
    """Says who a request is from. Raises `ConfigError` with the path to a source that makes no sense."""

    __slots__ = ("_addresses", "_names", "_readers", "_sources", "headers", "is_plain", "lists_address")

    def __init__(self, user_from: UserFrom | Iterable[UserFrom], addresses: Addresses) -> None:
        self._addresses = addresses
        self._sources: list[tuple[_Reader | None, Callable[..., object] | None]] = []
        self._names: dict[_Reader, object] = {}
        listed = _listed(user_from)
        for number, source in enumerate(listed):
            if source == "address":
                # It always answers: what comes after it is never asked.
                break
            if callable(source):
                self._sources.append((None, source))
            else:
                reader = _reader(source, f"user_from[{number}]")
                self._sources.append((reader, None))
                self._names[reader] = source
        self.lists_address = "address" in listed
        """Whether the address was asked for, where nobody else is found."""
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
        """Return the user of a request, one that can be stored, where this `is_plain`."""
        for read in self._readers:
            if (user := read(scope)) is not None and (name := self._usable(user, read)) is not None:
                return name
        return self._addresses.of(scope)

    async def user_of(self, connection: HTTPConnection) -> str:
        """Return a user that can be stored. Raises `InvalidUser` where a function of the app returned another one."""
        return await self.named(connection) or self._addresses.of(connection.scope)

    async def named(self, connection: HTTPConnection) -> str | None:
        """Return the user that a source names, other than by the address; None where none does."""
        for read, function in self._sources:
            if read is not None:
                user = read(connection.scope)
                if user is not None and (name := self._usable(user, read)) is not None:
                    return name
            elif function is not None:
                answer = function(connection)
                if isawaitable(answer):
                    answer = await answer
                if answer is not None:
                    return check_user(answer)
        return None

    def _usable(self, user: str, read: _Reader) -> str | None:
        """Return its one name; None where it cannot be a user."""
        try:
            name = check_user(user)
        except InvalidUser:
            if user:
                warn_once(
                    f"a value of {self._names[read]!r} cannot be a user, who has at most {MAX_USER_BYTES} bytes and no "
                    "control characters: its clients are counted by the next source of user_from, in the end by their "
                    "address; use a function that makes a shorter name of it"
                )
            return None
        if name.startswith(_POSING) and (name.startswith(PREFIX) or is_hash(name)):
            return None
        return name


def _listed(user_from: object) -> list[object]:
    if isinstance(user_from, str) or callable(user_from):
        return [user_from]
    if not isinstance(user_from, Iterable):
        raise ConfigError("user_from", f"expected a list of sources, as in ['user', 'address'], not {user_from!r}")
    return list(user_from)


def _reader(source: object, path: str) -> _Reader:
    if source == "user":
        return lambda scope: name_of(scope.get("user"))
    kind, _, name = source.partition(":") if isinstance(source, str) else ("", "", "")
    if kind not in ("header", "cookie"):
        known = "use 'user', 'header:NAME', 'cookie:NAME', 'address' or a function"
        hint = nearest(kind or str(source), _SOURCES, known)
        raise ConfigError(path, f"unknown source {source!r}; {hint}")
    if not _TOKEN.fullmatch(name):
        example = "header:x-api-key" if kind == "header" else "cookie:session"
        raise ConfigError(path, f"{source!r} needs a name, as in {example!r}")
    return _header(name) if kind == "header" else _cookie(name)


def text(value: bytes) -> str:
    """Decode a field, in UTF-8 as clients and the rest of the world write it; else in Latin-1, as HTTP once did."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def named_by_connection(fields: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Return the names of fields that are for this hop only (RFC 9110, 7.6.1), and so no word of who is asking:
    whoever is behind does not see them."""
    values = [value for name, value in fields if name == b"connection"]
    if not values:
        return frozenset()
    return frozenset(token.strip().lower() for value in values for token in value.split(b","))


def _header(name: str) -> _Reader:
    wanted = name.lower().encode()
    has_scheme = name.lower() in _CREDENTIALS

    def read(scope: Scope) -> str | None:
        found: bytes | None = None
        for header, value in scope["headers"]:
            if header == wanted:
                if found is not None and found != value:
                    return None
                found = value
        if found is None:
            return None
        return _credentials(text(found)) if has_scheme else _spelled(text(found).strip())

    return read


def _credentials(value: str) -> str | None:
    """Return `Bearer TOKEN`, however it is spelled. None for what is made for one request and so no name: what has
    parameters (Digest, AWS4-HMAC-SHA256), and tickets (Negotiate, NTLM)."""
    if _BEARER.fullmatch(value):
        return value
    words = value.split()
    if len(words) == 1:
        return words[0]
    if len(words) != 2 or "," in words[1] or '"' in words[1]:
        return None
    scheme, token = words[0].capitalize(), words[1]
    if scheme in _TICKETS:
        return None
    try:
        token = b64encode(_bytes_of(token)).decode() if scheme == "Basic" else _token(token)
    except ValueError:
        return None
    return f"{scheme} {token}"


def _spelled(value: str) -> str | None:
    """Return a value as it is, but one of a token however that is spelled; None where it makes no sense as such."""
    if not value.startswith(_JWT):
        return value
    try:
        return _token(value)
    except ValueError:
        return None


def _token(token: str) -> str:
    """Return the one spelling of what somebody has signed or encrypted: what is not covered by that itself is base64,
    which can be written in several ways. Raises `ValueError`."""
    parts = token.split(".")
    if len(parts) == 3:  # a JWT
        covered = 2
    elif len(parts) == 5 and token.startswith(_JWT):  # an encrypted one
        covered = 1
    else:
        return token
    spelled = [urlsafe_b64encode(_bytes_of(part)).decode().rstrip("=") for part in parts[covered:]]
    return ".".join([*parts[:covered], *spelled])


def _bytes_of(base64: str) -> bytes:
    """Decode as those do who take least care. Raises `ValueError`."""
    return b64decode(base64.translate({ord("-"): "+", ord("_"): "/"}).rstrip("=") + "==")


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
        if found is None or found.startswith('"'):
            # Of a quoted one without its end some take off the last character, whatever it is.
            return None
        if "%" in found or not found.isascii():
            found = text(unquote_to_bytes(found.encode("latin-1")))
        if len(found) > _MIN_ROLLING_LENGTH and _ROLLING.match(_NO_BASE64.sub("", found)):
            warn_once(
                f"the cookie {name!r} is a session that changes from answer to answer, and no name: its clients are "
                "counted by the next source of user_from, in the end by their address; use 'user', or a function "
                "as in: lambda connection: connection.session.get('user_id')"
            )
            return None
        return _spelled(found)

    return read


def name_of(user: Any) -> str | None:
    """Return what names a user, as an app has them: an object, claims or a name; None where nothing does."""
    if user is None:
        return None
    claims = isinstance(user, dict)
    # Where there is no such flag (Litestar), whoever is not authenticated is None.
    if not claims and not getattr(user, "is_authenticated", True):
        return None
    for attribute in _NAMED_BY:
        try:
            value = user.get(attribute) if claims else getattr(user, attribute, None)
        except NotImplementedError:
            # Starlette's `BaseUser` says in this way that it has no identity.
            continue
        if value is not None and (name := _name(value)) is not None:
            return name
    if isinstance(user, _NAMES):
        return _name(user)
    warn_once(
        f"nothing in scope['user'], a {type(user).__name__}, says who it is: it is counted by the next source of "
        f"user_from; give it one of {', '.join(_NAMED_BY)}, or use a function"
    )
    return None


def _name(value: Any) -> str | None:
    """Return a text; None for what is another one in each process or request: a method, an object with its address."""
    if type(value) is str:
        return value or None
    if type(value) is int:
        return str(value)
    kind: Any = type(value)
    return None if kind.__str__ is object.__str__ else str(value)
