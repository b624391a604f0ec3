"""Calls: what a method is given, how what it does is told, and what is no call."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest

from ratelimit.envoy import http2
from ratelimit.envoy.grpc import MAX_CALL_S, MAX_MESSAGE, Call, GrpcError, Method, Status
from ratelimit.envoy.http2 import END_HEADERS, END_STREAM, frame
from ratelimit.envoy.service import UNREAD
from ratelimit.server.envoy import GrpcListener
from tests.envoy.wire import ECHO, Client, echo, prefixed
from tests.turns import settled

HEALTH = b"/grpc.health.v1.Health/Check"


async def forever() -> bytes:
    await asyncio.Event().wait()
    return b""


async def test_a_call_is_answered_at_once_in_one_write() -> None:
    client = Client()
    before = client.transport.writes
    client.send(client.call(1, b"one"), client.call(3, b"two"), client.call(5, b""))
    assert client.transport.writes == before + 1
    answers = client.answers()
    assert {stream: answer.message for stream, answer in answers.items()} == {1: b"one", 3: b"two", 5: b""}
    assert answers[1].headers == {b":status": b"200", b"content-type": b"application/grpc", b"grpc-status": b"0"}
    assert len(asyncio.all_tasks()) == 1


async def test_a_method_is_told_who_calls_until_when_and_with_which_metadata() -> None:
    calls: list[Call] = []

    def method(message: bytes, call: Call) -> bytes:
        calls.append(call)
        return b""

    client = Client({ECHO: method})
    now = asyncio.get_running_loop().time()
    client.send(client.call(1, b"", (b"x-key", b"7"), (b"grpc-timeout", b"20m")), client.call(3))
    assert calls[0].peer == "192.0.2.1:1234"
    assert calls[0].deadline is not None
    assert now + 0.02 <= calls[0].deadline <= asyncio.get_running_loop().time() + 0.02
    assert (b"x-key", b"7") in calls[0].metadata
    assert not [name for name, _ in calls[0].metadata if name.startswith(b":")]
    assert calls[1].deadline is None
    assert (b"x-key", b"7") not in calls[1].metadata


@pytest.mark.parametrize(
    ("text", "seconds"), [("1H", 3600), ("2M", 120), ("3S", 3), ("40m", 0.04), ("50000u", 0.05), ("99999999n", 0.1)]
)
async def test_timeouts_have_units(text: str, seconds: float) -> None:
    calls: list[Call] = []

    def method(message: bytes, call: Call) -> bytes:
        calls.append(call)
        return b""

    client = Client({ECHO: method})
    since = asyncio.get_running_loop().time()
    client.send(client.call(1, b"", (b"grpc-timeout", text.encode())))
    assert calls[0].deadline is not None
    assert since + seconds - 1e-6 <= calls[0].deadline <= asyncio.get_running_loop().time() + seconds


async def test_a_method_may_be_awaited_while_others_answer() -> None:
    ready = asyncio.Event()

    async def wait(message: bytes) -> bytes:
        await ready.wait()
        return b"late " + message

    client = Client({ECHO: lambda message, call: wait(message) if message else b"early"})
    client.send(client.call(1, b"a"), client.call(3, b""), client.call(5, b"b"))
    assert {stream: answer.message for stream, answer in client.answers().items()} == {3: b"early"}
    before = client.transport.writes
    ready.set()
    await settled()
    assert {stream: answer.message for stream, answer in client.answers().items()} == {1: b"late a", 5: b"late b"}
    assert client.transport.writes == before + 1


# --- how a call ends that has no answer -------------------------------------------------------------------------------


@pytest.mark.parametrize("awaited", [False, True], ids=["at once", "awaited"])
@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (GrpcError(Status.INVALID_ARGUMENT, "no domain"), 3, b"no domain"),
        (GrpcError(Status.UNAVAILABLE), 14, b""),
        (GrpcError(Status.UNKNOWN, "100 %\u00e4\n"), 2, b"100 %25%C3%A4%0A"),
        (RuntimeError("s3cret"), 13, b"internal error"),
    ],
    ids=["an argument", "no message", "a message to be escaped", "a bug"],
)
async def test_an_error_is_a_status(
    error: Exception, status: int, text: bytes, awaited: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def later() -> bytes:
        raise error

    def method(message: bytes, call: Call) -> Any:
        if awaited:
            return later()
        raise error

    client = Client({ECHO: method})
    client.send(client.call(1))
    await settled()
    answer = client.answers()[1]
    assert (answer.message, answer.status, answer.headers[b"grpc-message"]) == (None, status, text)
    assert ("a call of 192.0.2.1:1234 failed" in caplog.text) is isinstance(error, RuntimeError)
    client.send(client.call(3))
    assert client.transport.state == "open", "other calls go on"
    await client.lose()


async def test_a_long_message_is_cut() -> None:
    def method(message: bytes, call: Call) -> bytes:
        raise GrpcError(Status.UNKNOWN, "x" * 100_000)

    client = Client({ECHO: method})
    client.send(client.call(1))
    assert len(client.answers()[1].text) == 1024


@pytest.mark.parametrize(
    ("changed", "more", "headers"),
    [
        ({"method": b"GET"}, (), {b":status": b"405", b"allow": b"POST"}),
        ({"path": b"/test.Service/Other"}, (), {b":status": b"200", b"grpc-status": b"12"}),
        ({"path": b"test"}, (), {b":status": b"200", b"grpc-status": b"12"}),
        ({}, ((b"grpc-timeout", b"1"),), {b":status": b"200", b"grpc-status": b"13"}),
        ({}, ((b"grpc-timeout", b"123456789m"),), {b":status": b"200", b"grpc-status": b"13"}),
        ({}, ((b"grpc-timeout", b"0m"),), {b":status": b"200", b"grpc-status": b"4"}),
        ({}, ((b"content-type", b"text/html"),), {b":status": b"415"}),
        ({}, ((b"content-type", b"application/grpcx"),), {b":status": b"415"}),
        ({}, ((b"content-type", b"application/grpc-web"),), {b":status": b"415"}),
    ],
)
async def test_what_is_no_call(changed: Any, more: Any, headers: dict[bytes, bytes]) -> None:
    client = Client()
    client.send(client.call(1, b"hello", *more, **changed), client.head(3, *more, **changed), client.call(5))
    answers = client.answers()
    assert {name: answers[1].headers.get(name) for name in headers} == headers
    assert answers[3] == answers[1], "it is answered without waiting for the message"
    assert answers[5].message == b"hello"


@pytest.mark.parametrize("content_type", [b"application/grpc+proto", b"application/grpc;charset=utf-8"])
async def test_content_types_of_grpc(content_type: bytes) -> None:
    client = Client()
    client.send(client.call(1, b"hello", (b"content-type", content_type)))
    assert client.answers()[1].message == b"hello"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"", 13, "the request ends before its message"),
        (b"\0\0\0", 13, "the request ends before its message"),
        (prefixed(b"hello")[:-1], 13, "the request ends before its message"),
        (prefixed(b"hello") + prefixed(b""), 12, "more than one message"),
        (prefixed(b"hello") + b"x", 12, "more than one message"),
        (b"\x01" + prefixed(b"hello")[1:], 12, "compressed messages are not accepted"),
        (b"\x02", 12, "compressed messages are not accepted"),
        ((MAX_MESSAGE + 1).to_bytes(5, "big"), 8, "a message of 65531 bytes, where 65530 are the most"),
        (b"\0\xff\xff\xff\xff", 8, "a message of 4294967295 bytes, where 65530 are the most"),
    ],
)
async def test_a_request_is_one_message(body: bytes, status: int, text: str) -> None:
    client = Client()
    client.send(client.head(1), frame(http2.DATA, END_STREAM, 1, body), client.head(3), frame(http2.DATA, 0, 3, body))
    answers = client.answers()
    assert (answers[1].status, answers[1].text) == (status, text)
    if status == 13:
        assert 3 not in answers, "the rest may come"
    else:
        assert answers[3] == answers[1], "nothing that could come makes it right"
    if "compressed" in text:
        assert answers[1].headers[b"grpc-accept-encoding"] == b"identity"


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, MAX_MESSAGE])
async def test_messages_up_to_the_largest(size: int) -> None:
    client = Client()
    client.send(client.call(1, bytes(size)))
    assert client.answers()[1].message == bytes(size)


async def test_a_message_may_come_in_any_pieces() -> None:
    client = Client()
    pieces = [frame(http2.DATA, 0, 1, bytes([byte])) for byte in prefixed(b"hello" * 300)]
    client.send(client.head(1), *pieces, frame(http2.DATA, END_STREAM, 1))
    assert client.answers()[1].message == b"hello" * 300


async def test_an_answer_before_the_end_of_the_request_tells_the_client_to_stop() -> None:
    client = Client()
    client.send(client.head(1), frame(http2.DATA, 0, 1, b"\x01"))
    assert client.said() == ["HEADERS 1 END", "RST_STREAM 1 NO_ERROR"]
    client.send(frame(http2.DATA, 0, 1, bytes(1000)), frame(http2.DATA, END_STREAM, 1), client.call(3))
    assert client.said() == ["HEADERS 3", "DATA 3", "HEADERS 3 END"], "what was on its way is ignored"


# --- deadlines, and callers that are gone -----------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [b"20m", b"20000u"])
async def test_the_deadline_is_answered_within_it(timeout: bytes) -> None:
    client = Client({ECHO: lambda message, call: forever()})
    loop = asyncio.get_running_loop()
    since = loop.time()
    client.send(client.call(1, b"hello", (b"grpc-timeout", timeout)))
    while not (answers := client.answers()):
        await asyncio.sleep(0.0005)
    assert loop.time() - since > 0.015
    assert (answers[1].status, answers[1].text) == (4, "no answer in time")
    assert client.protocol.streams == {}
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1, "what was awaited is cancelled"


@pytest.mark.parametrize("timeout", [None, 0.0004, 0.02, 1.0, 3600.0])
async def test_a_timer_is_never_later_than_the_deadline_and_little_earlier(timeout: float | None) -> None:
    client = Client()
    bound = MAX_CALL_S if timeout is None else min(max(timeout, 0.001), MAX_CALL_S)
    assert 0.9 * bound < client.state.timer(MAX_CALL_S if timeout is None else timeout).deadline <= bound


@pytest.mark.parametrize("how", ["reset", "lost", "half closed"])
async def test_a_call_is_cancelled_that_nobody_waits_for(how: str, caplog: pytest.LogCaptureFixture) -> None:
    cancelled = []

    async def method() -> bytes:
        try:
            return await forever()
        finally:
            cancelled.append(1)

    client = Client({ECHO: lambda message, call: method()})
    client.send(client.call(1))
    await asyncio.sleep(0)
    if how == "reset":
        client.send(frame(http2.RST_STREAM, 0, 1, bytes(4)))
    elif how == "lost":
        client.protocol.connection_lost(None)
    else:
        client.protocol.eof_received()
    await settled()
    assert cancelled == [1]
    assert client.said() == []
    assert caplog.text == ""


async def test_a_call_that_cancels_itself_is_answered() -> None:
    async def method() -> bytes:
        raise asyncio.CancelledError

    client = Client({ECHO: lambda message, call: method()})
    client.send(client.call(1))
    await settled()
    assert client.answers()[1].status == 1


# --- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer"), [(b"", b"\x08\x01"), (b"test.Service", b"\x08\x01"), (b"other", 5), (b"x" * 200, 5)]
)
async def test_health_by_service(name: bytes, answer: bytes | int) -> None:
    client = Client()
    client.send(client.call(1, b"\x0a" + bytes([len(name) % 128]) + name if name else b"", path=HEALTH))
    got = client.answers()[1]
    assert (got.message if got.message is not None else got.status) == answer


@pytest.mark.parametrize("message", [b"\x0a", b"\x0a\x05abc", b"\x12\x03abc", b"\x0a\x01ab"])
async def test_a_health_request_that_is_none(message: bytes) -> None:
    client = Client()
    client.send(client.call(1, message, path=HEALTH))
    assert client.answers()[1].status == 3


async def test_while_draining_it_does_not_serve() -> None:
    client = Client()
    client.state.draining = True
    client.send(client.call(1, b"", path=HEALTH), client.call(3))
    answers = client.answers()
    assert (answers[1].message, answers[3].message) == (b"\x08\x02", b"hello")


# --- over sockets, with a client that is not ours ---------------------------------------------------------------------


@asynccontextmanager
async def serving(methods: Mapping[bytes, Method]) -> AsyncIterator[tuple[GrpcListener, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        listener = GrpcListener(methods, listening)
        await listener.start()
        try:
            yield listener, "127.0.0.1:{}".format(*listening.getsockname()[1:])
        finally:
            await listener.stop()
            await asyncio.sleep(0.01)


def call_of(channel: grpc.aio.Channel, path: bytes = ECHO) -> Any:
    return channel.unary_unary(path.decode())


async def slowly(message: bytes) -> bytes:
    await asyncio.sleep(0.3)
    return message


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_grpcio_is_answered() -> None:
    methods: dict[bytes, Method] = {ECHO: echo, b"/test.Service/Slow": lambda message, call: slowly(message)}
    async with serving(methods) as (_, address), grpc.aio.insecure_channel(address) as channel:
        assert await call_of(channel)(b"hello", timeout=30) == b"hello"
        assert await call_of(channel)(bytes(60_000), timeout=30) == bytes(60_000)
        many = [call_of(channel)(str(n).encode(), timeout=60) for n in range(500)]
        assert await asyncio.gather(*many) == [str(n).encode() for n in range(500)]
        assert await call_of(channel)(bytes(1_000_000), timeout=30) == UNREAD, "an error would let it pass"
        assert await call_of(channel, HEALTH)(b"", timeout=30) == b"\x08\x01"
        assert await call_of(channel, b"/test.Service/Slow")(b"late", timeout=30) == b"late"
        for path, message, timeout, code in [
            (b"/test.Service/Other", b"", 30, grpc.StatusCode.UNIMPLEMENTED),
            (b"/grpc.health.v1.Health/Watch", b"", 30, grpc.StatusCode.UNIMPLEMENTED),
            (b"/test.Service/Slow", b"", 0.05, grpc.StatusCode.DEADLINE_EXCEEDED),
        ]:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call_of(channel, path)(message, timeout=timeout)
            assert failed.value.code() == code
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call_of(channel)(bytes(10_000), timeout=30, compression=grpc.Compression.Gzip)
        assert "compressed" in str(failed.value.details())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_draining_cuts_no_call_and_grpcio_goes_elsewhere() -> None:
    begun = asyncio.Event()

    async def held(message: bytes) -> bytes:
        begun.set()
        return await slowly(message)

    async with serving({ECHO: lambda message, call: held(message)}) as (listener, address):
        async with grpc.aio.insecure_channel(address) as channel:
            under_way = asyncio.ensure_future(call_of(channel)(b"late", timeout=30))
            await begun.wait()
            await asyncio.wait_for(listener.drain(linger=0.05, grace=600), 60)
            assert await under_way == b"late"
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await call_of(channel)(b"", timeout=30)
            assert failed.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_draining_answers_who_comes_meanwhile_and_cuts_off_what_does_not_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving({ECHO: lambda message, call: forever() if message else b"here"}) as (listener, address):
        host, port = address.split(":")
        draining = asyncio.ensure_future(listener.drain(linger=300, grace=600))
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection(host, int(port))
        client = Client()  # for its encoder
        writer.write(http2.PREFACE + frame(http2.SETTINGS, 0, 0) + client.call(1, b"") + client.call(3, b"x"))
        assert (await reader.readuntil(b"here")).endswith(b"here")
        draining.cancel()
        await listener.drain(linger=0, grace=0.05)
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert "1 calls were not finished in time" in caplog.text


async def test_time_goes_on_for_every_connection() -> None:
    async with serving({ECHO: echo}) as (listener, address):
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(http2.PREFACE + frame(http2.SETTINGS, 0, 0) + frame(http2.PING, 0, 0, bytes(8)) * 100)
        await reader.readuntil(frame(http2.PING, 1, 0, bytes(8)) * 100)
        (connection,) = listener._state.connections
        before = connection._allowance
        assert before < http2.ALLOWANCE - 100
        while connection._allowance == before:
            await asyncio.sleep(0.05)
        writer.close()


async def test_a_client_that_reads_nothing_is_kept_in_little_memory() -> None:
    async with serving({ECHO: lambda message, call: bytes(1000)}) as (listener, address):
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.setblocking(False)
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
            client = Client()
            wide = frame(http2.SETTINGS, 0, 0, bytes.fromhex("00047fffffff")) + frame(8, 0, 0, b"\x7f\xff\0\0")
            first, block = client.call(1), client.head(3)[9:]
            calls = [
                frame(http2.HEADERS, END_HEADERS, stream, block) + frame(http2.DATA, END_STREAM, stream, bytes(5))
                for stream in range(3, 200_000, 2)
            ]
            left = memoryview(b"".join((http2.PREFACE, wide, first, *calls)))
            refused = 0
            while left and refused < 100:
                try:
                    left = left[slow.send(left) :]
                    refused = 0
                except BlockingIOError:
                    refused += 1
                    await asyncio.sleep(0.005)
            (connection,) = listener._state.connections
            assert left, "it is not read any more"
            assert connection._transport.get_write_buffer_size() < 10 * 2**20
