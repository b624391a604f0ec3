"""`ProxySettings`: what may be set of the proxy, checked once. Spans are seconds."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, fields
from typing import Final, Literal, TypeAlias

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
        """As aiohttp takes it. Raises `ConfigError` for a file that holds no certificates."""
        if not self.ca_file or not self.verify:
            return self.verify
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise ConfigError("ca_file", f"cannot use {self.ca_file}: {error.strerror or error}") from None
