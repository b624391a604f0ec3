"""The smuggling table: each shape of bytes that two readers could take for different messages, and the answer to it.

On the way in: whatever a client writes, the upstream reads what the row says and not a request more, framed so that
there is one way to read it. On the way back: whatever an upstream writes, a client gets the answer to its own request,
whole or visibly broken, and nobody gets a piece of another's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from asyncio import StreamWriter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.http.spellings import DOTTED, UNCLEAR
from tests.server.processes import QUICK, Served, served
from tests.server.sockets import connected, scripted, until_gone
from tests.server.strict import Message, NotStrict, Recorder, parse_answers

pytestmark = [pytest.mark.process, pytest.mark.asyncio(loop_scope="module")]

_GET = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
_POST = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
_KEPT = b"POST / HTTP/1.1\r\nhost: a\r\n"
_CHUNKED = _POST + b"transfer-encoding: chunked\r\n\r\n"
_SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: a\r\nx-api-key: mallory\r\n\r\n"
WEBSOCKET = (
    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
_H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"


class Behind(NamedTuple):
    """The sidecar, a program of its own, and the upstream that it stands in front of."""

    service: Served
    upstream: Recorder
    answers: dict[bytes, tuple[bytes, ...]]
    """What is written to a request of this target, piece by piece; by default the target."""

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.service.port}"

    async def ask(self, *pieces: bytes) -> bytes:
        """All that comes back, with a moment between the pieces."""
        async with connected(self.address) as (reader, writer):
            for number, piece in enumerate(pieces):
                await asyncio.sleep(0.01 * bool(number))
                writer.write(piece)
            return await until_gone(reader)

    async def own_answer(self, target: bytes) -> int:
        """What is left of the quota, by the answer to this one; which is to this one."""
        raw = await self.ask(b"GET %b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % target)
        (answer,) = await parse_answers(raw, [b"GET"])
        assert (answer.status, answer.body) == (200, target)
        left = re.search(rb";r=(\d+)", answer.values(b"ratelimit")[0])
        assert left is not None
        return int(left[1])


@pytest.fixture
def behind(started: Behind) -> Behind:
    """What was wrong in one row is not held against the next."""
    started.upstream.seen.clear()
    started.upstream.faults.clear()
    return started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def started() -> AsyncIterator[Behind]:
    answers: dict[bytes, tuple[bytes, ...]] = {}

    async def early(request: Message, writer: StreamWriter) -> bool:
        await asyncio.sleep(0.3 * request.target.startswith(b"/slow"))
        if request.values(b"expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.target.startswith(b"/early"):
            for piece in answers[request.target]:
                writer.write(piece)
                await asyncio.sleep(0.03)
        return False

    async def answer(request: Message, writer: StreamWriter) -> bool:
        if request.target.startswith(b"/early"):
            return False
        whole = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(request.target)
        pieces = answers.get(request.target, (whole + request.target * (request.method != b"HEAD"),))
        for number, piece in enumerate(pieces):
            await asyncio.sleep(0.03 * bool(number))
            if piece is _CLOSE:
                return False
            writer.write(piece)
        return True

    upstream = Recorder(answer, early)
    async with scripted(upstream) as address:
        async with served("--upstream", f"http://{address}", *QUICK, "--access-log", "off") as service:
            yield Behind(service, upstream, answers)


REFUSED = {
    "two lengths": _POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabc",
    "a length twice": _POST + b"content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
    "a list of lengths": _POST + b"content-length: 3, 3\r\n\r\nabc",
    "a signed length": _POST + b"content-length: +3\r\n\r\nabc",
    "a negative length": _POST + b"content-length: -3\r\n\r\nabc",
    "a hexadecimal length": _POST + b"content-length: 0x3\r\n\r\nabc",
    "a fractional length": _POST + b"content-length: 3.0\r\n\r\nabc",
    "a length and something": _POST + b"content-length: 3 4\r\n\r\nabc",
    "a length of underscores": _POST + b"content-length: 1_0\r\n\r\nabc",
    "no length": _POST + b"content-length: \r\n\r\nabc",
    "a length that overflows": _POST + b"content-length: 99999999999999999999\r\n\r\nabc",
    "a length of 2^63": _POST + b"content-length: 9223372036854775808\r\n\r\nabc",
    "a length of 2^64": _POST + b"content-length: 18446744073709551619\r\n\r\nabc",
    "a length, then chunked": _POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, then a length": _POST + b"transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    "chunked and a length, in a GET": _GET + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n",
    "two codings": _POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
    "chunked by two fields": _POST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": _POST + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "nearly chunked": _POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked and a letter": _POST + b"transfer-encoding: chunkedx\r\n\r\n0\r\n\r\n",
    "chunked in quotes": _POST + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "chunked first": _POST + b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunked behind a vertical tab": _POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "no coding": _POST + b"transfer-encoding: \r\n\r\n0\r\n\r\n",
    "chunked by HTTP/1.0": b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded field": _GET + b"x-a: 1\r\n folded\r\n\r\n",
    "a folded coding": _POST + b"transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "a folded length": _POST + b"content-length:\r\n 3\r\n\r\nabc",
    "a fold before the first field": b"GET / HTTP/1.1\r\n host: a\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a space before the colon": _GET + b"x-a : 1\r\n\r\n",
    "a space before the colon of a length": _POST + b"content-length : 3\r\n\r\nabc",
    "a tab before the colon of a coding": _POST + b"transfer-encoding\t: chunked\r\n\r\n0\r\n\r\n",
    "no colon": _GET + b"x-a\r\n\r\n",
    "no name": _GET + b": 1\r\n\r\n",
    "a bracket in a name": _GET + b"x(a): 1\r\n\r\n",
    "a slash in a name": _GET + b"x/a: 1\r\n\r\n",
    "Latin-1 in a name": _GET + b"x-\xe4: 1\r\n\r\n",
    "bare LF throughout": b"GET / HTTP/1.1\nhost: a\nconnection: close\n\n",
    "one bare LF": b"GET / HTTP/1.1\r\nhost: a\nconnection: close\r\n\r\n",
    "a bare LF behind the request line": b"GET / HTTP/1.1\nhost: a\r\nconnection: close\r\n\r\n",
    "a bare LF at the end": _GET + b"\n",
    "a bare CR": _GET + b"x-a: 1\rx-b: 2\r\n\r\n",
    "a bare CR at the end": _GET + b"x-a: 1\r\r\n\r\n",
    "NUL in a value": _GET + b"x-a: 1\x002\r\n\r\n",
    "NUL in a name": _GET + b"x\x00a: 1\r\n\r\n",
    "NUL in a length": _POST + b"content-length: 3\x00\r\n\r\nabc",
    "a control character in a value": _GET + b"x-a: 1\x08\r\n\r\n",
    "a pseudo field": _GET + b":path: /x\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
    "no host, but a URL": b"GET http://a/ HTTP/1.1\r\nconnection: close\r\n\r\n",
    "two hosts": _GET + b"host: b\r\n\r\n",
    "a host twice": _GET + b"host: a\r\n\r\n",
    "two hosts and a URL": b"GET http://a/ HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n",
    "a host with a path": b"GET / HTTP/1.1\r\nhost: a/b\r\nconnection: close\r\n\r\n",
    "a host with a user": b"GET / HTTP/1.1\r\nhost: b@a\r\nconnection: close\r\n\r\n",
    "two hosts in one": b"GET / HTTP/1.1\r\nhost: a, b\r\nconnection: close\r\n\r\n",
    "a URL with a user": b"GET http://a@b/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a target of no path": b"GET * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a fragment": b"GET /#x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    **{path: _GET.replace(b" / ", b" %b " % path.encode()) + b"\r\n" for path in (*DOTTED, *UNCLEAR)},
    "bytes in a target": b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n",
    "a space in a target": b"GET /a b HTTP/1.1\r\nhost: a\r\n\r\n",
    "a space at the end of the line": b"GET / HTTP/1.1 \r\nhost: a\r\nconnection: close\r\n\r\n",
    "a tab for a space": b"GET\t/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a space before the method": b" GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "CR in a target": b"GET /a\rb HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "NUL in a target": b"GET /a\x00b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a method that is no token": b"G@T / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "no target": b"GET HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "a protocol in lower case": b"GET / http/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "another protocol": b"GET / HTTQ/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03aaaaaaaaaaaaa",
    "an answer": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
}
"""Answered with 400, and nobody else hears of them."""

OTHERWISE_REFUSED = {
    "HTTP/0.9": (b"GET /\r\n\r\n", 505),
    "a request in a target": (b"GET /a\r\nx: b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 505),
    "HTTP/2": (b"GET / HTTP/2.0\r\nhost: a\r\nconnection: close\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nhost: a\r\nconnection: close\r\n\r\n", 505),
    "another coding": (_POST + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "CONNECT": (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n" + _SMUGGLED, 400),
    "an unknown method": (b"FROB / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400),
    "a method in lower case": (b"get / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 400),
    "a field of 100 KB": (_GET + b"x-big: " + b"a" * 100_000 + b"\r\n\r\n", 431),
    "10,000 fields": (_GET + b"x-some: b\r\n" * 10_000 + b"\r\n", 431),
    "a target of 100 KB": (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431),
}
"""Refused as well, by another status."""

BROKEN = {
    "no chunk size": _CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n",
    "an empty chunk size": _CHUNKED + b"\r\nabc\r\n0\r\n\r\n",
    "a prefixed chunk size": _CHUNKED + b"0x3\r\nabc\r\n0\r\n\r\n",
    "a signed chunk size": _CHUNKED + b"+3\r\nabc\r\n0\r\n\r\n",
    "a negative chunk size": _CHUNKED + b"-3\r\nabc\r\n0\r\n\r\n",
    "a space before a chunk size": _CHUNKED + b" 3\r\nabc\r\n0\r\n\r\n",
    "a chunk size that overflows": _CHUNKED + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "a chunk size of 2^64 + 3": _CHUNKED + b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "chunks with bare LF": _CHUNKED + b"3\nabc\n0\n\n",
    "a bare LF behind a chunk size": _CHUNKED + b"3\nabc\r\n0\r\n\r\n",
    "a bare LF behind a chunk": _CHUNKED + b"3\r\nabc\n0\r\n\r\n",
    "an extension with a bare LF": _CHUNKED + b"3;a\nb\r\nabc\r\n0\r\n\r\n",
    "an extension with NUL": _CHUNKED + b"3;a\x00\r\nabc\r\n0\r\n\r\n",
    "a chunk longer than it says": _CHUNKED + b"3\r\nabcX0\r\n\r\n",
    "a chunk shorter than it says": _CHUNKED + b"5\r\nabc\r\n0\r\n\r\n",
    "a trailer without a colon": _CHUNKED + b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n",
    "a length for a trailer": _CHUNKED + b"3\r\nabc\r\n0\r\ncontent-length: 9\r\n\r\n",
    "a coding for a trailer": _CHUNKED + b"3\r\nabc\r\n0\r\ntransfer-encoding: chunked\r\n\r\n",
    "a trailer with a bare LF": _CHUNKED + b"3\r\nabc\r\n0\r\nx-a: 1\nx-b: 2\r\n\r\n",
}
"""Heads that are fine with bodies that are none: answered with 400, and never an end of a request at the upstream."""

_TAKEN = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
PASSED: dict[str, tuple[bytes, list[tuple[bytes, bytes, bytes]]]] = {
    "a length": (_POST + b"content-length: 3\r\n\r\nabc", [(b"POST", b"/", b"abc")]),
    "a length with zeros": (_POST + b"content-length: 0003\r\n\r\nabc", [(b"POST", b"/", b"abc")]),
    "a length with spaces around it": (_POST + b"content-length:   3  \r\n\r\nabc", [(b"POST", b"/", b"abc")]),
    "a length of a GET": (_GET + b"content-length: 3\r\n\r\nabc", [(b"GET", b"/", b"abc")]),
    "a length of 0": (_POST + b"content-length: 0\r\n\r\n", [(b"POST", b"/", b"")]),
    "neither": (_POST + b"\r\n", [(b"POST", b"/", b"")]),
    "chunks": (_CHUNKED + b"3\r\nabc\r\n0\r\n\r\n", [(b"POST", b"/", b"abc")]),
    "chunks of a GET": (_GET + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", [(b"GET", b"/", b"abc")]),
    "chunked in capitals": (_POST + b"Transfer-Encoding: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n", [(b"POST", b"/", b"a")]),
    "chunks with extensions": (_CHUNKED + b'3;a=b;c="d"\r\nabc\r\n0;x\r\n\r\n', [(b"POST", b"/", b"abc")]),
    "chunk sizes with zeros": (_CHUNKED + b"0003\r\nabc\r\n000\r\n\r\n", [(b"POST", b"/", b"abc")]),
    "empty lines first": (b"\r\n\r\n" + _GET + b"\r\n", [(b"GET", b"/", b"")]),
    "a request in a body": (_POST + b"content-length: 55\r\n\r\n" + _SMUGGLED, [(b"POST", b"/", _SMUGGLED)]),
    "a request in a chunk": (
        _CHUNKED + b"37\r\n" + _SMUGGLED + b"\r\n0\r\n\r\n",
        [(b"POST", b"/", _SMUGGLED)],
    ),
    "the end of chunks in a body": (
        _POST + b"content-length: 60\r\n\r\n0\r\n\r\n" + _SMUGGLED,
        [(b"POST", b"/", b"0\r\n\r\n" + _SMUGGLED)],
    ),
    "a request behind the last one": (_GET + b"\r\n" + _SMUGGLED, [(b"GET", b"/", b"")]),
    "a request behind a body, the last one": (
        _POST + b"content-length: 3\r\n\r\nabc" + _SMUGGLED,
        [(b"POST", b"/", b"abc")],
    ),
    "nonsense behind a request": (_KEPT + b"content-length: 3\r\n\r\nabcNONSENSE\r\n\r\n", [(b"POST", b"/", b"abc")]),
    "two requests": (
        _KEPT + b"content-length: 3\r\n\r\nabc" + _GET.replace(b" / ", b" /two ") + b"\r\n",
        [(b"POST", b"/", b"abc"), (b"GET", b"/two", b"")],
    ),
    "two requests, chunks first": (
        _KEPT + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + _GET.replace(b" / ", b" /two ") + b"\r\n",
        [(b"POST", b"/", b""), (b"GET", b"/two", b"")],
    ),
    "a length left to the connection": (
        _POST.replace(b"close", b"close, content-length") + b"content-length: 3\r\n\r\nabc",
        [(b"POST", b"/", b"abc")],
    ),
    "a coding left to the connection": (
        _POST.replace(b"close", b"close, transfer-encoding") + b"transfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
        [(b"POST", b"/", b"a")],
    ),
    "a disguised length": (_GET + b"content_length: 3\r\n\r\n", [(b"GET", b"/", b"")]),
    "a disguised coding": (_GET + b"transfer_encoding: chunked\r\n\r\n", [(b"GET", b"/", b"")]),
    "two spaces": (b"GET  / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", [(b"GET", b"/", b"")]),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", [(b"GET", b"/", b"")]),
    "HTTP/1.0 with a body": (b"POST / HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc", [(b"POST", b"/", b"abc")]),
    "a URL of another host": (
        b"GET http://b/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        [(b"GET", b"/x", b"")],
    ),
    "an upgrade to HTTP/2": (
        b"GET / HTTP/1.1\r\nhost: a\r\n" + _H2C + b"\r\n" + _GET + b"\r\n",
        [(b"GET", b"/", b"")] * 2,
    ),
    "an upgrade to HTTP/2, with a request in its body": (
        _KEPT + _H2C + b"content-length: 55\r\n\r\n" + _SMUGGLED + _GET + b"\r\n",
        [(b"POST", b"/", _SMUGGLED), (b"GET", b"/", b"")],
    ),
    "a websocket with a request in its body": (
        b"GET / HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET + b"content-length: 55\r\n\r\n" + _SMUGGLED + _GET + b"\r\n",
        [(b"GET", b"/", _SMUGGLED), (b"GET", b"/", b"")],
    ),
    "an expectation and its body at once": (
        _POST + b"expect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
        [(b"POST", b"/", b"abc")],
    ),
    "trailers that are for the head": (
        _CHUNKED + b"3\r\nabc\r\n0\r\nhost: b\r\nexpect: 100-continue\r\nauthorization: x\r\ncookie: x\r\n\r\n",
        [(b"POST", b"/", b"abc")],
    ),
    "a trailer that says who": (_CHUNKED + b"1\r\na\r\n0\r\nx-api-key: mallory\r\n\r\n", [(b"POST", b"/", b"a")]),
    "a trailer that is believed further in": (
        _CHUNKED + b"1\r\na\r\n0\r\nx-ratelimit-user: root\r\nx-forwarded-for: 1.2.3.4\r\n\r\n",
        [(b"POST", b"/", b"a")],
    ),
}
"""Odd, but there is one way to read them: these requests (method, target, body) arrive, each answered."""

_BELIEVED = {b"x-api-key", b"x-ratelimit-user", b"x-ratelimit-cost", b"x-forwarded-for", b"forwarded"}
_numbers = itertools.count()


def pieces_of(raw: bytes) -> list[tuple[bytes, ...]]:
    """At once; and in three, cut where a head ends and within what follows, or within the head."""
    first = raw.find(b"\r\n\r\n") + 4
    middle = (first + len(raw)) // 2 if 4 <= first < len(raw) else len(raw) // 2
    cuts = sorted({first if 4 <= first < len(raw) else len(raw) // 3, middle})
    return [(raw,), tuple(raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)]) if a < b)]


@pytest.mark.parametrize("shape", [*REFUSED, *OTHERWISE_REFUSED])
async def test_refused_and_never_forwarded(behind: Behind, shape: str) -> None:
    raw, status = OTHERWISE_REFUSED[shape] if shape in OTHERWISE_REFUSED else (REFUSED[shape], 400)
    for pieces in pieces_of(raw):
        number = next(_numbers)
        left = await behind.own_answer(b"/before-%d" % number)
        behind.upstream.seen.clear()
        begun = behind.upstream.begun
        (answer,) = await parse_answers(await behind.ask(*pieces), [b"GET"])
        assert answer.status == status
        assert answer.values(b"content-type") == [b"application/problem+json"]
        assert answer.values(b"connection") == [b"close"]
        assert json.loads(answer.body)["status"] == status
        assert (behind.upstream.seen, behind.upstream.begun) == ([], begun)
        assert await behind.own_answer(b"/after-%d" % number) == left - 1
    assert behind.upstream.faults == []


@pytest.mark.parametrize("shape", BROKEN)
async def test_a_body_that_is_no_body_is_refused_and_never_complete(behind: Behind, shape: str) -> None:
    for pieces in pieces_of(BROKEN[shape]):
        behind.upstream.seen.clear()
        (answer,) = await parse_answers(await behind.ask(*pieces), [b"POST"])
        assert answer.status == 400
        assert behind.upstream.seen == []
        await behind.own_answer(b"/after-%d" % next(_numbers))
    assert behind.upstream.faults == []


@pytest.mark.parametrize("shape", PASSED)
async def test_what_passes_is_read_in_one_way(behind: Behind, shape: str) -> None:
    raw, requests = PASSED[shape]
    for pieces in pieces_of(raw):
        behind.upstream.seen.clear()
        answers = await parse_answers(await behind.ask(*pieces), [method for method, _, _ in requests])
        seen = behind.upstream.seen
        assert [(one.method, one.target, one.body) for one in seen] == requests
        assert [(one.status, one.body) for one in answers] == [(200, target) for _, target, _ in requests]
        for one in seen:
            assert not _BELIEVED & {name for name, _ in one.trailers}
            assert (
                not {b"content_length", b"transfer_encoding", b"upgrade", b"http2-settings"} & dict(one.headers).keys()
            )
        await behind.own_answer(b"/after-%d" % next(_numbers))
    assert behind.upstream.faults == []


async def test_a_handshake_that_is_refused_opens_no_tunnel(behind: Behind) -> None:
    """What comes behind it is another request, or nothing."""
    for pieces in (
        (b"GET /chat HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET + b"\r\n" + _SMUGGLED,),
        (b"GET /chat HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET + b"\r\n", _SMUGGLED),
        (b"GET /chat HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET.replace(b"13", b"777") + b"\r\n" + _SMUGGLED,),
    ):
        behind.upstream.seen.clear()
        async with connected(behind.address) as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.05)
            with suppress(OSError):  # it may be closed already
                writer.write_eof()
            await until_gone(reader)
        assert [one.target for one in behind.upstream.seen] in ([b"/chat"], [b"/chat", b"/smuggled"], [])
        assert all(one.values(b"via") for one in behind.upstream.seen)
    assert behind.upstream.faults == []


async def test_a_url_takes_its_host_along(behind: Behind) -> None:
    behind.upstream.seen.clear()
    await behind.ask(b"GET http://b/x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    assert [one.values(b"host") for one in behind.upstream.seen] == [[b"b"]]


# --- and back -------------------------------------------------------------------------------------------------------

_CLOSE = b"\0close"
_AT_ONCE_S = 30
"""Long before a timeout of the sidecar's."""
_OK = b"HTTP/1.1 200 OK\r\n"
_TWO = _OK + b"content-length: 2\r\n"
_STRANGE = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\nx-from: mallory\r\n\r\nstrange!"
_IN_CHUNKS = _OK + b"transfer-encoding: chunked\r\n\r\n"

INVALID: dict[str, bytes] = {
    "nothing": b"",
    "half a status": b"HTTP/1.1 2",
    "half a field": _OK + b"content-le",
    "a length and chunked": _TWO + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked and a length": _OK + b"transfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two lengths": _TWO + b"content-length: 3\r\n\r\nok",
    "a length twice": _TWO + b"content-length: 2\r\n\r\nok",
    "a list of lengths": _OK + b"content-length: 2, 2\r\n\r\nok",
    "a signed length": _OK + b"content-length: +2\r\n\r\nok",
    "a negative length": _OK + b"content-length: -2\r\n\r\nok",
    "a hexadecimal length": _OK + b"content-length: 0x2\r\n\r\nok",
    "a length that overflows": _OK + b"content-length: 99999999999999999999\r\n\r\nok",
    "a length of 2^63": _OK + b"content-length: 9223372036854775808\r\n\r\nok",
    "a length of words": _OK + b"content-length: many\r\n\r\nok",
    "another coding": _OK + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a coding that is none": _OK + b"transfer-encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": _OK + b"transfer-encoding: chunked, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "two codings": _OK + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "a space before the colon": _OK + b"x-a : 1\r\ncontent-length: 2\r\n\r\nok",
    "a space before the colon of a length": _OK + b"content-length : 2\r\n\r\nok",
    "no colon": _OK + b"x-a\r\ncontent-length: 2\r\n\r\nok",
    "no name": _OK + b": a\r\ncontent-length: 2\r\n\r\nok",
    "NUL in a value": _OK + b"x-a: 1\x00\r\ncontent-length: 2\r\n\r\nok",
    "a control character in a value": _OK + b"x-a: 1\x08\r\ncontent-length: 2\r\n\r\nok",
    "a bare CR in a value": _OK + b"x-a: 1\rx-b: 2\r\ncontent-length: 2\r\n\r\nok",
    "NUL in a name": _OK + b"x\x00a: 1\r\ncontent-length: 2\r\n\r\nok",
    "a bracket in a name": _OK + b"x(a: 1\r\ncontent-length: 2\r\n\r\nok",
    "Latin-1 in a name": _OK + b"x-\xe4: 1\r\ncontent-length: 2\r\n\r\nok",
    "no HTTP": b"nonsense\r\n\r\n",
    "a request": _SMUGGLED,
    "HTTP/0.9": b"<html>hello</html>\r\n\r\n",
    "HTTP/2": b"HTTP/2 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "a status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 2\r\n\r\nok",
    "a status of four digits": b"HTTP/1.1 2000 OK\r\ncontent-length: 2\r\n\r\nok",
    "a status below 100": b"HTTP/1.1 099 X\r\ncontent-length: 0\r\n\r\n",
    "a status of 999": b"HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n",
    "a protocol in lower case": b"http/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "a field of 200 KB": _OK + b"x-big: " + b"a" * 200_000 + b"\r\ncontent-length: 2\r\n\r\nok",
    "50,000 fields": _OK + b"x-some: b\r\n" * 50_000 + b"content-length: 2\r\n\r\nok",
}
"""Answers that are none: a 502 for the client."""

CUT: dict[str, tuple[bytes, ...]] = {
    "fewer bytes than it says": (_OK + b"content-length: 20\r\n\r\nok", _CLOSE),
    "chunks without an end": (_IN_CHUNKS + b"2\r\nok\r\n", _CLOSE),
    "a last chunk without its end": (_IN_CHUNKS + b"2\r\nok\r\n0\r\n", _CLOSE),
    "a length for a trailer": (_IN_CHUNKS + b"2\r\nok\r\n", b"0\r\ncontent-length: 9\r\n\r\n"),
    "a bad chunk later": (_IN_CHUNKS + b"2\r\nok\r\n", b"zz\r\nok\r\n0\r\n\r\n"),
    "a chunk longer than it says": (_IN_CHUNKS + b"2\r\nok\r\n", b"2\r\nokX0\r\n\r\n"),
    "a chunk size that overflows": (_IN_CHUNKS + b"2\r\nok\r\n", b"10000000000000002\r\nok\r\n0\r\n\r\n"),
    "a negative chunk size": (_IN_CHUNKS + b"2\r\nok\r\n", b"-2\r\nok\r\n0\r\n\r\n"),
    "bare LF behind a chunk size": (_IN_CHUNKS + b"2\r\nok\r\n", b"2\nok\r\n0\r\n\r\n"),
}
"""Answers that go wrong once their head is fine: the client sees that it has not got the whole of it."""

DROPPED: dict[str, tuple[bytes, bytes, tuple[bytes, ...]]] = {
    "bytes behind a body": (b"GET", b"ok", (_TWO + b"\r\nokmore",)),
    "an answer behind a body": (b"GET", b"ok", (_TWO + b"\r\nok" + _STRANGE,)),
    "an answer behind a body, later": (b"GET", b"ok", (_TWO + b"\r\nok", _STRANGE)),
    "an answer behind chunks": (b"GET", b"ok", (_IN_CHUNKS + b"2\r\nok\r\n0\r\n\r\n" + _STRANGE,)),
    "an answer behind chunks, later": (b"GET", b"ok", (_IN_CHUNKS + b"2\r\nok\r\n0\r\n\r\n", _STRANGE)),
    "half an answer behind a body": (b"GET", b"ok", (_TWO + b"\r\nok" + _STRANGE[:40],)),
    "an interim answer behind a body": (b"GET", b"ok", (_TWO + b"\r\nok", b"HTTP/1.1 100 Continue\r\n\r\n")),
    "behind the last one": (b"GET", b"ok", (_TWO + b"connection: close\r\n\r\nok" + _STRANGE,)),
    "a body to HEAD": (b"HEAD", b"", (_OK + b"content-length: 63\r\n\r\n" + _STRANGE,)),
    "a body to HEAD, later": (b"HEAD", b"", (_OK + b"content-length: 63\r\n\r\n", _STRANGE)),
    "chunks to HEAD": (b"HEAD", b"", (_IN_CHUNKS + b"2\r\nok\r\n0\r\n\r\n",)),
    "a body of 204": (b"GET", b"", (b"HTTP/1.1 204 No Content\r\ncontent-length: 63\r\n\r\n" + _STRANGE,)),
    "a body of 204, later": (b"GET", b"", (b"HTTP/1.1 204 No Content\r\ncontent-length: 63\r\n\r\n", _STRANGE)),
    "a body of 204, unsaid": (b"GET", b"", (b"HTTP/1.1 204 No Content\r\n\r\n" + _STRANGE,)),
    "chunks of 204": (b"GET", b"", (b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",)),
    "the last chunk of 204": (b"GET", b"", (b"HTTP/1.1 204 No\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",)),
    "a body of 304": (b"GET", b"", (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 63\r\n\r\n" + _STRANGE,)),
    "a body of 304, unsaid": (b"GET", b"", (b"HTTP/1.1 304 Not Modified\r\n\r\n" + _STRANGE,)),
}
"""What is content of nobody's: dropped, above all not the next one's answer."""

KEPT_ANSWERS: dict[str, tuple[bytes, tuple[bytes, ...]]] = {
    "a length": (b"ok", (_TWO + b"\r\nok",)),
    "a length of zeros": (b"ok", (_OK + b"content-length: 002\r\n\r\nok",)),
    "chunks": (b"ok", (_IN_CHUNKS + b"2\r\nok\r\n0\r\n\r\n",)),
    "chunks with extensions": (b"ok", (_IN_CHUNKS + b"2;a=b\r\nok\r\n0;c\r\n\r\n",)),
    "until the end": (b"okay", (_OK + b"\r\nok", b"ay", _CLOSE)),
    "an answer in a body, until the end": (b"ok" + _STRANGE, (_OK + b"\r\nok" + _STRANGE, _CLOSE)),
    "HTTP/1.0": (b"ok", (b"HTTP/1.0 200 OK\r\n\r\nok", _CLOSE)),
    "no reason": (b"ok", (b"HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", _CLOSE)),
    "interim answers": (b"ok", (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" * 3 + _TWO + b"\r\nok",)),
    "interim answers before": (b"ok", (b"HTTP/1.1 102 Processing\r\n\r\n", _TWO + b"\r\nok")),
}
"""One way to read them: they arrive."""


async def _answered(behind: Behind, method: bytes, pieces: tuple[bytes, ...]) -> bytes:
    target = b"/answer-%d" % next(_numbers)
    behind.answers[target] = pieces
    raw = await behind.ask(b"%b %b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % (method, target))
    await asyncio.sleep(0.1 * (len(pieces) - 1))  # for what comes on a connection that is not asked for anything
    for _ in range(3):
        await behind.own_answer(b"/after-%d" % next(_numbers))
    assert behind.upstream.faults == []
    return raw


@pytest.mark.parametrize("shape", [*INVALID])
async def test_no_valid_answer_is_a_502(behind: Behind, shape: str) -> None:
    raw, end = INVALID[shape], (_CLOSE,) * shape.startswith(("nothing", "half"))
    for pieces in ((raw,), (raw[: len(raw) // 2], raw[len(raw) // 2 :])):
        (answer,) = await parse_answers(await _answered(behind, b"GET", pieces + end), [b"GET"])
        assert answer.status == 502
        assert answer.values(b"content-type") == [b"application/problem+json"]


@pytest.mark.parametrize("shape", CUT)
async def test_what_breaks_off_is_not_made_whole(behind: Behind, shape: str) -> None:
    async with asyncio.timeout(_AT_ONCE_S):
        raw = await _answered(behind, b"GET", CUT[shape])
    assert raw.startswith(_OK)
    with pytest.raises((asyncio.IncompleteReadError, NotStrict)):
        await parse_answers(raw, [b"GET"])
    assert raw.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize("shape", DROPPED)
async def test_what_nobody_asked_for_is_nobodys_answer(behind: Behind, shape: str) -> None:
    method, body, pieces = DROPPED[shape]
    raw = await _answered(behind, method, pieces)
    assert b"mallory" not in raw
    (answer,) = await parse_answers(raw, [method])
    if answer.status != 502 or len(pieces) > 1:
        assert (answer.status, answer.body) == (int(pieces[0][9:12]), body)


@pytest.mark.parametrize("shape", KEPT_ANSWERS)
async def test_an_answer_that_can_be_read_in_one_way_arrives(behind: Behind, shape: str) -> None:
    body, pieces = KEPT_ANSWERS[shape]
    (answer,) = await parse_answers(await _answered(behind, b"GET", pieces), [b"GET"])
    assert (answer.status, answer.body) == (200, body)
    assert b"content-length" not in dict(answer.trailers)


@pytest.mark.parametrize("byte", [b"\0", b"\x05", b"\r", b"\x7f"])
async def test_a_reason_that_is_none_is_not_passed_on(behind: Behind, byte: bytes) -> None:
    raw = await _answered(behind, b"GET", (b"HTTP/1.1 200 O%bK\r\ncontent-length: 2\r\n\r\nok" % byte,))
    (answer,) = await parse_answers(raw, [b"GET"])
    assert (answer.status, byte in answer.start) in ((200, False), (502, False))


@pytest.mark.parametrize("target", [b"/slow", b"/"])
async def test_who_expects_to_continue_and_closes_its_side_gets_one_answer(behind: Behind, target: bytes) -> None:
    """Also where it was looked meanwhile, by the first byte of the answer, whether it is still there."""
    async with connected(behind.address) as (reader, writer):
        writer.write(b"POST %b HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc" % target)
        writer.write_eof()
        (answer,) = await parse_answers(await reader.read(), [b"POST"])
    assert (answer.status, answer.body) == (200, target)


@pytest.mark.parametrize("rest", [b"55", b"1000000"], ids=["and then it comes", "and it never comes"])
async def test_an_answer_before_its_request_has_ended(behind: Behind, rest: bytes) -> None:
    """What is left of the body is read as no request, on neither side."""
    target = b"/early-%d" % next(_numbers)
    behind.answers[target] = (_TWO + b"\r\nok",)
    behind.upstream.seen.clear()
    async with connected(behind.address) as (reader, writer):
        writer.write(b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: %b\r\n\r\n" % (target, rest) + _SMUGGLED[:9])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(_OK)
        assert await reader.readexactly(2) == b"ok"
        writer.write(_SMUGGLED[9:])
        await asyncio.sleep(0.05)
        for _ in range(3):
            await behind.own_answer(b"/after-%d" % next(_numbers))
    assert b"/smuggled" not in [one.target for one in behind.upstream.seen]
    assert behind.upstream.faults == []


async def test_nobody_is_left_behind(behind: Behind) -> None:
    """After all of it: no error that nobody has handled is in the log."""
    assert [line for line in behind.service.err if "Traceback" in line or " ERROR " in line] == []
