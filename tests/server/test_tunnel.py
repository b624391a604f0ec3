"""Websockets through the sidecar: handshakes, messages, and how either side leaves."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.server import ServerProtocol

from ratelimit.policy import Policy
from ratelimit.server import tunnel
from ratelimit.server.upstream import ProxySettings
from tests.http.apps import limiter_of
from tests.http.serving import served
from tests.server.sockets import GET, OK, SOON_S, answering, ask, connected, in_front_of, scripted
from tests.server.test_connection import HANDSHAKE


class EchoUpstream:
    """Chats; and remembers what it was told at the handshake, and at the end."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}
        self.left: asyncio.Future[tuple[int, str | None]] = asyncio.get_running_loop().create_future()
        self.app = Starlette(routes=[WebSocketRoute("/chat", self._chat), WebSocketRoute("/no", self._refuse)])

    async def _chat(self, websocket: WebSocket) -> None:
        self.told = dict(websocket.headers)
        offered = websocket.scope["subprotocols"]
        chosen = "chat.v2" if "chat.v2" in offered else None
        await websocket.accept(subprotocol=chosen, headers=[(b"set-cookie", b"seen=1")])
        try:
            while True:
                await self._answer(websocket, await websocket.receive())
        except WebSocketDisconnect as gone:
            self.left.set_result((gone.code, gone.reason))

    async def _answer(self, websocket: WebSocket, message: Any) -> None:
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        if message.get("text") == "leave":
            await websocket.close(4001, "enough")
        elif message.get("text") is not None:
            await websocket.send_text(message["text"])
        else:
            await websocket.send_bytes(message["bytes"])

    async def _refuse(self, websocket: WebSocket) -> None:
        await websocket.close()


@asynccontextmanager
async def chatting(
    settings: ProxySettings | None = None, **options: Any
) -> AsyncIterator[tuple[EchoUpstream, ClientConnection]]:
    upstream = EchoUpstream()
    async with served(upstream.app) as behind, in_front_of(behind, settings) as address:
        async with asyncio.timeout(SOON_S), connect(f"ws://{address}/chat", proxy=None, **options) as client:
            yield upstream, client


async def test_the_handshake() -> None:
    headers = {"x-api-key": "alice", "x-mine": "1"}
    async with chatting(subprotocols=["chat.v1", "chat.v2"], additional_headers=headers) as (upstream, client):
        assert client.subprotocol == "chat.v2"
        assert client.response is not None
        assert client.response.headers["set-cookie"] == "seen=1"
        assert client.response.headers.get_all("via") == ["1.1 ratelimit"]
    told = upstream.told
    assert (told["x-ratelimit-user"], told["x-mine"], told["x-forwarded-for"]) == ("alice", "1", "127.0.0.1")
    assert told["forwarded"].endswith(";proto=http")


async def test_no_subprotocol_where_none_is_chosen() -> None:
    async with chatting(subprotocols=["other"]) as (_, client):
        assert client.subprotocol is None


@pytest.mark.parametrize(
    "message",
    ["hello", "", "größer", b"\x00\xff", b"", b"x" * 2**20],
    ids=["text", "no text", "umlauts", "bytes", "no bytes", "1 MB"],
)
async def test_messages_pass_as_they_are(message: str | bytes) -> None:
    async with chatting(max_size=None) as (_, client):
        await client.send(message)
        assert await client.recv() == message


async def test_the_upstream_leaves() -> None:
    async with chatting() as (_, client):
        await client.send("leave")
        await client.wait_closed()
        assert (client.close_code, client.close_reason) == (4001, "enough")


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "going"), (3000, "x"), (4002, "bye")])
async def test_the_client_leaves(code: int, reason: str) -> None:
    async with chatting() as (upstream, client):
        await client.close(code, reason)
        assert await upstream.left == (code, reason)


async def test_the_client_leaves_without_a_word() -> None:
    async with chatting() as (upstream, client):
        await client.send("hello")
        assert await client.recv() == "hello"
        client.transport.abort()
        assert (await upstream.left)[0] == 1001


async def test_the_upstream_leaves_without_a_word() -> None:
    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await _shake_hands(reader, writer)
        await reader.readexactly(1)

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connect(f"ws://{address}/", proxy=None) as client:
            await client.send("hello")
            await client.wait_closed()
            assert client.close_code == 1011


async def test_an_upstream_that_breaks_the_protocol() -> None:
    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await _shake_hands(reader, writer)
        writer.write(b"\xff\xff\xff\xff")
        await reader.read()

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connect(f"ws://{address}/", proxy=None) as client:
            await client.wait_closed()
            assert client.close_code in (1002, 1011)


async def test_a_message_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tunnel, "LEAVE_S", 0.1)  # a client that says nothing more
    async with chatting(ProxySettings(max_message=1000), max_size=None, compression=None) as (_, client):
        await client.send("x" * 2000)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1009


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"],
    ids=["says nothing", "no key"],
)
async def test_a_handshake_that_fails(answer: bytes) -> None:
    async with answering(answer) as (upstream, _), in_front_of(upstream) as address:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://{address}/", proxy=None)
    assert refused.value.response.status_code == 502
    assert refused.value.response.headers["content-type"] == "application/problem+json"


_BODY = b"\x00no\xff"
_FIELDS = b"content-type: text/odd\r\nset-cookie: a=1\r\nset-cookie: b=2\r\nx-hop: 1\r\nconnection: close, x-hop\r\n"
_LENGTH, _CHUNKED = b"content-length: 4\r\n", b"transfer-encoding: chunked\r\n"


_IN_CHUNKS = b"2\r\n%b\r\n2\r\n%b\r\n0\r\n\r\n" % (_BODY[:2], _BODY[2:])


_CHUNKS_OF = {_CHUNKED: _IN_CHUNKS, b"": b"4\r\n%b\r\n0\r\n\r\n" % _BODY}


@pytest.mark.parametrize(
    ("status", "framing", "body"),
    [(status, _LENGTH, _BODY) for status in (200, 301, 307, 401, 404, 426, 429, 499, 503)]
    + [(403, _LENGTH, _BODY), (403, _CHUNKED, _IN_CHUNKS), (403, b"", _BODY)],
)
async def test_what_a_handshake_is_answered_with_is_handed_on(status: int, framing: bytes, body: bytes) -> None:
    """As the answer to any other request: fields, body and all, and a redirect is the client's to follow."""
    answer = b"HTTP/1.1 %d Odd\r\nlocation: http://else.example/\r\n" % status + framing + _FIELDS + b"\r\n" + body
    async with answering(answer) as (upstream, heads), in_front_of(upstream) as address:
        head, _, came = (await ask(address, HANDSHAKE)).partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status)
    assert came == (_BODY if framing == _LENGTH else _CHUNKS_OF[framing])
    assert {b"location: http://else.example/", b"content-type: text/odd", b"via: 1.1 ratelimit"} < set(lines)
    assert [line for line in lines if b"cookie" in line] == [b"set-cookie: a=1", b"set-cookie: b=2"]
    assert (b"content-length: 4" in lines, b"transfer-encoding: chunked" in lines) == (
        framing == _LENGTH,
        framing != _LENGTH,
    )
    assert not [line for line in lines if line.startswith(b"x-hop")]
    assert len(heads) == 1


@pytest.mark.parametrize("request_", [HANDSHAKE, GET.replace(b"close\r", b"close\r\nx-ratelimit-user: root\r")])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_nobody_is_followed_to_another_host(request_: bytes, status: int) -> None:
    """What the client has sent, and who it is, are for the upstream alone."""
    async with answering(OK) as (elsewhere, strangers):
        answer = b"HTTP/1.1 %d Go\r\nlocation: http://%b/x\r\ncontent-length: 0\r\n\r\n" % (status, elsewhere.encode())
        async with answering(answer) as (upstream, heads), in_front_of(upstream) as address:
            came = await ask(address, request_.replace(b"host: a\r\n", b"host: a\r\nx-api-key: secret\r\n"))
    assert came.startswith(b"HTTP/1.1 %d " % status)
    assert b"location: http://%b/x" % elsewhere.encode() in came.lower()
    assert (len(heads), strangers) == (1, [])


async def test_a_handshake_that_is_not_answered() -> None:
    async def silent(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read()

    settings = ProxySettings(connect=0.1, first_byte=0.1)
    async with scripted(silent) as upstream, in_front_of(upstream, settings) as address:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://{address}/", proxy=None)
    assert refused.value.response.status_code == 504


async def test_a_handshake_beyond_the_limit_never_reaches_the_upstream() -> None:
    limiter = limiter_of(Policy("one", "1/day", match="/**"))
    await limiter.check("ip:127.0.0.1", "one")
    async with answering(OK) as (upstream, heads), in_front_of(upstream, limiter=limiter) as address:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://{address}/", proxy=None)
    assert refused.value.response.status_code == 429
    assert refused.value.response.headers["ratelimit"].startswith('"one";r=0')
    assert heads == []


@pytest.mark.heavy
async def test_a_client_that_reads_nothing_does_not_keep_its_upstream() -> None:
    left = asyncio.Event()

    async def floods(reader: StreamReader, writer: StreamWriter) -> None:
        await _shake_hands(reader, writer)
        frame = b"\x82\x7f" + (2**20).to_bytes(8, "big") + bytes(2**20)
        try:
            while not writer.transport.is_closing():
                writer.write(frame)
                await writer.drain()
        finally:
            left.set()

    async with scripted(floods) as upstream, in_front_of(upstream, ProxySettings(idle=0.2)) as address:
        async with connected(address) as (reader, writer):
            writer.write(HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.wait_for(left.wait(), SOON_S)
            writer.transport.abort()


async def _shake_hands(reader: StreamReader, writer: StreamWriter) -> None:
    server = ServerProtocol()
    server.receive_data(await reader.readuntil(b"\r\n\r\n"))
    (request,) = server.events_received()
    server.send_response(server.accept(request))  # type: ignore[arg-type]
    writer.write(b"".join(server.data_to_send()))
