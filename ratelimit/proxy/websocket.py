"""One websocket, message by message: accepted once the upstream has accepted, closed as it closes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType
from multidict import CIMultiDict
from starlette.types import Receive, Scope, Send
from yarl import URL

from ratelimit.proxy.failures import Failure, of_error, problem
from ratelimit.proxy.fields import Raw, response_fields
from ratelimit.proxy.settings import ProxySettings

_GONE: Final = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR})
_SENT_AS: Final = {WSMsgType.TEXT: "text", WSMsgType.BINARY: "bytes"}
# Those that stand for the absence of a code must not be sent (RFC 6455, 7.4.1).
_UNSENDABLE: Final = frozenset({1005, 1006, 1015})
# A peer that is gone without a word is found out by then.
_HEARTBEAT_S: Final = 30.0
_LEAVE_S: Final = 5.0

logger = logging.getLogger("ratelimit.proxy")


class UpstreamSocket(aiohttp.ClientWebSocketResponse):
    """aiohttp's own, which also tells the fields of the answer to the handshake."""

    def __init__(
        self, reader: Any, writer: Any, protocol: str | None, response: aiohttp.ClientResponse, *rest: Any, **more: Any
    ) -> None:
        super().__init__(reader, writer, protocol, response, *rest, **more)
        self.raw_headers: list[Raw] = list(response.raw_headers)


async def forward_websocket(
    session: aiohttp.ClientSession, settings: ProxySettings, url: URL, fields: CIMultiDict[str],
    scope: Scope, receive: Receive, send: Send,
) -> None:  # fmt: skip
    """Serve one handshake and what follows."""
    if (await receive())["type"] != "websocket.connect":
        return
    upstream = await _connect(session, settings, url, fields, scope, send)
    if upstream is None:
        return
    assert isinstance(upstream, UpstreamSocket)
    try:
        headers = response_fields(upstream.raw_headers, 101)
        await send({"type": "websocket.accept", "subprotocol": upstream.protocol, "headers": headers})
        await _both_ways(upstream, receive, send, settings.idle)
    finally:
        # aiohttp gives an upstream that long after each message, and some never stop.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await upstream.close()


async def _connect(
    session: aiohttp.ClientSession, settings: ProxySettings, url: URL, fields: CIMultiDict[str],
    scope: Scope, send: Send,
) -> aiohttp.ClientWebSocketResponse | None:  # fmt: skip
    try:
        async with asyncio.timeout(settings.connect + settings.first_byte):
            return await session.ws_connect(
                url,
                protocols=scope.get("subprotocols") or (),
                headers=fields,
                max_msg_size=settings.max_message,
                heartbeat=_HEARTBEAT_S,
                timeout=aiohttp.ClientWSTimeout(ws_close=_LEAVE_S),
            )
    except aiohttp.WSServerHandshakeError as error:
        failure = problem(error.status, "The handshake was refused", "The service behind this proxy refused it.")
    except (aiohttp.ClientError, OSError, ValueError) as error:
        failure = of_error(error, "first byte")
    await _refuse(failure, scope, send)
    return None


async def _refuse(failure: Failure, scope: Scope, send: Send) -> None:
    if not 400 <= failure.status < 600:
        failure = problem(502, "Bad Gateway", "The service behind this proxy does not speak WebSocket here.")
    logger.info("websocket: %d %s", failure.status, failure.title)
    await failure.send(scope, send)


async def _both_ways(upstream: aiohttp.ClientWebSocketResponse, receive: Receive, send: Send, patience: float) -> None:
    """Until one side leaves, or the client reads nothing for too long; then the other is told."""
    outward = _outward(upstream, send, patience)
    tasks = [asyncio.ensure_future(_inward(upstream, receive)), asyncio.ensure_future(outward)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception) and not isinstance(result, aiohttp.ClientError | OSError):
                raise result


async def _inward(upstream: aiohttp.ClientWebSocketResponse, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            code = message.get("code") or 1000
            reason = (message.get("reason") or "").encode()
            await upstream.close(code=1001 if code in _UNSENDABLE else code, message=reason)
            return
        if (text := message.get("text")) is not None:
            await upstream.send_str(text)
        else:
            await upstream.send_bytes(message["bytes"])


async def _outward(upstream: aiohttp.ClientWebSocketResponse, send: Send, patience: float) -> None:
    while (message := await upstream.receive()).type not in _GONE:
        if message.type in _SENT_AS:
            async with asyncio.timeout(patience):
                await send({"type": "websocket.send", _SENT_AS[message.type]: message.data})
    code = upstream.close_code
    reason = message.extra or "" if message.type is WSMsgType.CLOSE else ""
    # Without a closing handshake the upstream is simply gone, which is 1011 to a client: try elsewhere, or later.
    await send({
        "type": "websocket.close",
        "code": 1011 if code in (None, 1006, 1015) else (1000 if code == 1005 else code),
        "reason": str(reason),
    })  # fmt: skip
