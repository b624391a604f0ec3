"""One websocket, message by message: accepted once the upstream has accepted, closed as it closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import aiohttp
from aiohttp import WSMsgType
from multidict import CIMultiDict
from starlette.types import Receive, Scope, Send
from yarl import URL

from ratelimit.server.exchange import describe, upstream_problem
from ratelimit.server.headers import InvalidResponse, RawHeader, response_headers
from ratelimit.server.problems import NO_WEBSOCKET
from ratelimit.server.upstream import ProxySettings

logger = logging.getLogger("ratelimit.proxy")

_GONE: Final = frozenset({WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR})
_SENT_AS: Final = {WSMsgType.TEXT: "text", WSMsgType.BINARY: "bytes"}
# Those that stand for the absence of a code must not be sent (RFC 6455, 7.4.1).
_UNSENDABLE: Final = frozenset({1005, 1006, 1015})
# A peer that is gone without a word is found out by then.
_HEARTBEAT_S: Final = 30.0
_LEAVE_S: Final = 5.0


class NotAccepted(Exception):
    """The upstream has answered a handshake as an ordinary request. The answer is still to be read."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        super().__init__(answer.status)
        self.answer = answer


async def not_elsewhere(
    request: aiohttp.ClientRequest, send: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
) -> aiohttp.ClientResponse:
    """For a session's `middlewares`. aiohttp follows the redirect of a handshake to any host, and takes the client's
    credentials there. Raises `NotAccepted`."""
    answer = await send(request)
    if answer.status != 101 and request.headers.get("upgrade") == "websocket":
        raise NotAccepted(answer)
    return answer


class UpstreamSocket(aiohttp.ClientWebSocketResponse):
    """aiohttp's own, which also tells the fields of the answer to the handshake."""

    def __init__(
        self, reader: Any, writer: Any, protocol: str | None, response: aiohttp.ClientResponse, *rest: Any, **more: Any
    ) -> None:
        super().__init__(reader, writer, protocol, response, *rest, **more)
        self.raw_headers: list[RawHeader] = list(response.raw_headers)


async def forward_websocket(
    session: aiohttp.ClientSession, settings: ProxySettings, url: URL, headers: CIMultiDict[str],
    scope: Scope, receive: Receive, send: Send,
) -> None:  # fmt: skip
    """Serve one handshake and what follows."""
    if (await receive())["type"] != "websocket.connect":
        return
    upstream = await _connect(session, settings, url, headers, scope, receive, send)
    if upstream is None:
        return
    assert isinstance(upstream, UpstreamSocket)
    try:
        answered = response_headers(upstream.raw_headers, 101)
        await send({"type": "websocket.accept", "subprotocol": upstream.protocol, "headers": answered})
        await _both_ways(upstream, receive, send, settings.idle)
    finally:
        # aiohttp gives an upstream that long after each message, and some never stop.
        with suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await upstream.close()


async def _connect(
    session: aiohttp.ClientSession, settings: ProxySettings, url: URL, headers: CIMultiDict[str],
    scope: Scope, receive: Receive, send: Send,
) -> aiohttp.ClientWebSocketResponse | None:  # fmt: skip
    try:
        async with asyncio.timeout(settings.connect + settings.first_byte):
            return await session.ws_connect(
                url,
                protocols=scope.get("subprotocols") or (),
                headers=headers,
                max_msg_size=settings.max_message,
                heartbeat=_HEARTBEAT_S,
                timeout=aiohttp.ClientWSTimeout(ws_close=_LEAVE_S),
            )
    except NotAccepted as refusal:
        await _hand_on(refusal.answer, settings, scope, receive, send)
        return None
    except aiohttp.WSServerHandshakeError:
        problem = NO_WEBSOCKET
    except (aiohttp.ClientError, OSError, ValueError) as error:
        problem = upstream_problem(error, "first byte")
        logger.warning("websocket: %d %s: %s", problem.status, problem.title, describe(error))
    await problem.send(scope, receive, send)
    return None


async def _hand_on(
    answer: aiohttp.ClientResponse, settings: ProxySettings, scope: Scope, receive: Receive, send: Send
) -> None:
    """Send the answer that a handshake got, whole: a server collects it anyway."""
    try:
        headers = response_headers(answer.raw_headers, answer.status)
        if not 200 <= answer.status < 600:
            raise InvalidResponse(f"the upstream answered a handshake with status {answer.status}")
        async with asyncio.timeout(settings.idle):
            body = await _read(answer, settings.max_message)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        problem = upstream_problem(error, "upstream")
        logger.warning("websocket: %d %s: %s", problem.status, problem.title, describe(error))
        await problem.send(scope, receive, send)
        return
    finally:
        answer.close()
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1014, "reason": "The handshake was refused"})
        return
    # The server says how much there is.
    headers = [field for field in headers if field[0] != b"content-length"]
    await send({"type": "websocket.http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _read(answer: aiohttp.ClientResponse, most: int) -> bytes:
    body = bytearray()
    while not answer.content.at_eof():
        body += await answer.content.readany()
        if len(body) > most:
            raise InvalidResponse(f"the upstream answered a handshake with more than {most} bytes")
    return bytes(body)


async def _both_ways(upstream: aiohttp.ClientWebSocketResponse, receive: Receive, send: Send, timeout: float) -> None:
    """Until one side leaves, or the client reads nothing for too long; then the other is told."""
    outward = _outward(upstream, send, timeout)
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


async def _outward(upstream: aiohttp.ClientWebSocketResponse, send: Send, timeout: float) -> None:
    while (message := await upstream.receive()).type not in _GONE:
        if message.type in _SENT_AS:
            async with asyncio.timeout(timeout):
                await send({"type": "websocket.send", _SENT_AS[message.type]: message.data})
    code = upstream.close_code
    reason = message.extra or "" if message.type is WSMsgType.CLOSE else ""
    # Without a closing handshake the upstream is simply gone, which is 1011 to a client: try elsewhere, or later.
    await send({
        "type": "websocket.close",
        "code": 1011 if code in (None, 1006, 1015) else (1000 if code == 1005 else code),
        "reason": str(reason),
    })  # fmt: skip
