"""What one connection takes: bounds of a head and of its time, requests sent ahead, nonsense behind them.

What two readers could take for different requests is in `test_smuggling`.
"""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter

import pytest
from starlette.types import Receive, Scope, Send

from ratelimit.http.lifespan import no_lifespan
from ratelimit.policy import Policy
from ratelimit.server import connection
from ratelimit.server.asgi import AsgiService
from ratelimit.server.listener import TICK_S
from tests.http.apps import limiter_of
from tests.http.spellings import PLAIN
from tests.server.sockets import GET, OK, answering, ask, connected, in_front_of, listening, scripted, until_gone

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


async def test_a_header_section_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_HEAD_S", 0.05)
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        assert (await ask(address, _HEAD)).startswith(b"HTTP/1.1 408 ")
    assert heads == []


@pytest.mark.parametrize("apart", [False, True])
async def test_a_bad_chunk_is_never_the_end_of_a_body(apart: bool) -> None:
    received = bytearray()
    arrived = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        while piece := await reader.read(100):
            received.extend(piece)
            if b"3\r\nabc\r\n" in received:
                arrived.set()

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(_CHUNKED + b"3\r\nabc\r\n")
            if apart:
                await arrived.wait()
            writer.write(b"zz\r\n\r\n")
            assert (await until_gone(reader)).startswith(b"HTTP/1.1 400 ")
    assert not received.endswith(b"0\r\n\r\n")


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


async def test_requests_sent_ahead_are_answered_in_order() -> None:
    first = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n"
    one, two = OK.replace(b"ok", b"#1"), OK.replace(b"ok", b"#2")
    async with answering(one, two) as (upstream, heads), in_front_of(upstream) as address:
        answer = await ask(address, first + GET)
    assert answer.index(b"#1") < answer.index(b"#2")
    assert [head.split(b" ")[1] for head in heads] == [b"/1", b"/"]


async def test_nonsense_after_a_whole_request_does_not_take_its_answer() -> None:
    whole = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        answer = await ask(address, whole + b"NONSENSE\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nok")
    assert len(heads) == 1


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
        if scope["type"] == "http":
            if scope["path"] == "/slow":
                await asyncio.sleep(keep_alive + 2 * TICK_S)
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})
        else:
            await no_lifespan(scope, receive, send)

    keep_alive = 0.5
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", keep_alive)
    async with listening(AsgiService(app)) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\nGET /slow HTTP/1.1\r\nho")
            await reader.readuntil(b"ok")
            writer.write(b"st: a\r\n\r\n")
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200 ")
