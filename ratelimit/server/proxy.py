"""`Proxy`: an ASGI app that passes every request on to one upstream."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send
from yarl import URL

from ratelimit.http.addresses import TrustedProxies
from ratelimit.http.charges import Receipt
from ratelimit.http.lifespan import join_lifespan, no_lifespan
from ratelimit.http.recording import give_back
from ratelimit.http.request_handler import RateLimitState
from ratelimit.quota import MAX_LIMIT
from ratelimit.server.failures import Failure, Unreadable, of_error, said
from ratelimit.server.forwarded import Forwarding
from ratelimit.server.headers import COST, RawHeader, RequestFields, response_fields
from ratelimit.server.http_protocol import DISCONNECT_KEY, RequestBody, UpstreamRequest, expects_continue, has_body
from ratelimit.server.timeouts import ExchangeTimeout, Timeouts, timeouts
from ratelimit.server.upstream import ProxySettings, Upstream, target_of
from ratelimit.server.websocket import UpstreamSocket, forward_websocket, not_elsewhere

logger = logging.getLogger("ratelimit.proxy")


# One request to the upstream and its answer back, both in pieces, as fast as the slower side takes them.

OnAnswer: TypeAlias = "Callable[[list[RawHeader], int], Awaitable[None]]"

_ERRORS: Final = (aiohttp.ClientError, OSError, ValueError)
_AGAIN_S: Final = 0.1


class Exchange:
    """Serves one request. `on_answer` is awaited with the answer's own fields and status before anything is sent."""

    __slots__ = (
        "_fields",
        "_on_answer",
        "_receive",
        "_scope",
        "_send",
        "_session",
        "_started",
        "_timeout",
        "_upload",
        "_url",
        "_watch",
    )  # fmt: skip

    def __init__(
        self, session: aiohttp.ClientSession, timeouts: Timeouts, url: URL, fields: CIMultiDict[str],
        scope: Scope, receive: Receive, send: Send, on_answer: OnAnswer,
    ) -> None:  # fmt: skip
        self._session = session
        self._url = url
        self._fields = fields
        self._scope = scope
        self._receive = receive
        self._send = send
        self._on_answer = on_answer
        self._watch: asyncio.Task[None] | None = None
        self._timeout = ExchangeTimeout(timeouts, self._start_watch)
        self._upload = RequestBody(receive, self._timeout) if has_body(scope) else None
        self._started = False

    async def run(self) -> None:
        """An answer that breaks off is left incomplete: the server then closes the connection, and the client knows."""
        try:
            async with self._timeout:
                await self._exchange()
        except _ERRORS as error:
            if self._timeout.phase != "gone":
                await self._fail(error, of_error(error, self._timeout.phase))
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _exchange(self) -> None:
        answer = await self._ask()
        try:
            if not 100 <= answer.status < 600 or answer.status == 101:
                raise Unreadable(f"the upstream answered with status {answer.status}")
            await self._pass_on(answer)
        except BaseException:
            # Closed, not kept: what is left of this answer must not be read as the next one. And not when what is left
            # of the request has been read, which may be never.
            if answer.connection is not None and answer.connection.transport is not None:
                answer.connection.transport.abort()
            answer.close()
            raise
        finally:
            answer.release()

    async def _ask(self) -> aiohttp.ClientResponse:
        """A refused connection is tried once more, as nothing was sent. Beyond that aiohttp repeats idempotent
        requests, of which no part of a body was sent, where a kept connection was lost before the answer."""
        try:
            return await self._request()
        except aiohttp.ClientConnectorError as error:
            if not isinstance(error.os_error, ConnectionRefusedError):
                raise
        await asyncio.sleep(_AGAIN_S)
        return await self._request()

    async def _request(self) -> aiohttp.ClientResponse:
        if self._upload is None:
            self._timeout.wait_for("first byte")
        return await self._session.request(
            self._scope["method"],
            self._url,
            headers=self._fields,
            data=self._upload,
            allow_redirects=False,
            expect100=self._upload is not None and expects_continue(self._scope),
        )

    async def _pass_on(self, answer: aiohttp.ClientResponse) -> None:
        version = f"{answer.version.major}.{answer.version.minor}" if answer.version else "1.1"
        headers = response_fields(answer.raw_headers, answer.status, version)
        self._timeout.wait_for("client")
        await self._on_answer(list(answer.raw_headers), answer.status)
        self._started = True
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        content, more = answer.content, True
        while more:
            self._timeout.wait_for("upstream")
            piece = await content.readany()
            more = not content.at_eof()
            self._timeout.wait_for("client")
            if piece or not more:
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _fail(self, error: Exception, failure: Failure) -> None:
        if self._started:
            logger.warning("an answer broke off: %s", said(error))
            return
        logger.warning("%d %s: %s", failure.status, failure.title, said(error))
        await failure.send(self._scope, self._send)

    def _start_watch(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._watch_client())

    async def _watch_client(self) -> None:
        """Looks out for the client's leaving while something else is waited for, and ends the exchange then."""
        if self._upload is not None:
            # An upstream may answer and never read the rest of the request; meanwhile nobody else may `receive`.
            lost = self._scope.get(DISCONNECT_KEY, self._upload.finished)
            await asyncio.wait({self._upload.finished, lost}, return_when=asyncio.FIRST_COMPLETED)
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._timeout.wait_for("gone")


# `X-RateLimit-Cost: 17`: what a request has really cost, as only the upstream knows it.

_DIGITS: Final = len(str(MAX_LIMIT))


async def settle_cost(scope: Scope, raw: list[RawHeader], status: int) -> None:
    """Charge what the upstream states beyond what was taken, or give back what is less; it may exceed the quota.

    What the policy does not count with this status stays as it is, and is given back as ever. Never raises for a store.
    """
    stated = _stated(raw)
    state = RateLimitState.of(scope)
    if stated is None or state is None:
        return
    owing = [
        one for one in state.receipts.spent if stated != one.decision.cost and one.counts(status < 400, status, raw)
    ]
    if owing:
        settling = asyncio.ensure_future(_settle(owing, stated))
        try:
            await asyncio.shield(settling)
        finally:
            # The client may leave meanwhile: what the request has spent is known before its end is settled.
            await asyncio.wait({settling})


async def _settle(owing: list[Receipt], stated: int) -> None:
    for receipt in owing:
        owed = stated - receipt.decision.cost
        if owed > 0:
            await _charge(receipt, owed, stated)
        else:
            await give_back(receipt, -owed)


async def _charge(receipt: Receipt, owed: int, stated: int) -> None:
    name = receipt.policy.name
    charged = await receipt.limiter.charge(receipt.user, name, owed)
    if charged.reason == "unavailable":
        logger.warning("%d units of %r were not charged: the store cannot be asked", owed, name)
        return
    at_us = receipt.decision.at_us
    receipt.decision = msgspec.structs.replace(charged, cost=stated, spent=stated, refunded=0, at_us=at_us)


def _stated(raw: list[RawHeader]) -> int | None:
    """Where it is stated more than once, the last counts. What is no whole number is said so, and charged as taken."""
    values = [value for name, value in raw if name.lower() == COST]
    if not values:
        return None
    text = values[-1].strip()
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) <= MAX_LIMIT:
        return int(text)
    logger.warning("the upstream states a cost of %r, which is not a whole number up to %d", text[:40], MAX_LIMIT)
    return None


# aiohttp would add these where the client has not sent them.
_NOT_OURS: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_LONGEST_FIELD: Final = 64 * 1024
_MOST_FIELDS: Final = 1000
# An answer that has no content, whatever its fields say (RFC 9110, 6.4.1); interim ones are aiohttp's to skip.
_EMPTY: Final = re.compile(rb"HTTP/1\.[01] (?:204|304)\b")
_FINAL: Final = re.compile(rb"HTTP/1\.[01] [2-5]")
_FRAMED: Final = re.compile(rb"\r\n(?:content-length:[ \t]*[1-9]|transfer-encoding:)", re.IGNORECASE)


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
        self._fields = RequestFields(self.settings, self.upstream, Forwarding(trusted_proxies))
        self._timeouts = timeouts(self.settings)
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, or the lifespan."""
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
        fields = self._fields.of(scope, await _user_of(scope))
        url = self.upstream.url(target_of(scope))
        on_answer = partial(settle_cost, scope)
        await Exchange(self._open(), self._timeouts, url, fields, scope, receive, send, on_answer).run()

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        fields = self._fields.of(scope, await _user_of(scope))
        url = self.upstream.url(target_of(scope))
        await forward_websocket(self._open(), self.settings, url, fields, scope, receive, send)

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
