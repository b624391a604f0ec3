"""An `Upgrade` that is not taken up is as if it had not been offered: it moves no byte of a request into another."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from typing import NamedTuple

import pytest

from ratelimit.policy import Policy
from tests.http.apps import limiter_of
from tests.server.sockets import OK, ask, connected, in_front_of, scripted
from tests.server.test_forward import ALL, MOST_UNDERWAY, answer_at_length

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: a\r\nx-api-key: mallory\r\n\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
WEBSOCKET = (
    b"connection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
HANDSHAKE = b"GET /chat HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET + b"\r\n"


class Asked(NamedTuple):
    """One request, as the upstream has read it."""

    line: bytes
    head: bytes
    body: bytes


class Upstream:
    """Reads requests to their end, as their fields say, and answers each."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []

    async def __call__(self, reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = b""
            if b"transfer-encoding: chunked" in head:
                while size := int(await reader.readline(), 16):
                    body += (await reader.readexactly(size + 2))[:-2]
                await reader.readline()
            elif b"content-length: " in head:
                length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length))
            self.asked.append(Asked(head.partition(b" http/1.1\r\n")[0], head, body))
            writer.write(OK)


def post(fields: bytes, body: bytes, *, chunked: bool = False) -> tuple[bytes, bytes]:
    framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    return b"POST /hints HTTP/1.1\r\nhost: a\r\nx-api-key: alice\r\n%b%b\r\n\r\n" % (fields, framing), sent


@pytest.mark.parametrize("offered", [H2C, WEBSOCKET], ids=["h2c", "a websocket"])
@pytest.mark.parametrize("chunked", [False, True], ids=["with a length", "in chunks"])
@pytest.mark.parametrize("pieces", [1, 2, 3], ids=["at once", "the body later", "the body in part"])
async def test_a_body_stays_a_body(offered: bytes, chunked: bool, pieces: int) -> None:
    """Above all one that would do as a request: whoever wrote it would be whom it says."""
    limiter = limiter_of(Policy("all", "10/day", match="/**"))
    upstream = Upstream()
    head, body = post(offered, SMUGGLED, chunked=chunked)
    half = len(body) // 2
    sent = {1: [head + body], 2: [head, body], 3: [head + body[:half], body[half:]]}[pieces]
    async with scripted(upstream) as behind, in_front_of(behind, limiter=limiter) as address:
        async with connected(address) as (reader, writer):
            for piece in sent:
                writer.write(piece)
                await asyncio.sleep(0.02)  # so that they arrive apart; the test holds where they do not
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
            writer.write(b"GET /next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    assert [(one.line, one.body) for one in upstream.asked] == [(b"post /hints", SMUGGLED), (b"get /next", b"")]
    assert not [name for name in (b"\r\nupgrade:", b"http2-settings", b"connection:") if name in upstream.asked[0].head]
    await limiter.open()
    assert [(await limiter.peek(user, "all")).used for user in ("alice", "mallory")] == [1, 0]


async def test_requests_sent_ahead_are_all_answered() -> None:
    upstream = Upstream()
    one = b"GET /%d HTTP/1.1\r\nhost: a\r\n" + H2C + b"\r\n"
    last = b"GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
    async with scripted(upstream) as behind, in_front_of(behind) as address:
        # More of them in one packet than Python goes deep.
        answer = await ask(address, b"".join([*(one % number for number in range(600)), last]))
    assert answer.count(b"HTTP/1.1 200 ") == 601
    assert [each.line for each in upstream.asked] == [*(b"get /%d" % number for number in range(600)), b"get /last"]


@pytest.mark.parametrize("framing", [b"content-length: 5", b"transfer-encoding: chunked"])
async def test_a_handshake_has_no_body(framing: bytes) -> None:
    upstream = Upstream()
    body = b"hello" if b"length" in framing else b"5\r\nhello\r\n0\r\n\r\n"
    head = b"GET /chat HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET.replace(b"upgrade\r", b"upgrade, close\r") + framing
    async with scripted(upstream) as behind, in_front_of(behind) as address:
        assert (await ask(address, head + b"\r\n\r\n" + body)).startswith(b"HTTP/1.1 200 ")
    assert [(one.line, one.body) for one in upstream.asked] == [(b"get /chat", b"hello")]


async def test_a_handshake_behind_a_download_does_not_make_it_run_away() -> None:
    """The connection would be the websocket's from then on, and nobody would wait for the client to read the rest."""
    stuck: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        if b"/chat" in await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)
            return
        await answer_at_length(writer, stuck)

    async with scripted(script) as behind, in_front_of(behind) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n" + HANDSHAKE)
            assert await stuck < MOST_UNDERWAY
            await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(ALL)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("target", [b"/", b"a:443"])
async def test_a_tunnel_is_not_dug(target: bytes) -> None:
    upstream = Upstream()
    async with scripted(upstream) as behind, in_front_of(behind) as address:
        answer = await ask(address, b"CONNECT %b HTTP/1.1\r\nhost: a\r\n\r\n" % target + SMUGGLED)
    assert answer.startswith(b"HTTP/1.1 501 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert upstream.asked == []
