"""The same random requests through nginx and the sidecar, to one upstream: no difference that is not written here.

Every request is valid, and so is every answer; where the two may differ is in the lists below, with the reasons.
`RATELIMIT_TEST_SEED=7` asks other requests than those that are asked each time.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from ratelimit.testing.engines import free_port
from tests.http.authz.gateways import binary
from tests.server.processes import QUICK, served
from tests.server.sockets import close, scripted
from tests.server.strict import Headers, Message, NotStrict, read_answer, read_body, read_request_head

REQUEST_FIELDS: Final = {
    b"via": "we add ourselves (RFC 9110, 7.6.3); nginx does so only where it is told to",
    b"x-request-id": "we give each request an id",
    b"x-ratelimit-user": "we tell who the user is; what a client says of it is dropped",
    b"x-forwarded-for": "we replace what a client claims of its way by what we have seen",
    b"x-forwarded-proto": "the same",
    b"x-forwarded-host": "the same",
    b"forwarded": "the same",
    b"x-real-ip": "a claim, too, which we drop",
    b"trailer": "hop by hop (7.6.1); nginx passes it",
    b"proxy-connection": "the same",
    b"proxy-authorization": "the same: it is for the first proxy that wants it (11.7.1)",
    b"te": "hop by hop: nginx drops it, and we may say that we take trailers",
    b"x-hop": "named by `Connection` (7.6.1); nginx passes it",
    b"expect": "nginx says 100 by itself; we leave it to the upstream, which is asked for it",
    b"content-length": "compared as the framing",
    b"transfer-encoding": "compared as the framing",
}
"""Of a request, at the upstream: fields in which we differ on purpose."""

ANSWER_FIELDS: Final = {
    b"via": "as above",
    b"x-request-id": "as above",
    b"ratelimit": "what we are for",
    b"ratelimit-policy": "what we are for",
    b"server": "nginx puts its own where there is none; we add none",
    b"date": "a proxy that has a clock adds one where there is none (6.6.1); the seconds may differ",
    b"x-hop": "named by `Connection`; nginx passes it",
    b"keep-alive": "hop by hop; nginx answers its own",
    b"trailer": "hop by hop; nginx passes it",
    b"proxy-authenticate": "the same",
    b"connection": "compared as whether the connection stays",
    b"content-length": "compared as the framing",
    b"transfer-encoding": "compared as the framing",
}
"""Of an answer, at the client."""

SHAPES: Final = {
    "interim": "nginx takes a 103 for the answer itself (until 1.29): it is sent none; we skip it or pass it on",
    "continue": "nginx says 100 by itself and drops the Expect; we leave both to the upstream",
    "trailers": "nginx drops them (RFC 9110, 6.5.1 lets it); we may pass those that are allowed",
    "reason": "nobody may rely on it (RFC 9112, 4): we may write the usual one",
    "empty": "a length of 0 and no framing at all are the same message, and so are no chunks at all (6.3)",
    "answers": "the framing of an answer is each hop's own business; what the client gets is compared as the body",
    "requests": "nginx tells a length where all the chunks have come at once; our framing is held to the client's",
    "old": "an answer to HTTP/1.0 is always the last on our connection; nginx keeps it where the client asks for that",
    "tabs": "nginx takes a tab around a value for a part of it: none is sent",
}
"""What is not compared, or not asked."""

_TOKEN: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!#$%&'*+.^|~-"
_VALUE: Final = [*range(0x20, 0x7F), 0x09, *range(0x80, 0x100)]
_SEGMENT: Final = "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789-_~!$&'()*+,=:@"
_QUERY: Final = _SEGMENT + '/?.;"<>`{|}^\\[]%'
_KNOWN: Final = (
    b"Accept", b"Accept-Encoding", b"Authorization", b"Cookie", b"User-Agent", b"Content-Type", b"Content-Encoding",
    b"Range", b"If-None-Match", b"Cache-Control", b"Origin", b"Referer", b"X_Under_Score", b"Max-Forwards", b"Pragma",
    b"X-Forwarded-For", b"Via", b"X-Real-IP", b"Proxy-Authorization", b"Access-Control-Request-Method", b"Priority",
)  # fmt: skip
_ANSWERED: Final = (
    b"Content-Type", b"Set-Cookie", b"ETag", b"Last-Modified", b"Vary", b"Cache-Control", b"Location", b"Server",
    b"Date", b"Content-Encoding", b"WWW-Authenticate", b"Retry-After", b"Link", b"Strict-Transport-Security", b"Allow",
    b"Age", b"Accept-Ranges", b"Expires", b"Content-Range", b"X_Under_Score", b"Keep-Alive",
)  # fmt: skip
_LISTS: Final = b"Accept Accept-Encoding Cache-Control X_Under_Score Set-Cookie Vary Link Allow".split()
_METHODS: Final = (b"GET " * 6 + b"POST " * 5 + b"PUT PATCH DELETE HEAD HEAD OPTIONS PROPFIND").split()
_STATUSES: Final = (
    *[200] * 8, 201, 202, 204, 204, 205, 206, 301, 302, 304, 304, 400, 401, 404, 409, 418, 429, 500, 503, 599,
)  # fmt: skip
_TRAILERS: Final = [(b"x-trailer", b"1"), (b"x-other", b"a b")]
_CONNECTIONS: Final = 12
_SOON_S: Final = 20

pytestmark = pytest.mark.process


@dataclass
class Exchanged:
    """A request, and the answer that the upstream gives to it; and what became of them, by proxy."""

    number: int
    method: bytes
    request: tuple[bytes, ...]
    framing: str
    old: bool
    """Whether it is of HTTP/1.0."""
    last: bool
    """Whether the client asks for no more on this connection."""
    interim: bytes
    answer: tuple[bytes, ...]
    closes: bool
    """Whether the upstream closes its connection behind the answer."""
    arrived: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answered: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def case_of(number: int, seed: str) -> Exchanged:
    draw = Random(f"{seed}/{number}")
    method = draw.choice(_METHODS)
    old = draw.random() < 0.05
    last = old or draw.random() < 0.1
    framing, body, trailers = _body(
        draw, chunks=not old, none=method == b"HEAD" or (method == b"GET" and draw.random() < 0.9)
    )
    fields = [(b"Host", b"shop.example"), (b"X-Case", b"%d" % number), *_fields(draw, _KNOWN), *framing]
    fields += _hops(draw, close=last and not old, trailers=trailers)
    if body and not old and draw.random() < 0.1:
        fields.append((b"Expect", b"100-continue"))
    draw.shuffle(fields)
    line = b"%b %b HTTP/%b" % (method, _target(draw, method), b"1.0" if old else b"1.1")
    request = _split(draw, _head(draw, line, fields) + body)
    framed = "chunked" if framing and framing[0][0] == b"Transfer-Encoding" else "length"
    return Exchanged(number, method, request, framed, old, last, *_answer(draw, method))


def _answer(draw: Random, method: bytes) -> tuple[bytes, tuple[bytes, ...], bool]:
    status = draw.choice(_STATUSES)
    bodiless = method == b"HEAD" or status in (204, 304)
    version = b"1.0" if draw.random() < 0.05 else b"1.1"
    framing, body, trailers = _body(draw, chunks=version == b"1.1", none=status == 204)
    closes = version == b"1.0" or draw.random() < 0.1  # and says so: what closes unannounced is in use again by then
    if status != 204 and draw.random() < 0.1:
        closes, framing, trailers, body = True, [], False, draw.randbytes(draw.choice((0, 10, 5000)))
    fields = [*_fields(draw, _ANSWERED), *framing, *_hops(draw, close=closes, trailers=trailers)]
    draw.shuffle(fields)
    reason = draw.choice((b"OK", b"", b"Some Reason", b"It's 100% fine; so-so"))
    whole = _head(draw, b"HTTP/%b %d %b" % (version, status, reason), fields) + (b"" if bodiless else body)
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"
    return hints * draw.choice((0,) * 8 + (1, 2)), _split(draw, whole), closes


def _body(draw: Random, *, chunks: bool, none: bool) -> tuple[Headers, bytes, bool]:
    """The fields that frame it, and its bytes; whether trailers follow it."""
    if none:
        return [], b"", False
    body = draw.randbytes(draw.choice((0, 1, 7, 100, 100, 3000, 3000, 20_000, 100_000)))
    if not chunks or draw.random() < 0.6:
        return [(draw.choice((b"Content-Length", b"content-length")), b"%d" % len(body))], body, False
    raw, rest = b"", body
    while rest:
        size = draw.randint(1, len(rest))
        extension = draw.choice((b"", b"", b"", b";a", b';a=b;c="d e"'))
        raw += draw.choice((b"%x", b"%X", b"00%x")) % size + extension + b"\r\n" + rest[:size] + b"\r\n"
        rest = rest[size:]
    trailers = draw.random() < 0.2
    end = b"X-Trailer: 1\r\nx-other: a b\r\n" if trailers else b""
    coding = draw.choice((b"chunked", b"Chunked"))
    return [(b"Transfer-Encoding", coding)], raw + b"0\r\n" + end + b"\r\n", trailers


def _fields(draw: Random, known: Sequence[bytes]) -> Headers:
    """Some that are known, each once unless it is a list, and some that nobody knows, in any case."""
    names = draw.sample(known, draw.choice((0, 1, 3, 6)))
    for _ in range(draw.choice((0, 0, 1, 4))):
        names.append(b"X-" + "".join(draw.choices(_TOKEN, k=draw.randint(1, 12))).encode())
    found = []
    for name in names:
        values = [_value(draw, name)]
        if name in _LISTS or name.startswith(b"X-"):
            values += [_value(draw, name) for _ in range(draw.choice((0, 0, 0, 1, 2)))]
        found += [(draw.choice((name, name.lower(), name.upper())), value) for value in values]
    return found


def _value(draw: Random, name: bytes) -> bytes:
    if name == b"Content-Type":  # nginx leaves an empty one out
        return draw.choice((b"text/html; charset=utf-8", b"application/json", b"x/\xfc"))
    if name == b"Date":
        return b"Sat, 21 Nov 2026 00:00:00 GMT"
    letters = draw.choice((_SEGMENT.encode() + b" ", _VALUE))
    return bytes(draw.choices(letters, k=draw.choice((0, 1, 5, 20, 200)))).strip(b" \t")


def _hops(draw: Random, *, close: bool, trailers: bool) -> Headers:
    options = [b"close"] * close
    fields: Headers = []
    if draw.random() < 0.1:
        options.append(b"X-Hop")
        fields.append((b"X-Hop", b"1"))
    if trailers and draw.random() < 0.7:
        fields.append((b"Trailer", b"X-Trailer, X-Other"))
    if options or draw.random() < 0.05:
        fields.append((b"Connection", b", ".join(options or [b"keep-alive"])))
    return fields


def _target(draw: Random, method: bytes) -> bytes:
    def text(letters: str) -> str:
        pieces = draw.choices(letters, k=draw.randint(1, 10))
        pieces += [f"%{draw.choice(b'09AZaz~@$'):{draw.choice('xX')}}" for _ in range(draw.choice((0, 0, 1)))]
        draw.shuffle(pieces)
        return "".join(pieces)

    target = "".join("/" + text(_SEGMENT) for _ in range(draw.randint(0, 4))) + draw.choice(("/", "/", "/a", "/x.y"))
    if draw.random() < 0.4:
        target += "?" + draw.choice(("", text(_QUERY), text(_QUERY) + "&" + text(_QUERY)))
    if draw.random() < 0.03:
        target = "http://shop.example" + target
    return target.encode()


def _head(draw: Random, line: bytes, fields: Headers) -> bytes:
    spaces = (b"", b" ", b" ", b" ", b" ", b"  ")  # no tabs: nginx takes them for a part of the value
    lines = [name + b":" + draw.choice(spaces) + value + draw.choice((b"", b"", b"", b" ")) for name, value in fields]
    return b"\r\n".join([line, *lines, b"", b""])


def _split(draw: Random, raw: bytes) -> tuple[bytes, ...]:
    cuts = sorted(draw.sample(range(len(raw)), draw.choice((0, 0, 0, 1, 2))))
    return tuple(raw[a:b] for a, b in itertools.pairwise([0, *cuts, len(raw)]))


# --- what became of it ------------------------------------------------------------------------------------------------


def as_arrived(request: Message) -> dict[str, Any]:
    """A request at the upstream, but for what is in the lists."""
    return {"line": request.start, "body": request.body, **_kept(request.headers, REQUEST_FIELDS)}


def as_answered(answer: Message, *, stays: bool) -> dict[str, Any]:
    """An answer at the client, but for what is in the lists."""
    kept = _kept(answer.headers, ANSWER_FIELDS)
    return {"status": answer.status, "body": answer.body, "stays": stays, **kept}


def _kept(headers: Headers, ignored: dict[bytes, str]) -> dict[str, list[bytes]]:
    """Values by name, those of one name in their order."""
    found: dict[str, list[bytes]] = {}
    for name, value in headers:
        if name not in ignored:
            found.setdefault(f"field {name.decode()}", []).append(value)
    return found


class CaseUpstream:
    """Reads what one of the proxies sends, and answers as the case says."""

    def __init__(self, cases: list[Exchanged], proxy: str) -> None:
        self._cases = cases
        self._proxy = proxy

    async def __call__(self, reader: StreamReader, writer: StreamWriter) -> None:
        while request := await read_request_head(reader):
            case = self._cases[int(request.values(b"x-case")[0])]
            if request.values(b"expect"):
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await read_body(reader, request)
            if request.body and request.framing != case.framing and self._proxy == "ours":  # "requests"
                case.faults.append(f"a body that came by {case.framing} arrived by {request.framing}")
            if request.trailers not in ([], _TRAILERS):
                case.faults.append(f"trailers arrived as {request.trailers}")
            case.arrived.setdefault(self._proxy, []).append(as_arrived(request))
            await _write(writer, (case.interim if self._proxy == "ours" else b"", *case.answer))
            if case.closes:
                return


async def _write(writer: StreamWriter, pieces: tuple[bytes, ...]) -> None:
    for number, piece in enumerate(pieces):
        if number and piece:
            await asyncio.sleep(0)
        writer.write(piece)
        await writer.drain()


class ProxyClient:
    """Asks one case after the other, some of them without waiting for the answer to the one before."""

    def __init__(self, proxy: str, port: int) -> None:
        self._proxy = proxy
        self._port = port

    async def ask(self, cases: list[Exchanged]) -> None:
        ahead = Random(cases[0].number)
        while cases:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
            stays = True
            while cases and stays:
                batch = [*itertools.takewhile(lambda case: not case.last, cases[: ahead.choice((1, 1, 1, 3))])]
                answered, stays = await self._ask(reader, writer, batch or cases[:1])
                cases = cases[answered:]
            await close(writer)

    async def _ask(self, reader: StreamReader, writer: StreamWriter, cases: list[Exchanged]) -> tuple[int, bool]:
        """How many of them are answered, and whether the connection stays."""
        writing = asyncio.create_task(_write(writer, tuple(piece for case in cases for piece in case.request)))
        stays, answered = True, 0
        try:
            for case in cases:
                answered += 1
                try:
                    async with asyncio.timeout(_SOON_S):
                        _, answer = await read_answer(reader, case.method)
                except (EOFError, ConnectionError, TimeoutError, NotStrict) as error:
                    case.answered[self._proxy] = [{"broken": repr(error)}]
                    return answered, False
                if answer.trailers not in ([], _TRAILERS):
                    case.faults.append(f"trailers came back as {answer.trailers}")
                stays = b"close" not in b",".join(answer.values(b"connection")).lower()
                case.answered[self._proxy] = [as_answered(answer, stays=stays and not case.old)]
                if not stays:
                    break
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        return answered, stays


_CONFIG: Final = """
daemon off; pid {folder}/nginx.pid; error_log stderr warn; worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  underscores_in_headers on; ignore_invalid_headers off; merge_slashes off; keepalive_requests 1000000;
  client_max_body_size 0; large_client_header_buffers 4 64k; client_header_buffer_size 64k;
  upstream app {{ server 127.0.0.1:{upstream}; keepalive 32; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
      proxy_buffer_size 64k; proxy_buffers 8 64k; proxy_busy_buffers_size 128k;
      proxy_request_buffering off; proxy_buffering off; proxy_next_upstream off;
      proxy_pass_header Server; proxy_pass_header Date; proxy_ignore_headers X-Accel-Redirect X-Accel-Buffering;
    }}
  }}
}}
"""


@asynccontextmanager
async def nginx(folder: Path, upstream: int) -> AsyncIterator[int]:
    program, port = binary("nginx"), free_port()
    (folder / "nginx.conf").write_text(_CONFIG.format(folder=folder, upstream=upstream, port=port))
    log = folder / "nginx.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf"), stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(120):
            while True:
                assert process.returncode is None, log.read_text()
                with suppress(OSError):
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                await asyncio.sleep(0.01)
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def differences(folder: Path, number: int, seed: str) -> list[str]:
    cases = [case_of(each, seed) for each in range(number)]
    async with AsyncExitStack() as stack:
        addresses = {
            name: await stack.enter_async_context(scripted(CaseUpstream(cases, name))) for name in ("nginx", "ours")
        }
        theirs = await stack.enter_async_context(nginx(folder, int(addresses["nginx"].rpartition(":")[2])))
        options = ("--upstream", f"http://{addresses['ours']}", *QUICK, "--access-log", "off")
        ours = (await stack.enter_async_context(served(*options))).port
        ways = [ProxyClient(name, port) for name, port in (("nginx", theirs), ("ours", ours))]
        parts = [cases[begin::_CONNECTIONS] for begin in range(_CONNECTIONS)]
        await asyncio.gather(*(way.ask(part) for way in ways for part in parts))
    return [text for case in cases for text in _differences(case)]


def _differences(case: Exchanged) -> list[str]:
    found = list(case.faults)
    for what, by_proxy in (("request", case.arrived), ("answer", case.answered)):
        theirs, ours = (by_proxy.get(name) or [{"broken": "nothing"}] for name in ("nginx", "ours"))
        if len(theirs) != len(ours):
            found.append(f"{what}: {len(theirs)} by nginx, {len(ours)} by ours")
        for name in theirs[0] | ours[0]:
            one, other = theirs[0].get(name), ours[0].get(name)
            if one != other or name == "broken":
                found.append(f"{what}, {name}: {str(one)[:300]} by nginx, {str(other)[:300]} by ours")
    return [f"case {case.number} ({case.request[0][:80]!r}): {text}" for text in found]


@pytest.mark.parametrize("number", [500, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
async def test_no_difference_that_is_not_written_here(number: int, tmp_path: Path) -> None:
    found = await differences(tmp_path, number, os.environ.get("RATELIMIT_TEST_SEED", "1"))
    assert not found, f"{len(found)} differences\n" + "\n".join(found[:20])
