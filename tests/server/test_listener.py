"""Connections while a listener leaves, byte by byte: what is still answered, and when a connection closes."""

from __future__ import annotations

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from ratelimit.server import connection
from ratelimit.server.address import Address
from ratelimit.server.asgi import AsgiService
from ratelimit.server.listener import Listener
from tests.server.processes import LONG_S, until
from tests.server.sockets import until_gone
from tests.server.test_connection import HANDSHAKE

GET = b"GET /%s HTTP/1.1\r\nhost: a\r\n\r\n"
LINGER_S = 0.1


BIG = bytes(20_000_000)


class App:
    """Answers with the path, at once; `/later` when it is told to, `/early` before it has read the body, `/big` with
    more than anybody takes at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.fields: list[int] = []
        self.later = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        self.fields.append(len(scope["headers"]))
        if scope["path"] == "/later":
            await self.later.wait()
        if scope["path"] == "/until-gone":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.later.set()
            return
        if scope["path"] == "/body":
            self.bodies.append(b"")
            while (message := await receive()).get("more_body"):
                self.bodies[-1] += message["body"]
            self.bodies[-1] += message["body"]
        body = BIG if scope["path"] == "/big" else scope["path"].encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Running:
    """A listener at work, and the connections to it."""

    def __init__(self, listener: Listener, app: App, place: tuple[str, int]) -> None:
        self.listener = listener
        self.app = app
        self.place = place
        self.writers: list[StreamWriter] = []

    async def connect(self, first: bytes = b"") -> tuple[StreamReader, StreamWriter]:
        """With a request that is answered already, if it is given."""
        reader, writer = await asyncio.open_connection(*self.place)
        self.writers.append(writer)
        if first:
            writer.write(first)
            assert b"connection: close" not in await answer(reader)
        return reader, writer

    def drain(self, *, linger: float = LINGER_S, grace: float = LONG_S) -> asyncio.Task[None]:
        return asyncio.create_task(self.listener.drain(linger=linger, grace=grace))


def on_both_loops(test: Callable[[Running], Awaitable[None]]) -> Callable[..., None]:
    """uvloop's transports and asyncio's differ in what they do at a close."""

    async def run() -> None:
        listening = Address(port=0).bind()
        app = App()
        listener = Listener(AsgiService(app), listening.socket)
        await listener.start()
        running = Running(listener, app, listening.socket.getsockname())
        try:
            await test(running)
        finally:
            for writer in running.writers:
                writer.close()
            # Where the test has failed: uvloop does not come to its end while a server is at work.
            await listener.drain(linger=0, grace=0)
            await listener.stop()

    @pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
    def both(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(run())

    return both


async def answer(reader: StreamReader) -> bytes:
    """One, whole; its fields in lower case."""
    async with asyncio.timeout(LONG_S):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return head + await reader.readexactly(length)


async def closed(reader: StreamReader) -> bool:
    """Whether it ends without another byte."""
    return await asyncio.wait_for(reader.read(), LONG_S) == b""


@on_both_loops
async def test_the_next_answer_is_the_last(running: Running) -> None:
    reader, writer = await running.connect(GET % b"before")
    leaving = running.drain()
    await asyncio.sleep(0)
    writer.write(GET % b"after")
    assert b"connection: close" in await answer(reader)
    assert await closed(reader)
    await leaving


@on_both_loops
async def test_an_idle_connection_closes_without_a_byte(running: Running) -> None:
    reader, _ = await running.connect(GET % b"before")
    fresh, _ = await running.connect()
    leaving = running.drain()
    assert await closed(reader)
    assert await closed(fresh)
    await leaving
    assert running.app.asked == ["/before"]


@on_both_loops
async def test_of_requests_sent_ahead_all_are_answered_and_the_last_says_so(running: Running) -> None:
    reader, writer = await running.connect(GET % b"before")
    leaving = running.drain()
    await asyncio.sleep(0)
    writer.write(GET % b"1" + GET % b"2" + GET % b"3")
    answers = [await answer(reader) for _ in range(3)]
    assert [b"connection: close" in each for each in answers] == [False, False, True]
    assert await closed(reader)
    await leaving


@on_both_loops
async def test_a_request_under_way_is_finished(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(GET % b"later")
    while not running.app.asked:
        await asyncio.sleep(0)
    leaving = running.drain()
    done, _ = await asyncio.wait([leaving], timeout=3 * LINGER_S)
    assert not done
    running.app.later.set()
    assert b"connection: close" in await answer(reader)
    await leaving


@on_both_loops
async def test_a_request_that_has_arrived_in_part_is_waited_for(running: Running) -> None:
    reader, writer = await running.connect(GET % b"before")
    writer.write(b"GET /after HTTP/1.1\r\nhost")
    await asyncio.sleep(0)
    leaving = running.drain()
    done, _ = await asyncio.wait([leaving], timeout=3 * LINGER_S)
    assert not done
    writer.write(b": a\r\n\r\n")
    assert (await answer(reader)).endswith(b"/after")
    await leaving


@on_both_loops
async def test_a_body_that_is_still_on_its_way_is_not_reset(running: Running) -> None:
    reader, writer = await running.connect(GET % b"before")
    leaving = running.drain()
    await asyncio.sleep(0)
    writer.write(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 200000\r\n\r\n" + bytes(100_000))
    assert b"connection: close" not in await answer(reader)
    writer.write(bytes(100_000) + GET % b"next")
    assert b"connection: close" in await answer(reader)
    await leaving
    assert running.app.asked == ["/before", "/early", "/next"]


@on_both_loops
async def test_who_comes_while_it_leaves_is_answered(running: Running) -> None:
    leaving = running.drain(linger=LONG_S)
    await asyncio.sleep(0)
    reader, writer = await running.connect()
    writer.write(GET % b"late")
    assert b"connection: close" in await answer(reader)
    leaving.cancel()


@on_both_loops
async def test_after_the_grace_what_runs_is_cut_off(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(GET % b"later")
    while not running.app.asked:
        await asyncio.sleep(0)
    await running.drain(grace=LINGER_S)
    assert not (await asyncio.wait_for(reader.read(), LONG_S)).startswith(b"HTTP/1.1 200")


@on_both_loops
async def test_at_the_end_of_its_time_a_connection_is_closed_but_not_upon_a_request(running: Running) -> None:
    with socket.create_connection(running.place) as client:
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, GET % b"before")
        assert b"/before" in await loop.sock_recv(client, 1000)
        assert running.listener._shared is not None
        (connection,) = running.listener._shared.connections
        # Both in one step of the event loop, which therefore has not read the request yet.
        client.send(GET % b"after")
        connection.end_idle()
        assert b"/after" in await asyncio.wait_for(loop.sock_recv(client, 1000), LONG_S)
        connection.end_idle()
        assert await asyncio.wait_for(loop.sock_recv(client, 1000), LONG_S) == b""
    await running.drain(linger=0)


@on_both_loops
async def test_of_who_leaves_for_good_the_app_is_told(running: Running) -> None:
    for sent in (GET % b"until-gone", b"GET /until-gone HTTP/1.0\r\n\r\n"):
        _, writer = await running.connect()
        writer.write(sent)
        while not running.app.asked:
            await asyncio.sleep(0)
        running.app.asked.clear()
        writer.close()
        await asyncio.wait_for(running.app.later.wait(), LONG_S)
        running.app.later.clear()
    await running.drain(linger=0)


# Clients that hold on to a connection without using it, or ask for what uvicorn cannot read: each comes to an end.


@pytest.fixture
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


@pytest.mark.usefixtures("impatient")
@on_both_loops
async def test_an_answer_that_is_not_read(running: Running) -> None:
    with reads_nothing(running, GET % b"big"), reads_nothing(running, b"GET /big HTTP/1.0\r\n\r\n"):
        await until(lambda: running.app.asked == ["/big", "/big"])
        await all_gone(running)
    await running.drain(linger=0)


@pytest.mark.usefixtures("impatient")
@on_both_loops
async def test_what_is_cut_off_is_not_waited_for(running: Running) -> None:
    assert running.listener._tick is not None
    running.listener._tick.cancel()
    with reads_nothing(running, b"GET /big HTTP/1.0\r\n\r\n"):
        await until(lambda: bool(running.app.asked))
        await running.drain(linger=0, grace=0.1)
        await all_gone(running)


@pytest.mark.usefixtures("impatient")
@on_both_loops
async def test_a_body_that_nobody_waits_for_any_more(running: Running) -> None:
    reader, writer = await running.connect()
    writer.write(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n")
    assert (await answer(reader)).endswith(b"/early")
    writer.write(b"x")
    assert await closed(reader)
    await running.drain(linger=0)


@pytest.mark.usefixtures("impatient")
@on_both_loops
async def test_a_handshake_may_be_as_large_as_any_request(running: Running) -> None:
    cookie = b"cookie: " + b"c" * 60_000 + b"\r\n"
    many = b"".join(b"x-%d: y\r\n" % number for number in range(3000))
    for fields in (cookie, many):
        with reads_nothing(running, HANDSHAKE[:-2] + fields + b"\r\n"):
            await until(lambda: bool(running.app.fields))
        assert running.app.fields.pop() == 5 + fields.count(b"\r\n")
    await running.drain(linger=0)


@pytest.mark.usefixtures("impatient")
@on_both_loops
async def test_a_handshake_before_the_last_answer_is_read_is_a_request(running: Running) -> None:
    """The websocket would not hear that its client has not begun to read."""
    with reads_nothing(running, GET % b"big") as client:
        await until(lambda: running.app.asked == ["/big"])
        client.sendall(HANDSHAKE)
        await until(lambda: running.app.asked == ["/big", "/chat"])
    await running.drain(linger=0)


@pytest.mark.usefixtures("impatient")
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
