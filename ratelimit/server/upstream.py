"""Where requests go to (`Upstream`), and what may be set of the way there (`ProxySettings`), in seconds."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields
from typing import Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

from ratelimit.config import masked
from ratelimit.errors import ConfigError
from ratelimit.settings import http_url

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
        if self.ca_file:
            self.context()

    def context(self) -> ssl.SSLContext:
        """Return how an https upstream has to prove who it is. Raises `ConfigError` for a file without certificates."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except OSError as error:
            raise ConfigError("ca_file", f"cannot use {self.ca_file}: {error.strerror or error}") from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["http/1.1"])
        return context


_EXAMPLES: Final = "http://127.0.0.1:8000, https://app.internal or unix:/run/app.sock"


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
        parts = http_url(text.strip())
        if parts is None:
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

    @property
    def host(self) -> str:
        return urlsplit(f"//{self.authority}").hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(f"//{self.authority}").port or (443 if self.scheme == "https" else 80)

    def target(self, target: bytes) -> bytes:
        """Return a request's target there as the client wrote it: nothing is decoded, encoded anew or left out."""
        return target if target == b"*" or not self.prefix else self.prefix.encode() + target

    def __str__(self) -> str:
        return f"unix:{self.socket}" if self.socket else f"{self.scheme}://{self.authority}{self.prefix}"
