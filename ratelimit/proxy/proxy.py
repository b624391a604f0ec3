"""`Proxy`: an ASGI app that passes every request on to one upstream."""

from __future__ import annotations

from functools import partial
from typing import Final

import aiohttp
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from ratelimit.http.addresses import TrustedProxies
from ratelimit.http.state import RateLimitState
from ratelimit.proxy.cost import settle_cost
from ratelimit.proxy.fields import RequestFields
from ratelimit.proxy.forward import Forward
from ratelimit.proxy.forwarded import Forwarding
from ratelimit.proxy.patience import spans
from ratelimit.proxy.settings import ProxySettings
from ratelimit.proxy.upload import PatientRequest
from ratelimit.proxy.upstream import Upstream
from ratelimit.proxy.websocket import UpstreamSocket, forward_websocket

# aiohttp would add these where the client has not sent them.
_NOT_OURS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_LONGEST_FIELD: Final = 64 * 1024
_MOST_FIELDS: Final = 1000


class Proxy:
    """Place it behind `Front` and `RateLimitMiddleware`: it tells the upstream who the user is, and charges what that
    states.

    `trusted_proxies` as in the middleware. Its connections open with the first request and close with the lifespan.
    """

    def __init__(
        self, upstream: Upstream | str, settings: ProxySettings | None = None, *, trusted_proxies: TrustedProxies = 0
    ) -> None:
        self.upstream = Upstream.parse(upstream) if isinstance(upstream, str) else upstream
        self.settings = settings or ProxySettings()
        self._fields = RequestFields(self.settings, self.upstream, Forwarding(trusted_proxies))
        self._spans = spans(self.settings)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(receive, send)
        elif kind == "http":
            await self._http(scope, receive, send)
        elif kind == "websocket":
            await self._websocket(scope, receive, send)

    async def close(self) -> None:
        """Let go of the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = self._fields.of(scope, await _user_of(scope))
        url = self.upstream.url(scope["raw_path"], scope["query_string"])
        on_answer = partial(settle_cost, scope)
        await Forward(self._open(), self._spans, url, fields, scope, receive, send, on_answer).run()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = self._fields.of(scope, await _user_of(scope))
        url = self.upstream.url(scope["raw_path"], scope["query_string"])
        await forward_websocket(self._open(), self.settings, url, fields, scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                request_class=PatientRequest,
                ws_response_class=UpstreamSocket,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=_NOT_OURS,
                timeout=aiohttp.ClientTimeout(total=None, connect=self.settings.connect),
                max_line_size=_LONGEST_FIELD,
                max_field_size=_LONGEST_FIELD,
                max_headers=_MOST_FIELDS,
            )
        return self._session

    def _connector(self) -> aiohttp.BaseConnector:
        limit, keep_alive = self.settings.max_connections, self.settings.keep_alive
        if self.upstream.socket is not None:
            return aiohttp.UnixConnector(self.upstream.socket, limit=limit, keepalive_timeout=keep_alive)
        return aiohttp.TCPConnector(ssl=self.settings.tls(), limit=limit, keepalive_timeout=keep_alive)


async def _user_of(scope: Scope) -> str | None:
    """As the middleware's surface sees it; None where there is no middleware."""
    state = RateLimitState.of(scope)
    return None if state is None else await state.identity.user_of(HTTPConnection(scope))
