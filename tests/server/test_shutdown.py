"""SIGTERM under load, with real connections: no request that was sent whole is cut, and no event is lost."""

from __future__ import annotations

import asyncio
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any
from uuid import uuid4

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed

from ratelimit import UsageLog, open_store
from ratelimit.server.serve import on_signals
from tests.engines import Engine
from tests.server.clients import Clients
from tests.server.processes import LONG_S, QUICK, served, until
from tests.server.sockets import ask, scripted

ROUNDS, CONNECTIONS = 3, 60
READY = b"GET /health/ready HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def quick(reader: StreamReader, writer: StreamWriter) -> None:
    while True:
        await reader.readuntil(b"\r\n\r\n")
        # Long enough for requests to be under way when the signal comes.
        await asyncio.sleep(0.003)
        writer.write(OK)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kept connections", "new connections"])
async def test_no_request_is_cut(way: str) -> None:
    async with scripted(quick) as upstream:
        for _ in range(ROUNDS):
            async with served("--upstream", f"http://{upstream}", *QUICK, "--linger", "1") as service:
                clients = Clients("127.0.0.1", service.port, reconnect=way == "new connections")
                clients.start(CONNECTIONS)
                await clients.get(5 * CONNECTIONS)
                service.send(SIGTERM)
                await clients.refused()
                assert clients.cut == []
                assert clients.last_ones >= CONNECTIONS
                assert await service.ended() == 0
                assert set(clients.statuses) == {200}


@pytest.mark.process
async def test_newcomers_are_let_in_until_a_load_balancer_has_heard() -> None:
    """Readiness says 503 from the signal on, and nobody is refused meanwhile."""
    options = (*QUICK, "--linger", "300", "--grace", "600", "--admin", "127.0.0.1:0")
    async with scripted(quick) as upstream, served("--upstream", f"http://{upstream}", *options) as service:
        ready = service.banner["admin"].removeprefix("http://")
        assert (await ask(ready, READY)).startswith(b"HTTP/1.1 200 ")
        service.send(SIGTERM)
        while not (await ask(ready, READY)).startswith(b"HTTP/1.1 503 "):
            await asyncio.sleep(0.01)
        for _ in range(10):
            answer = await ask(f"127.0.0.1:{service.port}", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer


@pytest.mark.process
async def test_after_the_linger_nobody_listens() -> None:
    async with served(*QUICK, "--linger", "1") as service:
        loop = asyncio.get_running_loop()
        since = loop.time()
        service.send(SIGTERM)
        assert await service.ended() == 0
        assert loop.time() > since + 1
        assert nobody_at(service.port)


@pytest.mark.slow
async def test_every_accepted_event_is_in_the_table(engine: Engine) -> None:
    table = f"leaving-{uuid4().hex[:8]}"
    url = engine.store_url(table, create="true")
    options = (*QUICK, "--store", url, "--linger", "1", "--workers", "2")
    async with scripted(quick) as upstream:
        async with served("--upstream", f"http://{upstream}", *options, RATELIMIT_USAGE="memory") as service:
            clients = Clients("127.0.0.1", service.port)
            clients.start(CONNECTIONS)
            await clients.get(3 * CONNECTIONS)
            service.send(SIGTERM)
            newcomer = await ask(f"127.0.0.1:{service.port}", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert newcomer.startswith(b"HTTP/1.1 200 ")
            await clients.refused()
            assert await service.ended() == 0
    assert clients.cut == []
    assert set(clients.statuses) == {200}
    async with open_store(url) as store, UsageLog(store) as usage:
        found = [len((await usage.events(f"user-{user}", limit=1000)).events) for user in range(CONNECTIONS)]
    assert sum(found) == clients.answered


@pytest.mark.process
async def test_what_runs_is_finished_and_a_newcomer_finds_nobody(tmp_path: Path) -> None:
    asked, answer_now = asyncio.Event(), asyncio.Event()

    async def slow(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await answer_now.wait()
        writer.write(OK)

    path = tmp_path / "serve.sock"
    async with scripted(slow) as upstream:
        async with served("--upstream", f"http://{upstream}", *QUICK, "--linger", "0", "--uds", str(path)) as service:
            assert service.url == f"unix:{path}"
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await asyncio.wait_for(asked.wait(), LONG_S)
            service.send(SIGINT)
            await until(lambda: not path.exists())
            with pytest.raises(FileNotFoundError):
                await asyncio.open_unix_connection(path)
            answer_now.set()
            answer = await asyncio.wait_for(reader.read(), LONG_S)
            assert answer.endswith(b"\r\n\r\nok")
            assert b"\r\nconnection: close\r\n" in answer
            writer.close()
            assert await service.ended() == 0


@pytest.mark.process
async def test_a_second_signal_leaves_at_once() -> None:
    asked = asyncio.Event()

    async def silent(reader: StreamReader, writer: StreamWriter) -> None:
        asked.set()
        await reader.read()

    async with scripted(silent) as upstream:
        async with served("--upstream", f"http://{upstream}", *QUICK, "--grace", "3600") as service:
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await asyncio.wait_for(asked.wait(), LONG_S)
            service.send(SIGTERM)
            await until(lambda: nobody_at(service.port))
            service.send(SIGTERM)
            assert await service.ended() == 128 + SIGTERM
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asyncio.wait_for(reader.readexactly(1), LONG_S)
            writer.close()


async def test_a_signal_that_is_told_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    handlers: dict[int, partial[None]] = {}
    told: list[str] = []
    now = 0.0

    def add(number: int, do: Callable[..., None], *args: Any) -> None:
        handlers[number] = partial(do, *args)

    monkeypatch.setattr(loop, "add_signal_handler", add)
    monkeypatch.setattr(loop, "time", lambda: now)
    monkeypatch.setattr("logging.shutdown", lambda: None)
    monkeypatch.setattr("os._exit", lambda status: told.append(f"exit {status}"))

    def note(what: str) -> Callable[[], None]:
        return lambda: told.append(what)

    on_signals(stop=note("stop"), at_once=note("at once"), reload=note("reload"), replace=note("replace"))
    for now in (1.0, 1.001, 1.049, 2.0):  # noqa: B007 (the loop's time)
        handlers[SIGTERM]()
    assert told == ["stop", "at once", f"exit {128 + SIGTERM}"]


@pytest.mark.process
async def test_what_is_not_finished_in_its_grace_is_cut_off() -> None:
    async def silent(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read()

    async with scripted(silent) as upstream:
        async with served("--upstream", f"http://{upstream}", *QUICK, "--linger", "0", "--grace", "0.5") as service:
            _, writer = await asyncio.open_connection("127.0.0.1", service.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await asyncio.sleep(0)
            service.send(SIGTERM)
            assert await service.ended() == 0
            writer.close()


@pytest.mark.process
async def test_websockets_are_told_to_come_back() -> None:
    async def echo(upstream: ServerConnection) -> None:
        async for message in upstream:
            await upstream.send(message)

    async with serve(echo, "127.0.0.1", 0) as upstream:
        port = upstream.sockets[0].getsockname()[1]
        async with served("--upstream", f"http://127.0.0.1:{port}", *QUICK, "--linger", "1") as service:
            async with connect(f"ws://127.0.0.1:{service.port}/") as client:
                await client.send("before")
                assert await client.recv() == "before"
                service.send(SIGTERM)
                with pytest.raises(ConnectionClosed) as closed:
                    await asyncio.wait_for(client.recv(), LONG_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
            assert await service.ended() == 0


def nobody_at(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
