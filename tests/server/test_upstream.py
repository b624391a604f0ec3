"""Upstreams over TLS and unix sockets; what their failures come to: a problem body, or an answer that breaks off."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import pytest
import trustme

from ratelimit import ConfigError, Policy
from ratelimit.factory import MiddlewareArgs
from ratelimit.server import pool
from ratelimit.server.proxy import Proxy
from ratelimit.server.upstream import ProxySettings
from tests.http.apps import limiter_of
from tests.server.sockets import (
    GET,
    OK,
    SOON_S,
    Script,
    answering,
    ask,
    close,
    connected,
    in_front_of,
    listening,
    scripted,
    until_gone,
)


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


def secure(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def problem(answer: bytes) -> int:
    """The status of a problem body, which says the same as the status line."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    status = int(json.loads(body)["status"])
    assert head.startswith(b"HTTP/1.1 %d " % status)
    return status


async def answers_ok(reader: StreamReader, writer: StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK)
    await close(writer)


async def test_over_tls(authority: trustme.CA, ca_file: str) -> None:
    settings = ProxySettings(ca_file=ca_file)
    async with scripted(answers_ok, secure(authority, "localhost")) as upstream:
        async with in_front_of(f"https://localhost:{upstream.partition(':')[2]}", settings) as address:
            assert (await ask(address, GET)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("name", ["localhost", "elsewhere.example"], ids=["of nobody known", "of somebody else"])
async def test_a_certificate_that_is_not_to_be_believed(authority: trustme.CA, ca_file: str, name: str) -> None:
    issuer = trustme.CA() if name == "localhost" else authority
    async with scripted(answers_ok, secure(issuer, name)) as upstream:
        url = f"https://localhost:{upstream.partition(':')[2]}"
        async with in_front_of(url, ProxySettings(ca_file=ca_file)) as address:
            assert problem(await ask(address, GET)) == 502
        async with in_front_of(url, ProxySettings(verify=False)) as address:
            assert (await ask(address, GET)).startswith(b"HTTP/1.1 200 ")


def test_a_file_that_holds_no_certificates(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("none")
    for path in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(ConfigError, match=r"^ca_file: cannot use .*\.pem"):
            ProxySettings(ca_file=str(path))


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    server = await asyncio.start_unix_server(answers_ok, path)
    async with server:
        async with in_front_of(f"unix:{path}") as address:
            assert (await ask(address, GET)).startswith(b"HTTP/1.1 200 ")


async def silent(reader: StreamReader, writer: StreamWriter) -> None:
    await reader.read()


async def resets(reader: StreamReader, writer: StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    _reset(writer)


@pytest.mark.parametrize(("script", "status"), [(resets, 502), (silent, 504)])
async def test_an_upstream_that_gives_no_answer(script: Script, status: int) -> None:
    async with scripted(script) as upstream, in_front_of(upstream, ProxySettings(first_byte=0.2)) as address:
        assert problem(await ask(address, GET)) == status


@pytest.mark.parametrize("where", ["unix:{folder}/app.sock", "127.0.0.1:{port}"])
async def test_nobody_there_is_a_502(where: str, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        async with in_front_of(where.format(folder=tmp_path, port=taken.getsockname()[1])) as address:
            assert problem(await ask(address, GET)) == 502


async def test_a_refused_connection_is_tried_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that restarts refuses them for a moment. Nothing was sent, so that holds for a POST as well."""
    real, pause = asyncio.sleep, 0.123

    async def back_by_then(delay: float) -> None:
        if delay == pause:
            await server.start_serving()
        await real(min(delay, pause / 2))

    monkeypatch.setattr(pool, "AGAIN_S", pause)
    monkeypatch.setattr("asyncio.sleep", back_by_then)
    server = await asyncio.start_server(answers_ok, "127.0.0.1", 0, start_serving=False)
    async with in_front_of(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") as address:
        request = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc"
        assert (await ask(address, request)).startswith(b"HTTP/1.1 200 ")
    server.close()


async def test_who_waits_no_longer_for_a_place_is_forgotten() -> None:
    """Where the upstream hangs and all places are taken, nothing grows."""
    settings = ProxySettings(max_connections=1, connect=0.2, first_byte=30)
    async with scripted(silent) as upstream:
        args: MiddlewareArgs = {"limiter": limiter_of(), "user_from": "header:x-api-key"}  # type: ignore[typeddict-item]
        proxy = Proxy(f"http://{upstream}", args, settings)
        async with listening(proxy) as address, connected(address) as (_, writer):
            writer.write(GET)
            while not proxy.pool._number:
                await asyncio.sleep(0.01)
            assert [problem(answer) for answer in await asyncio.gather(*[ask(address, GET) for _ in range(5)])] == [
                504
            ] * 5
            assert not proxy.pool._waiting


async def test_a_fault_while_an_answer_is_read_is_told_as_one(caplog: pytest.LogCaptureFixture) -> None:
    def fault(_: object) -> bool:
        raise ZeroDivisionError

    limiter = limiter_of(Policy("hint", "9/day", match="/**", count=fault))
    async with answering(OK.replace(b"200 OK", b"200 OK\r\nx-ratelimit-cost: 3")) as (upstream, _):
        async with in_front_of(upstream, limiter=limiter) as address:
            assert problem(await ask(address, GET)) == 502
    assert [record for record in caplog.records if record.exc_info and record.exc_info[0] is ZeroDivisionError]


async def test_no_connection_in_time_is_a_504() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [_connecting(full.getsockname()) for _ in range(8)]
        try:
            settings = ProxySettings(connect=0.2, first_byte=5)
            async with in_front_of(f"127.0.0.1:{full.getsockname()[1]}", settings) as address:
                answer = await ask(address, GET)
            assert problem(answer) == 504
            assert b"No connection to the service" in answer
        finally:
            for each in waiting:
                each.close()


@pytest.mark.parametrize(
    "begins",
    [b"transfer-encoding: chunked\r\n\r\n3\r\none\r\n", b"content-length: 6\r\n\r\none"],
    ids=["in chunks", "with a length"],
)
@pytest.mark.parametrize("how", ["closes", "resets", "hangs", "goes on with nonsense"])
async def test_half_an_answer_is_not_made_whole(begins: bytes, how: str) -> None:
    async def half(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + begins)
        await arrived.wait()
        if how == "resets":
            _reset(writer)
        elif how == "hangs":
            await reader.read()
        elif how == "goes on with nonsense":
            writer.write(b"zz\r\n")

    arrived = asyncio.Event()
    async with scripted(half) as upstream, in_front_of(upstream, ProxySettings(idle=0.3)) as address:
        async with connected(address) as (reader, writer):
            writer.write(GET)
            await reader.readuntil(b"one")
            arrived.set()
            rest = await until_gone(reader)
    assert not rest.endswith(b"0\r\n\r\n")
    assert b"HTTP/1.1" not in rest


@pytest.mark.parametrize(
    ("request_", "times"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 2),
        (b"DELETE / HTTP/1.1\r\n\r\n", 2),
        (b"POST / HTTP/1.1\r\n\r\n", 1),
        (b"PATCH / HTTP/1.1\r\n\r\n", 1),
        (b"POST / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", 1),
        (b"PUT / HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc", 1),
    ],
    ids=["GET", "DELETE", "POST", "PATCH", "POST with a body", "PUT with a body"],
)
async def test_only_what_is_safe_is_repeated(request_: bytes, times: int) -> None:
    request_ = request_.replace(b"\r\n", b"\r\nhost: a\r\nconnection: close\r\n", 1)
    async with answering(b"") as (upstream, heads), in_front_of(upstream) as address:
        assert problem(await ask(address, request_)) == 502
    assert len(heads) == times


async def test_a_kept_connection_is_used_again_and_a_lost_one_replaced() -> None:
    connections = 0

    async def two_each(reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)

    async with scripted(two_each) as upstream, in_front_of(upstream) as address:
        for _ in range(6):
            assert (await ask(address, GET)).startswith(b"HTTP/1.1 200 ")
    assert connections == 3


@pytest.mark.parametrize("begins", [b"", b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: 1\n\n"])
async def test_a_client_that_leaves_ends_it_at_the_upstream(begins: bytes) -> None:
    asked, left = asyncio.Event(), asyncio.Event()

    async def waits(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(begins)
        asked.set()
        assert await reader.read() == b""
        left.set()

    async with scripted(waits) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(GET)
            await asked.wait()
            if begins:
                await reader.readuntil(b"data: 1\n\n")
        await asyncio.wait_for(left.wait(), SOON_S)


async def test_a_client_that_leaves_ends_an_answer_to_a_request_that_is_not_read_to_its_end() -> None:
    left = asyncio.Event()

    async def events(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while not writer.transport.is_closing():
                writer.write(b"5\r\nevent\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        finally:
            left.set()

    async with scripted(events) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 50000000\r\n\r\n" + bytes(30_000_000))
            for _ in range(10):  # by then it takes no more of the upload
                await reader.readuntil(b"event")
            writer.transport.abort()
        await asyncio.wait_for(left.wait(), SOON_S)


def _reset(writer: StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _connecting(address: tuple[str, int]) -> socket.socket:
    """On its way, for as long as it takes."""
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(address)
    return one
