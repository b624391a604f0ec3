"""`Proxy`: an ASGI app that passes every request on to one upstream."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler
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
from ratelimit.proxy.upstream import Upstream, target_of
from ratelimit.proxy.websocket import UpstreamSocket, forward_websocket, not_elsewhere

# aiohttp would add these where the client has not sent them.
_NOT_OURS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_LONGEST_FIELD: Final = 64 * 1024
_MOST_FIELDS: Final = 1000
# An answer that has no content, whatever its fields say (RFC 9110, 6.4.1); interim ones are aiohttp's to skip.
_EMPTY: Final = re.compile(rb"HTTP/1\.[01] (?:204|304)\b")
_FINAL: Final = re.compile(rb"HTTP/1\.[01] [2-5]")
_FRAMED: Final = re.compile(rb"\r\n(?:content-length:[ \t]*[1-9]|transfer-encoding:)", re.IGNORECASE)


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
        url = self.upstream.url(target_of(scope))
        on_answer = partial(settle_cost, scope)
        await Forward(self._open(), self._spans, url, fields, scope, receive, send, on_answer).run()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = self._fields.of(scope, await _user_of(scope))
        url = self.upstream.url(target_of(scope))
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
                middlewares=(not_elsewhere,),
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
        connector: aiohttp.BaseConnector
        if self.upstream.socket is not None:
            connector = aiohttp.UnixConnector(self.upstream.socket, limit=limit, keepalive_timeout=keep_alive)
        else:
            connector = aiohttp.TCPConnector(ssl=self.settings.tls(), limit=limit, keepalive_timeout=keep_alive)
        connector._factory = partial(UpstreamConnection, asyncio.get_running_loop())  # type: ignore[assignment]
        return connector


class UpstreamConnection(ResponseHandler):
    """aiohttp's own, for upstreams that send content where there is none: it is dropped with the connection, which
    must not be used again. A body may end with the connection in whatever it answers, a refused handshake included."""

    _is_first = _is_head = False

    def set_response_params(self, *, skip_payload: bool = False, **options: Any) -> None:
        """See aiohttp; called before each request."""
        self._is_first, self._is_head = True, skip_payload
        super().set_response_params(skip_payload=skip_payload, **{**options, "read_until_eof": True})

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_first:
            self._is_first = False
            if _EMPTY.match(data) or (self._is_head and _FINAL.match(data)):
                data = self._head_of(data)
        super().data_received(data)

    def _head_of(self, data: bytes) -> bytes:
        head, end, content = data.partition(b"\r\n\r\n")
        if content or (not self._is_head and data[9:12] == b"204" and _FRAMED.search(head)):
            self.force_close()
        return head + end


async def _user_of(scope: Scope) -> str | None:
    """As the middleware's surface sees it; None where there is no middleware."""
    state = RateLimitState.of(scope)
    return None if state is None else await state.identity.user_of(HTTPConnection(scope))
