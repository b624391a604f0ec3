"""`Proxy`: the service in front of one upstream: every request is checked, and passed on by a `Forward`."""

from __future__ import annotations

from typing import Final

from ratelimit.factory import MiddlewareArgs
from ratelimit.http.lifespan import no_lifespan
from ratelimit.http.middleware import RateLimitMiddleware
from ratelimit.server.connection import ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.forward import Forward, Phase
from ratelimit.server.headers import RequestHeaders
from ratelimit.server.listener import Service
from ratelimit.server.pool import UpstreamPool
from ratelimit.server.request import Request
from ratelimit.server.upstream import ProxySettings, Upstream
from ratelimit.store.memory import MemoryStore

CONTINUE_S: Final = 1.0
"""An upstream that knows `Expect` says so by then; one that does not is waiting for the body."""


class Proxy(Service):
    """`args` are those of `RateLimitMiddleware`. Raises `ConfigError`.

    It tells the upstream who the user is, and charges what that states. Its connections open with the first request and
    close with `end`.
    """

    def __init__(self, upstream: Upstream | str, args: MiddlewareArgs, settings: ProxySettings | None = None) -> None:
        self.upstream = Upstream.parse(upstream) if isinstance(upstream, str) else upstream
        self.settings = settings or ProxySettings()
        middleware = RateLimitMiddleware(no_lifespan, **args)
        self.state = middleware._state
        self.lifespan = middleware._lifespan
        self.records = self.state.recorder is not None
        """Whether answers are complete only when a usage event is kept."""
        self.is_local = isinstance(args["limiter"].store, MemoryStore)
        """Whether checks are answered without waiting."""
        identifying = self.state.options.identifying
        self.headers = RequestHeaders(self.settings, self.upstream, args.get("trusted_proxies", 0), identifying)
        self.pool = UpstreamPool(self.upstream, self.settings)
        self.timeouts: dict[Phase, float] = {
            "connection": self.settings.connect,
            "continue": CONTINUE_S,
            "first byte": self.settings.first_byte,
            "upstream": self.settings.idle,
            "client": self.settings.idle,
        }

    async def start(self) -> None:
        """Open the limiter. Raises `StoreMisconfigured`; a store that cannot be reached is tried again later."""
        await self.lifespan.open()

    async def end(self) -> None:
        """Close the connections to the upstream, and the limiter when refunds under way have arrived."""
        await self.pool.close()
        await self.lifespan.close()

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        return Forward(connection, request, self)
