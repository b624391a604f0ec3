"""Clients that hold on to a connection without using it, or ask for what uvicorn cannot read: each comes to an end."""

from __future__ import annotations

import asyncio
import socket

import pytest

from ratelimit.server import connection
from ratelimit.server.address import Address
from ratelimit.server.asgi import AsgiService
from ratelimit.server.listener import Listener
from tests.server.processes import LONG_S, until
from tests.server.sockets import until_gone
from tests.server.test_connection_upgrades import HANDSHAKE
from tests.server.test_listener import GET, App, Running, answer, closed, on_both_loops

SMUGGLED = GET % b"smuggled"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "STALLED_S", 0.1)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 0.5)
    monkeypatch.setattr(connection, "PIECE_S", 0.1)


def reads_nothing(running: Running, request: bytes) -> socket.socket:
    client = socket.create_connection(running.place)
    client.sendall(request)
    return client


async def all_gone(running: Running) -> None:
    await until(lambda: not running.listener.is_busy)


@on_both_loops
async def test_a_body_stays_a_body_whatever_is_offered(running: Running) -> None:
    """As in front of an upstream; the listener serves the decision endpoint and the native API too."""
    reader, writer = await running.connect()
    offer = b"connection: upgrade\r\nupgrade: h2c\r\n"
    writer.write(b"POST /body HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n" % (offer, len(SMUGGLED)))
    await until(lambda: running.app.asked == ["/body"])
    writer.write(SMUGGLED)
    assert (await answer(reader)).endswith(b"/body")
    assert running.app.asked == ["/body"]
    assert running.app.bodies == [SMUGGLED]
    await running.drain(linger=0)


@on_both_loops
async def test_an_answer_that_is_not_read(running: Running) -> None:
    with reads_nothing(running, GET % b"big"), reads_nothing(running, b"GET /big HTTP/1.0\r\n\r\n"):
        await until(lambda: running.app.asked == ["/big", "/big"])
        await all_gone(running)
    await running.drain(linger=0)


@on_both_loops
async def test_what_is_cut_off_is_not_waited_for(running: Running) -> None:
    assert running.listener._tick is not None
    running.listener._tick.cancel()
    with reads_nothing(running, b"GET /big HTTP/1.0\r\n\r\n"):
        await until(lambda: bool(running.app.asked))
        await running.drain(linger=0, grace=0.1)
        await all_gone(running)


@on_both_loops
async def test_a_body_that_nobody_waits_for_any_more(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
    assert (await answer(reader)).endswith(b"/early")
    writer.write(b"x")
    assert await closed(reader)
    await running.drain(linger=0)


@on_both_loops
async def test_a_handshake_may_be_as_large_as_any_request(running: Running) -> None:
    cookie = b"cookie: " + b"c" * 60_000 + b"\r\n"
    many = b"".join(b"x-%d: y\r\n" % number for number in range(3000))
    for fields in (cookie, many):
        with reads_nothing(running, HANDSHAKE[:-2] + fields + b"\r\n"):
            await until(lambda: bool(running.app.fields))
        assert running.app.fields.pop() == 5 + fields.count(b"\r\n")
    await running.drain(linger=0)


@on_both_loops
async def test_a_handshake_before_the_last_answer_is_read_is_a_request(running: Running) -> None:
    """The websocket would not hear that its client has not begun to read."""
    with reads_nothing(running, GET % b"big") as client:
        await until(lambda: running.app.asked == ["/big"])
        client.sendall(HANDSHAKE)
        await until(lambda: running.app.asked == ["/big", "/chat"])
    await running.drain(linger=0)


def test_a_connection_accepted_just_before_is_not_lost() -> None:
    """However many turns of the loop before. asyncio's own only; the others call nobody back in between."""

    async def left_after(turns: int) -> None:
        listening = Address(port=0).bind()
        one = Listener(AsgiService(App()), listening.socket)
        await one.start()
        with socket.create_connection(listening.socket.getsockname()) as client:
            for _ in range(turns):
                await asyncio.sleep(0)
            await one.drain(linger=0, grace=LONG_S)
            await one.stop()
            reader, writer = await asyncio.open_connection(sock=client)
            async with asyncio.timeout(LONG_S):
                assert await until_gone(reader) == b""
            writer.close()

    for turns in range(6):
        asyncio.run(left_after(turns))
