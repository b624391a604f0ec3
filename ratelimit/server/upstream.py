"""Where requests go to (`Upstream`), and what may be set of the way there (`ProxySettings`), in seconds."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import quote, urlsplit

from starlette.types import Scope
from yarl import URL

from ratelimit.config import masked
from ratelimit.errors import ConfigError

HostFrom: TypeAlias = Literal["client", "upstream"]

STRIPPED: Final = ("x-ratelimit-user", "x-ratelimit-cost")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySettings:
    """Raises `ConfigError` for what cannot be. Values are plain, so that it can be handed to worker processes."""

    connect: float = 5.0
    """For a connection to the upstream, a free place in the pool included."""
    first_byte: float = 60.0
    """From the last byte of the request to the first of the answer."""
    idle: float = 300.0
    """Between two pieces of a body, in either direction, before the side that owes the next one is given up."""
    keep_alive: float = 4.0
    """How long a connection is kept for the next request: less than servers keep theirs (uvicorn, node: 5)."""
    max_connections: int = 2000
    """To the upstream, at once; websockets count."""
    max_message: int = 16 * 2**20
    """Bytes of one websocket message: they are held whole."""
    host: HostFrom = "client"
    """Whose name the `Host` field has on the way to the upstream."""
    identify_as: str = "X-RateLimit-User"
    """The field in which the upstream is told the user; empty for none."""
    strip: tuple[str, ...] = STRIPPED
    """Fields that are believed further in, and so are never let in from a client."""
    verify: bool = True
    """Whether an https upstream has to prove who it is."""
    ca_file: str = ""
    """A file with the certificates that it may prove it by, instead of the system's."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ConfigError(field.name, f"must be more than 0, not {value!r}")
        if self.host not in ("client", "upstream"):
            raise ConfigError("host", f"must be 'client' or 'upstream', not {self.host!r}")
        self.tls()

    def tls(self) -> ssl.SSLContext | bool:
        """Return it as aiohttp takes it. Raises `ConfigError` for a file that holds no certificates."""
        if not self.ca_file or not self.verify:
            return self.verify
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError("ca_file", f"cannot use {self.ca_file}: {error.strerror or error}") from None


_EXAMPLES: Final = "http://127.0.0.1:8000, https://app.internal or unix:/run/app.sock"
# What may stand in a path or query on the wire (RFC 3986), `%` included: the client's own encoding is left alone.
_SAFE: Final = "/%:@!$&'()*+,;=-._~?[]|^{}\"`\\<>"

TARGET_KEY: Final = "ratelimit.target"
"""In a scope: the target in origin-form, byte by byte, or `*`. A scope's query does not tell `/x?` from `/x`."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """An origin, the path in front of every request's own, and the socket where it is a unix one."""

    scheme: str
    authority: str
    prefix: str
    socket: str | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `http://HOST:PORT/PREFIX`, `https://…` or `unix:/PATH`. Raises `ConfigError`."""
        kind, _, rest = text.strip().partition(":")
        if kind == "unix":
            return cls._unix(rest)
        try:
            parts = urlsplit(text.strip())
            port_is_fine = parts.port is None or parts.port > 0
        except ValueError:  # which quotes a part of it: of a password, perhaps
            raise ConfigError("upstream", f"{masked(text)!r} is not a URL; write it as {_EXAMPLES}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_fine:
            raise ConfigError("upstream", f"expected a URL such as {_EXAMPLES}, not {masked(text)!r}")
        if parts.query or parts.fragment:
            raise ConfigError("upstream", "a query or a fragment makes no sense here: each request has its own")
        if parts.username is not None or "@" in parts.path:  # behind a slash it may still be a password's end
            raise ConfigError("upstream", "credentials in the URL are not used; the upstream's clients send their own")
        return cls(parts.scheme, parts.netloc, parts.path.rstrip("/"), None)

    @classmethod
    def _unix(cls, rest: str) -> Self:
        path = rest.removeprefix("//")
        if not path.startswith("/"):
            raise ConfigError("upstream", f"expected the path of a socket, as in unix:/run/app.sock, not {rest!r}")
        return cls("http", "localhost", "", path)

    def url(self, target: bytes) -> URL:
        """Return that of a request's target as the client wrote it: nothing is decoded, encoded anew or left out.

        All of it is the URL's path, since an empty query would be none.
        """
        text = quote(target.decode("latin-1"), safe=_SAFE)
        path = text if text == "*" else self.prefix + text
        return URL.build(scheme=self.scheme, authority=self.authority, path=path, encoded=True)

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else f"{self.scheme}://{self.authority}{self.prefix}"


def target_of(scope: Scope) -> bytes:
    """Return it as the client wrote it, where the server tells."""
    if (target := scope.get(TARGET_KEY)) is not None:
        return bytes(target)
    path: bytes = scope["raw_path"]
    return path + b"?" + scope["query_string"] if scope["query_string"] else path
