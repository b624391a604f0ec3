"""What one connection takes: bounds of a head and of its time, requests sent ahead, nonsense behind them.

What two readers could take for different requests is in `test_smuggling`.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from typing import NamedTuple

import pytest
from starlette.types import Receive, Scope, Send

from ratelimit.policy import Policy
from ratelimit.server import connection
from ratelimit.server.asgi import AsgiService
from ratelimit.server.listener import TICK_S
from tests.http.apps import limiter_of
from tests.http.spellings import PLAIN
from tests.server.sockets import OK, answering, ask, connected, in_front_of, listening, scripted, until_gone
from tests.server.test_forward import ALL, MOST_UNDERWAY, answer_at_length

_POST = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
_CHUNKED = _POST + b"transfer-encoding: chunked\r\n\r\n"
_HEAD = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"


async def test_however_a_path_is_spelled_it_is_counted() -> None:
    limiter = limiter_of(Policy("hint", "99/day", match="POST /hints"))
    async with answering(*[OK] * len(PLAIN)) as (upstream, heads), in_front_of(upstream, limiter=limiter) as address:
        for path in PLAIN:
            request = _POST.replace(b" / ", b" %b " % path.encode()) + b"content-length: 0\r\n\r\n"
            assert (await ask(address, request)).startswith(b"HTTP/1.1 200 ")
    await limiter.open()
    assert (await limiter.peek("ip:127.0.0.1", "hint")).used == len(heads) == len(PLAIN)


async def test_fields_of_60_kb_are_passed_on() -> None:
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        answer = await ask(address, _HEAD + b"x-big: " + b"a" * 60_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"x-big: " + b"a" * 60_000 in heads[0]


async def test_a_header_section_without_an_end_is_cut_off() -> None:
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(_HEAD + b"x-endless: ")
            answer = asyncio.create_task(until_gone(reader))
            while not answer.done():
                writer.write(b"a" * 1000)
                await asyncio.sleep(0)
    assert (await answer).startswith(b"HTTP/1.1 431 ")
    assert heads == []


async def test_a_refusal_is_seen_by_who_is_still_sending() -> None:
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        for faulty in (b"x y: z\r\n\r\n", b"x: " + b"a" * 100_000):
            answer = await ask(address, _HEAD + faulty + bytes(1_000_000))
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 431 "))
    assert heads == []


async def test_a_header_section_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_HEAD_S", 0.05)
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        assert (await ask(address, _HEAD)).startswith(b"HTTP/1.1 408 ")
    assert heads == []


@pytest.mark.parametrize("apart", [False, True])
async def test_a_trailer_is_no_field(apart: bool) -> None:
    """It passes as a trailer; but not one that says who the user is, nor one that the upstream would believe."""
    limiter = limiter_of(Policy("all", "10/day", match="/**"))
    body = bytearray()
    arrived = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        while not body.endswith(b"1\r\n\r\n"):
            body.extend(await reader.read(1000))
            if b"3\r\nabc\r\n" in body:
                arrived.set()
        writer.write(OK)

    async with scripted(script) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with connected(address) as (reader, writer):
            writer.write(_CHUNKED + b"3\r\nabc\r\n")
            if apart:
                await arrived.wait()
            writer.write(b"0\r\nx-api-key: mallory\r\nx-trailer: 1\r\n\r\n")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    assert b"mallory" not in body
    assert body.endswith(b"0\r\nx-trailer: 1\r\n\r\n")
    await limiter.open()
    assert (await limiter.peek("mallory", "all")).used == 0
    assert (await limiter.peek("ip:127.0.0.1", "all")).used == 1


async def test_nonsense_within_an_answer_is_not_answered_within_it() -> None:
    go_on = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nfour")
        await go_on.wait()
        writer.write(b"more")

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"four")
            writer.write(b"NONSENSE\r\n\r\n")
            go_on.set()
            assert await until_gone(reader) == b"more"


async def test_a_request_that_began_before_the_last_answer_was_complete_is_not_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time is set when an answer is complete, and again by a request: in whichever order they come."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await asyncio.sleep(keep_alive + 2 * TICK_S)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    keep_alive = 0.5
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", keep_alive)
    async with listening(AsgiService(app)) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /slow HTTP/1.1\r\nho")
            await reader.readuntil(b"ok")
            writer.write(b"st: a\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")


# An `Upgrade` that is not taken up is as if it had not been offered: it moves no byte of a request into another.


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
