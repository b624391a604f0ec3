"""Bodies on their way: no faster than they are taken, in bounded memory, and not before the upstream wants them."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from typing import Never

import pytest

from ratelimit import MemoryStore, Policy, UsageLog
from ratelimit.server import proxy
from ratelimit.server.upstream import ProxySettings
from tests.http.apps import limiter_of
from tests.server.sockets import (
    GET,
    OK,
    SOON_S,
    answering,
    ask,
    connected,
    in_front_of,
    scripted,
    until_gone,
)

MB = 1 << 20
_EXPECTING = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
MOST_UNDERWAY = 20 * MB
ALL = 30 * MB


async def test_an_upload_waits_for_an_upstream_that_does_not_read() -> None:
    go_on = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go_on.wait()
        await reader.readexactly(ALL)
        writer.write(OK)

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (ALL))
            sent = await fill(writer, ALL)
            assert sent < MOST_UNDERWAY
            go_on.set()
            while sent < ALL:
                writer.write(bytes(MB))
                await writer.drain()
                sent += MB
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")


async def answer_at_length(writer: StreamWriter, stuck: asyncio.Future[int]) -> None:
    """30 MB. `stuck` is told how many bytes had been taken when no more were for a while."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (ALL))
    sent = await fill(writer, ALL)
    stuck.set_result(sent)
    while sent < ALL:
        writer.write(bytes(MB))
        await writer.drain()
        sent += MB


async def test_a_download_waits_for_a_client_that_does_not_read() -> None:
    stuck: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await answer_at_length(writer, stuck)

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            assert await stuck < MOST_UNDERWAY
            assert len(await reader.read()) == ALL


async def test_a_connection_whose_answer_was_held_back_is_read_again() -> None:
    """While its units went back, nothing more was read from it."""
    limiter = limiter_of(Policy("one", "5/day", match="/**", count="success"))

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno")

    async with scripted(script) as upstream, in_front_of(upstream, limiter=limiter) as address:
        for _ in range(7):
            assert (await ask(address, GET)).endswith(b"\r\n\r\nno")


@pytest.mark.parametrize("met", [True, False])
async def test_an_expectation_is_met_by_the_upstream_or_for_it(met: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy, "CONTINUE_S", 600 if met else 0.05)
    heads = []

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if met:
            writer.write(_CONTINUE)
        assert await reader.readexactly(5) == b"hello"
        writer.write(OK)

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(_EXPECTING)
            assert await reader.readuntil(b"\r\n\r\n") == _CONTINUE
            writer.write(b"hello")
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    assert heads[0].lower().count(b"expect: 100-continue") == 1


async def test_an_upstream_that_refuses_never_gets_the_body() -> None:
    rest = bytearray()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        rest.extend(await reader.read())

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        answer = await ask(address, _EXPECTING)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert rest == b""


async def test_a_refusal_by_a_limit_comes_before_the_body() -> None:
    limiter = limiter_of(Policy("one", "1/day", match="/**"))
    await limiter.check("ip:127.0.0.1", "one")

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        raise AssertionError("the upstream was asked")

    async with scripted(script) as upstream, in_front_of(upstream, limiter=limiter) as address:
        assert (await ask(address, _EXPECTING)).startswith(b"HTTP/1.1 429 ")


async def test_nonsense_in_the_rest_of_a_body_that_is_answered_is_no_request(caplog: pytest.LogCaptureFixture) -> None:
    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await reader.read()

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegin\r\n")
            await reader.readuntil(b"\r\n\r\nbig")
            writer.write(b"zz\r\n")
            assert await until_gone(reader) == b""
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_client_that_does_not_finish_is_told_so() -> None:
    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.read()

    async with scripted(script) as upstream, in_front_of(upstream, ProxySettings(idle=0.2)) as address:
        answer = await ask(address, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nbegin")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("framing", [b"content-length: 10", b"transfer-encoding: chunked"])
async def test_a_client_that_leaves_in_the_middle_ends_it_at_the_upstream(framing: bytes) -> None:
    received = bytearray()
    begun, left = asyncio.Event(), asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        while piece := await reader.read(1000):
            received.extend(piece)
            if b"begin" in received:
                begun.set()
        left.set()

    async with scripted(script) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (_, writer):
            begin = b"5\r\nbegin\r\n" if b"chunked" in framing else b"begin"
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\n" + framing + b"\r\n\r\n" + begin)
            await begun.wait()
        await asyncio.wait_for(left.wait(), SOON_S)
    assert not received.endswith(b"0\r\n\r\n")


class BrokenLog(UsageLog):
    """It has a bug."""

    def _accept(self, *args: object, **options: object) -> Never:
        raise RuntimeError("a bug")


async def test_a_log_that_fails_spoils_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    limiter = limiter_of(Policy("api", "9/day", match="/**"))
    async with (
        answering(OK) as (upstream, _),
        in_front_of(upstream, limiter=limiter, usage=BrokenLog(MemoryStore())) as address,
    ):
        assert (await ask(address, GET)).endswith(b"\r\n\r\nok")
    assert "a usage event could not be kept" in caplog.text


async def test_an_event_has_the_id_that_the_upstream_and_the_client_see() -> None:
    limiter, store = limiter_of(Policy("api", "9/day", match="/**")), MemoryStore()
    async with (
        UsageLog(store) as usage,
        answering(OK) as (upstream, asked),
        in_front_of(upstream, limiter=limiter, usage=usage) as address,
    ):
        answers = [await ask(address, GET), await ask(address, GET.replace(b"\r\n", b"\r\nx-request-id: r-1\r\n", 1))]
        await usage.flush()
    ids = [event.request_id for event in store.events]
    assert ids[1] == "r-1"
    for request_id, answer, request in zip(ids, answers, asked, strict=True):
        assert request_id is not None
        assert f"x-request-id: {request_id}".encode() in answer.lower()
        assert f"x-request-id: {request_id}".encode() in request.lower()


async def test_a_count_function_that_fails_is_a_fault_and_leaves_nothing_open(caplog: pytest.LogCaptureFixture) -> None:
    def count(response: object) -> bool:
        raise RuntimeError("a bug")

    limiter = limiter_of(Policy("api", "9/day", match="/**", count=count))
    async with answering(OK) as (upstream, _):
        async with in_front_of(upstream, limiter=limiter) as address:
            assert (await ask(address, GET)).startswith(b"HTTP/1.1 502 ")
    assert "could not be settled" in caplog.text
    assert "cut off" not in caplog.text


async def fill(writer: StreamWriter, size: int) -> int:
    """Write until nothing more is taken for a while; how much it was."""
    sent = 0
    while sent < size:
        writer.write(bytes(MB))
        sent += MB
        try:
            async with asyncio.timeout(0.2):
                await writer.drain()
        except TimeoutError:
            break
    return sent
