"""Odd shapes of requests and answers over raw sockets, bytes in and bytes out: what passes, what is refused and why.

What two readers could take for different requests is in `test_smuggling`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import StreamReader, StreamWriter

import pytest

from ratelimit.policy import Policy
from ratelimit.server.upstream import ProxySettings
from tests.http.apps import limiter_of
from tests.server.sockets import GET, OK, SOON_S, Script, answering, ask, connected, in_front_of, scripted, until_gone
from tests.server.test_connection import HANDSHAKE, WEBSOCKET, Upstream

_REST = b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
_IN_CHUNKS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n3\r\nay!\r\n0\r\n\r\n"

TARGETS = {
    "a path": (b"GET /x", b"GET /x", b"a"),
    "a query": (b"GET /x?a=1&b", b"GET /x?a=1&b", b"a"),
    "an empty query": (b"GET /x?", b"GET /x?", b"a"),
    "an empty query of the root": (b"GET /?", b"GET /?", b"a"),
    "a query that begins with ?": (b"GET /x??a?b", b"GET /x??a?b", b"a"),
    "a query byte by byte": (
        b"GET /?a=%C3%a4&&=+%20;'\"<>`{|}^\\[]%zz%",
        b"GET /?a=%C3%a4&&=+%20;'\"<>`{|}^\\[]%zz%",
        b"a",
    ),
    "a path byte by byte": (b"GET /%41'\"<>`{|}^[]%zz:@!$&()*+,=%", b"GET /%41'\"<>`{|}^[]%zz:@!$&()*+,=%", b"a"),
    "a URL in a query": (b"GET /x?u=http://b/y?z", b"GET /x?u=http://b/y?z", b"a"),
    "a URL of another host": (b"GET http://b/x?y=", b"GET /x?y=", b"b"),
    "a URL in capitals": (b"GET HTTP://B:80/x", b"GET /x", b"B:80"),
    "a URL of https": (b"GET https://b/x", b"GET /x", b"b"),
    "a URL with an IPv6 address": (b"GET http://[::1]:8/x", b"GET /x", b"[::1]:8"),
    "a URL without a path": (b"GET http://b", b"GET /", b"b"),
    "a URL with a query and no path": (b"GET http://b?q", b"GET /?q", b"b"),
    "a URL with an empty query": (b"GET http://b/x?", b"GET /x?", b"b"),
    "the whole server": (b"OPTIONS *", b"OPTIONS *", b"a"),
    "a method that is rare": (b"PROPFIND /x", b"PROPFIND /x", b"a"),
    "a method that is new": (b"QUERY /x", b"QUERY /x", b"a"),
    "TRACE": (b"TRACE /x", b"TRACE /x", b"a"),
}

UNREADABLE = {
    "a URL of another scheme": (b"GET ftp://b/x", 400, "a path, an http URL or, of OPTIONS, *"),
    "a URL with a user": (b"GET http://u:p@b/x", 400, "names a host"),
    "a URL without a host": (b"GET http:///x", 400, "a path, an http URL or, of OPTIONS, *"),
    "no URL": (b"GET b/x", 400, "percent-encode"),
    "an asterisk that is asked for": (b"GET *", 400, "of OPTIONS, *"),
    "a fragment": (b"GET /x#secret", 400, "fragment"),
    "a fragment of a query": (b"GET /x?y#secret", 400, "fragment"),
    "a fragment of a URL": (b"GET http://b/#secret", 400, "fragment"),
    "UTF-8 in a path": ("GET /grün".encode(), 400, "percent-encode"),
    "UTF-8 in a query": ("GET /?q=grün".encode(), 400, "percent-encode"),
    "Latin-1 in a path": (b"GET /gr\xfcn", 400, "percent-encode"),
    "a byte that is no letter": (b"GET /x\x80", 400, "percent-encode"),
    "a control character": (b"GET /x\x01", 400, "percent-encode"),
    "DEL": (b"GET /x\x7f", 400, "percent-encode"),
    "a method nobody knows": (b"FROB /x", 400, "method"),
    "a method in lower case": (b"get /x", 400, "upper-case"),
    "a method in mixed case": (b"Post /x", 400, "upper-case"),
    "a method that is no token": (b"G@T /x", 400, "no valid HTTP"),
    "a tab for a space": (b"GET\t/x", 400, "no valid HTTP"),
    "CONNECT": (b"CONNECT b:443", 400, "CONNECT"),
    "CONNECT with a path": (b"CONNECT /x", 400, "CONNECT"),
}


@pytest.mark.parametrize(("line", "sent", "host"), TARGETS.values(), ids=TARGETS)
async def test_a_target_arrives_as_it_was_written(line: bytes, sent: bytes, host: bytes) -> None:
    limiter = limiter_of(Policy("all", "10/day", match="/**"))
    async with answering(OK) as (upstream, heads), in_front_of(upstream, limiter=limiter) as address:
        assert (await ask(address, line + _REST)).startswith(b"HTTP/1.1 200 ")
    lines = heads[0].split(b"\r\n")
    assert lines[0] == sent + b" HTTP/1.1"
    assert [each.partition(b": ")[2] for each in lines if each.lower().startswith(b"host:")] == [host]
    await limiter.open()
    assert (await limiter.peek("ip:127.0.0.1", "all")).used == 1


@pytest.mark.parametrize(("line", "status", "why"), UNREADABLE.values(), ids=UNREADABLE)
async def test_what_cannot_be_read_is_refused_and_told_why(line: bytes, status: int, why: str) -> None:
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        head, _, body = (await ask(address, line + _REST)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    problem = json.loads(body)
    assert (problem["status"], why in problem["detail"], "secret" in problem["detail"]) == (status, True, False)
    assert heads == []


async def test_an_upstream_with_a_prefix_of_its_own() -> None:
    async with answering(OK) as (upstream, heads), in_front_of(f"http://{upstream}/app") as address:
        for line in (b"GET /x?", b"GET http://b", b"OPTIONS *"):
            await ask(address, line + _REST)
    assert [head.partition(b" HTTP")[0] for head in heads] == [b"GET /app/x?", b"GET /app/", b"OPTIONS *"]


async def test_a_handshake_may_ask_for_a_url() -> None:
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        await ask(address, HANDSHAKE.replace(b"/chat", b"http://b/chat?x", 1))
    assert heads[0].startswith(b"GET /chat?x HTTP/1.1\r\n")
    assert b"host: b\r\n" in heads[0].lower()


HOSTS = {
    "none": (b"GET http://b/ HTTP/1.1\r\nconnection: close\r\n\r\n", 400, None),
    "two": (b"GET http://b/ HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", 400, None),
    "none of HTTP/1.0": (b"GET http://b/ HTTP/1.0\r\n\r\n", 200, b"b"),
    "another of HTTP/1.0": (b"GET http://b/ HTTP/1.0\r\nhost: a\r\n\r\n", 200, b"b"),
}


@pytest.mark.parametrize(("request_", "status", "host"), HOSTS.values(), ids=HOSTS)
async def test_a_url_needs_its_host_field_all_the_same(request_: bytes, status: int, host: bytes | None) -> None:
    async with answering(OK) as (upstream, heads), in_front_of(upstream) as address:
        assert (await ask(address, request_)).startswith(b"HTTP/1.1 %d " % status)
    assert [b"host: " + host in head.lower() for head in heads if host] == [True] * (status == 200)


OLD = {
    "in chunks": (b"GET", _IN_CHUNKS, b"okay!"),
    "until the end": (b"GET", b"HTTP/1.0 200 OK\r\n\r\nokay!", b"okay!"),
    "with a length": (b"GET", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok"),
    "nothing": (b"GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    "no content": (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "to HEAD": (b"HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b""),
    "after 100": (b"GET", b"HTTP/1.1 100 Continue\r\n\r\n" + _IN_CHUNKS, b"okay!"),
    "not at all": (b"GET", b"", None),
}


@pytest.mark.parametrize("fields", [b"", b"connection: keep-alive\r\n"], ids=["", "keep-alive"])
@pytest.mark.parametrize(("method", "answer", "body"), OLD.values(), ids=OLD)
async def test_http_1_0_is_answered_without_chunks(
    method: bytes, answer: bytes, body: bytes | None, fields: bytes
) -> None:
    async with answering(answer) as (upstream, _), in_front_of(upstream) as address:
        head, _, came = (await ask(address, method + b" / HTTP/1.0\r\n" + fields + b"\r\n")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert b"\r\nconnection: close" in head
    if body is None:
        assert head.startswith(b"HTTP/1.1 502 ")
    else:
        assert came == body


async def test_half_an_answer_is_not_the_end_of_one_to_http_1_0() -> None:
    arrived = asyncio.Event()

    async def half(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await arrived.wait()

    async with scripted(half) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await reader.readuntil(b"one")
            arrived.set()
            with pytest.raises(ConnectionResetError):
                await reader.read()


_EXPECT = b"expect: 100-continue\r\n"


@pytest.mark.parametrize(
    ("request_", "continues"),
    [
        (b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 2\r\n" + _EXPECT + b"\r\nhi", True),
        (b"POST / HTTP/1.0\r\ncontent-length: 2\r\n" + _EXPECT + b"\r\nhi", False),
        (b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n" + _EXPECT + b"\r\n", False),
        (b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: 0\r\n" + _EXPECT + b"\r\n", False),
    ],
    ids=["a body", "HTTP/1.0", "GET", "no body"],
)
async def test_only_who_waits_for_it_is_told_to_continue(request_: bytes, continues: bool) -> None:
    heads = []

    async def slow(reader: StreamReader, writer: StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        if b"expect:" in heads[0].lower():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.write(OK)

    async with scripted(slow) as upstream, in_front_of(upstream) as address:
        answer = await ask(address, request_)
    assert answer.count(b"100 Continue") == int(continues)
    assert (b"expect: 100-continue" in heads[0].lower()) == continues
    assert answer.endswith(b"\r\n\r\nok")


async def test_a_handshake_of_http_1_0_is_an_ordinary_request() -> None:
    upstream = Upstream()
    async with scripted(upstream) as behind, in_front_of(behind) as address:
        answer = await ask(address, b"GET /chat HTTP/1.0\r\nhost: a\r\n" + WEBSOCKET + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not [name for name in (b"\r\nupgrade:", b"sec-websocket-key") if name in upstream.asked[0].head]


_ONE = b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\n"
_TWO = b"POST /2 HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n"
HALF_CLOSED = {
    "a request": (_ONE, [200]),
    "HTTP/1.0": (b"GET /1 HTTP/1.0\r\n\r\n", [200]),
    "a body": (_TWO + b"hi", [200]),
    "chunks": (_TWO.replace(b"content-length: 2", b"transfer-encoding: chunked") + b"2\r\nhi\r\n0\r\n\r\n", [200]),
    "two requests": (_ONE + _TWO + b"hi", [200, 200]),
    "half a request more": (_ONE + b"GET /2 HTT", [200]),
    "a body cut short": (_TWO + b"h", [400]),
    "chunks cut short": (_TWO.replace(b"content-length: 2", b"transfer-encoding: chunked") + b"2\r\nhi\r\n", [400]),
    "a request and a body cut short": (_ONE + _TWO + b"h", [200, 400]),
    "half a request": (b"GET /1 HTTP/1.1\r\nho", []),
    "nothing": (b"", []),
}


@pytest.mark.parametrize("after", [0, 0.05], ids=["at once", "after a while"])
@pytest.mark.parametrize(("requests", "statuses"), HALF_CLOSED.values(), ids=HALF_CLOSED)
async def test_who_closes_only_its_own_side_is_answered(requests: bytes, statuses: list[int], after: float) -> None:
    async def slow(reader: StreamReader, writer: StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            if b"content-length" in head.lower():
                await reader.readexactly(2)
            elif b"chunked" in head.lower():
                await reader.readuntil(b"0\r\n\r\n")
            await asyncio.sleep(after)
            writer.write(OK)

    async with scripted(slow) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(requests)
            writer.write_eof()
            answer = await reader.read()
    expected = [b"HTTP/1.1 %d " % status for status in statuses]
    assert answer.count(b"HTTP/1.1 ") == len(statuses)
    assert [line for line in expected if line not in answer] == []
    assert answer.startswith(expected[0] if expected else b"")
    assert answer.count(b"\r\n\r\nok") == statuses.count(200)


async def test_who_closes_its_side_within_an_answer_gets_the_rest() -> None:
    looked = asyncio.Event()

    async def slow(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(_IN_CHUNKS[:-13])
        await looked.wait()
        writer.write(_IN_CHUNKS[-13:])

    async with scripted(slow) as upstream, in_front_of(upstream) as address:
        async with connected(address) as (reader, writer):
            writer.write(_ONE)
            assert await reader.readuntil(b"ok\r\n")
            writer.write_eof()
            zero = await reader.readexactly(1)  # by which the proxy has looked whether its client is still there
            looked.set()
            size, body, *end = (zero + await reader.read()).split(b"\r\n")
    assert (int(size, 16), body, int(end[0], 16), end[1:]) == (3, b"ay!", 0, [b"", b""])


SECRET = b"/x?token=s3cret"


async def _reads(reader: StreamReader, writer: StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


def _says(answer: bytes) -> Script:
    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await _reads(reader, writer)
        writer.write(answer)

    return script


async def _hangs(reader: StreamReader, writer: StreamWriter) -> None:
    await reader.read()


async def _breaks_off(reader: StreamReader, writer: StreamWriter) -> None:
    await _says(b"HTTP/1.1 200 OK\r\nset-cookie: s3cret\r\ncontent-length: 10\r\n\r\ns3cret")(reader, writer)


FAILURES: dict[str, Script] = {
    "no HTTP": _says(b"s3cret and more\r\n\r\n"),
    "a bad field": _says(b"HTTP/1.1 200 OK\r\nset-cookie: s3cret\r\ns3 cret: s3cret\r\n\r\n"),
    "a control character": _says(b"HTTP/1.1 200 OK\r\nx: s3cret\x01\r\ncontent-length: 0\r\n\r\n"),
    "an odd coding": _says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: s3cret\r\n\r\n"),
    "a bad chunk": _says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\ns3cret\r\n"),
    "too long a field": _says(b"HTTP/1.1 200 OK\r\nset-cookie: " + b"s3cret" * 20_000 + b"\r\n\r\n"),
    "half a head": _says(b"HTTP/1.1 200 OK\r\nset-cookie: s3cret\r\n"),
    "nothing": _reads,
    "no answer in time": _hangs,
    "half an answer": _breaks_off,
}


@pytest.mark.parametrize("line", [b"GET", b"websocket"])
@pytest.mark.parametrize("script", [*FAILURES.values(), None], ids=[*FAILURES, "nobody there"])
async def test_no_log_holds_what_was_sent(script: Script | None, line: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Neither the query, nor a piece of the answer; whoever logs."""
    caplog.set_level(logging.INFO)
    request = (GET if line == b"GET" else HANDSHAKE).replace(b" / ", b" %b " % SECRET).replace(b"/chat", SECRET)
    settings = ProxySettings(connect=0.1, first_byte=0.3)
    async with scripted(script or _reads) as upstream:
        where = "127.0.0.1:1" if script is None else upstream
        async with in_front_of(where, settings) as address, connected(address) as (reader, writer):
            writer.write(request)
            answer = await asyncio.wait_for(until_gone(reader), SOON_S)
    assert answer.startswith((b"HTTP/1.1 502 ", b"HTTP/1.1 504 ", b"HTTP/1.1 200 "))
    told = [record.getMessage() + (record.exc_text or "") for record in caplog.records]
    assert [line for line in told if "s3cret" in line] == []
    assert [record for record in caplog.records if record.name == "ratelimit.proxy"]
