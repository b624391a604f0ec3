"""`Proxy`: an ASGI app that passes every request on to one upstream, and settles what each has really cost."""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from ratelimit.http.addresses import TrustedProxies
from ratelimit.http.charges import Charge, give_back
from ratelimit.http.lifespan import join_lifespan, no_lifespan
from ratelimit.http.request_handler import RateLimitState
from ratelimit.quota import MAX_LIMIT
from ratelimit.server.exchange import Exchange, UpstreamRequest, timeouts
from ratelimit.server.headers import COST, RawHeader, RequestHeaders
from ratelimit.server.upstream import ProxySettings, Upstream, target_of
from ratelimit.server.websocket import UpstreamSocket, forward_websocket, not_elsewhere

logger = logging.getLogger("ratelimit.proxy")

# aiohttp would add these where the client has not sent them.
_NOT_OURS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_MAX_HEADER_BYTES: Final = 64 * 1024
_MAX_HEADERS: Final = 1000
# An answer that has no content, whatever its fields say (RFC 9110, 6.4.1); interim ones are aiohttp's to skip.
_EMPTY: Final = re.compile(rb"HTTP/1\.[01] (?:204|304)\b")
_FINAL: Final = re.compile(rb"HTTP/1\.[01] [2-5]")
_FRAMED: Final = re.compile(rb"\r\n(?:content-length:[ \t]*[1-9]|transfer-encoding:)", re.IGNORECASE)
_DIGITS: Final = len(str(MAX_LIMIT))


class Proxy:
    """Tell the upstream who the user is, and charge what it states. Place it behind `RequestIdMiddleware` and
    `RateLimitMiddleware`.

    `trusted_proxies` as in the middleware. Its connections open with the first request and close with the lifespan.
    """

    def __init__(
        self, upstream: Upstream | str, settings: ProxySettings | None = None, *, trusted_proxies: TrustedProxies = 0
    ) -> None:
        self.upstream = Upstream.parse(upstream) if isinstance(upstream, str) else upstream
        self.settings = settings or ProxySettings()
        self._headers = RequestHeaders(self.settings, self.upstream, trusted_proxies)
        self._timeouts = timeouts(self.settings)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await join_lifespan(no_lifespan, scope, receive, send, end=self.close)
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
        headers = self._headers.of(scope, await _user_of(scope))
        url = self.upstream.url(target_of(scope))
        on_answer = partial(settle_cost, scope)
        await Exchange(self._open(), self._timeouts, url, headers, scope, receive, send, on_answer).run()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self._headers.of(scope, await _user_of(scope))
        url = self.upstream.url(target_of(scope))
        await forward_websocket(self._open(), self.settings, url, headers, scope, receive, send)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=self._connector(),
                request_class=UpstreamRequest,
                ws_response_class=UpstreamSocket,
                middlewares=(not_elsewhere,),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                skip_auto_headers=_NOT_OURS,
                timeout=aiohttp.ClientTimeout(total=None, connect=self.settings.connect),
                max_line_size=_MAX_HEADER_BYTES,
                max_field_size=_MAX_HEADER_BYTES,
                max_headers=_MAX_HEADERS,
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
    """Drop content that an upstream sends where there is none, with the connection, which must not be used again.

    A body may end with the connection in whatever it answers, a refused handshake included.
    """

    _is_first = _is_head = False

    def set_response_params(self, *, skip_payload: bool = False, **options: Any) -> None:
        self._is_first, self._is_head = True, skip_payload
        super().set_response_params(skip_payload=skip_payload, **{**options, "read_until_eof": True})

    def data_received(self, data: bytes) -> None:
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
    """Return who it is to the middleware; None where there is no middleware."""
    state = RateLimitState.of(scope)
    return None if state is None else await state.identity.user_of(HTTPConnection(scope))


async def settle_cost(scope: Scope, raw: list[RawHeader], status: int) -> None:
    """Charge what the upstream states (`X-RateLimit-Cost: 17`) beyond what was taken, or give back what is less.

    It may exceed the quota. What the policy does not count with this status stays as it is, and is given back as ever.
    Never raises for a store.
    """
    stated = _stated(raw)
    state = RateLimitState.of(scope)
    if stated is None or state is None:
        return
    owing = [
        one for one in state.charges.spent if stated != one.decision.cost and one.counts(status < 400, status, raw)
    ]
    if owing:
        settling = asyncio.ensure_future(_settle(owing, stated))
        try:
            await asyncio.shield(settling)
        finally:
            # The client may leave meanwhile: what the request has spent is known before its end is settled.
            await asyncio.wait({settling})


async def _settle(owing: list[Charge], stated: int) -> None:
    for charge in owing:
        owed = stated - charge.decision.cost
        if owed > 0:
            await _charge(charge, owed, stated)
        else:
            await give_back(charge, -owed)


async def _charge(charge: Charge, owed: int, stated: int) -> None:
    name = charge.policy.name
    charged = await charge.limiter.charge(charge.user, name, owed)
    if charged.reason == "unavailable":
        logger.warning("%d units of %r were not charged: the store cannot be asked", owed, name)
        return
    at_us = charge.decision.at_us
    charge.decision = msgspec.structs.replace(charged, cost=stated, spent=stated, refunded=0, at_us=at_us)


def _stated(raw: list[RawHeader]) -> int | None:
    """Return the last cost that is stated. What is no whole number is logged, and charged as taken."""
    values = [value for name, value in raw if name.lower() == COST]
    if not values:
        return None
    text = values[-1].strip()
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) <= MAX_LIMIT:
        return int(text)
    logger.warning("the upstream states a cost of %r, which is not a whole number up to %d", text[:40], MAX_LIMIT)
    return None
