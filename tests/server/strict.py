"""HTTP/1.1 taken apart as strictly as RFC 9112 allows: what the sidecar sends, to its upstream and to its clients.

A reader of this suite's own, so that no parser's leniency hides what another one would stumble over.
"""

from __future__ import annotations

import asyncio
import re
from asyncio import IncompleteReadError, StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Framing: TypeAlias = Literal["none", "length", "chunked", "close"]
Headers: TypeAlias = list[tuple[bytes, bytes]]

_REQUEST = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.1")
_STATUS = re.compile(rb"HTTP/1\.1 [1-5][0-9]{2} [\t\x20-\x7e\x80-\xff]*")
_FIELD = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[!-~\x80-\xff](?:[\t\x20-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*"
)
_SIZE = re.compile(rb"[0-9A-Fa-f]{1,16}")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_MAX_LENGTH = 2**63 - 1
_FORBIDDEN_TRAILERS = frozenset({
    b"transfer-encoding", b"content-length", b"host", b"connection", b"trailer", b"te", b"upgrade", b"expect",
    b"authorization", b"cookie", b"set-cookie", b"content-encoding", b"content-type", b"content-range",
    b"cache-control",
})  # fmt: skip


class NotStrict(Exception):
    """What was read is no message, or one that another reader could take for a different one."""


@dataclass
class Message:
    """A request or an answer; names of fields in lower case."""

    start: bytes
    headers: Headers
    framing: Framing = "none"
    length: int = 0
    body: bytes = b""
    trailers: Headers = field(default_factory=list)

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    def values(self, name: bytes) -> list[bytes]:
        return [value for each, value in self.headers if each == name]


async def read_request_head(reader: StreamReader) -> Message | None:
    """None where the connection ends between requests. `IncompleteReadError` where it ends within."""
    head = await _head(reader, _REQUEST)
    if head is None:
        return None
    if len(head.values(b"host")) != 1:
        raise NotStrict(f"Host fields: {head.values(b'host')}")
    return head


async def read_answer(reader: StreamReader, method: bytes) -> tuple[list[int], Message]:
    """The interim ones before it, by their status; and the final one, with its body."""
    interim = []
    while True:
        head = await _head(reader, _STATUS)
        if head is None:
            raise IncompleteReadError(b"", None)
        if head.status >= 200 or head.status == 101:
            break
        if head.framing != "none":
            raise NotStrict(f"an interim answer with a body: {head.start!r}")
        interim.append(head.status)
    if method == b"HEAD" or head.status in (101, 204, 304):
        if head.status == 204 and head.framing != "none":
            raise NotStrict("204 with a framed body")
        head.framing, head.length = "none", 0
    elif head.framing == "none":
        head.framing = "close"
    await read_body(reader, head)
    return interim, head


async def read_body(reader: StreamReader, head: Message) -> Message:
    """The rest of a message, as its framing says."""
    if head.framing == "length":
        head.body = await reader.readexactly(head.length)
    elif head.framing == "close":
        head.body = await reader.read()
    elif head.framing == "chunked":
        pieces = []
        while size := await _chunk_size(reader):
            piece = await reader.readexactly(size + 2)
            if not piece.endswith(b"\r\n"):
                raise NotStrict("a chunk that is longer than it says")
            pieces.append(piece[:-2])
        head.body = b"".join(pieces)
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            head.trailers.append(_field(line[:-2]))
        if bad := _FORBIDDEN_TRAILERS & {name for name, _ in head.trailers}:
            raise NotStrict(f"forbidden trailers: {bad}")
    return head


async def _head(reader: StreamReader, start: re.Pattern[bytes]) -> Message | None:
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except IncompleteReadError as error:
        if error.partial:
            raise
        return None
    except asyncio.LimitOverrunError as error:
        raise NotStrict("a head without an end") from error
    first, *lines = raw[:-4].split(b"\r\n")
    if not start.fullmatch(first):
        raise NotStrict(f"a start line of {first[:200]!r}")
    head = Message(first, [_field(line) for line in lines])
    lengths, codings = head.values(b"content-length"), head.values(b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        raise NotStrict(f"framed twice: lengths {lengths}, codings {codings}")
    if codings:
        if codings[0].lower() != b"chunked":
            raise NotStrict(f"a coding of {codings[0]!r}")
        head.framing = "chunked"
    elif lengths:
        if not _LENGTH.fullmatch(lengths[0]) or int(lengths[0]) > _MAX_LENGTH:
            raise NotStrict(f"a length of {lengths[0]!r}")
        head.framing, head.length = "length", int(lengths[0])
    return head


async def _chunk_size(reader: StreamReader) -> int:
    line = (await reader.readuntil(b"\r\n"))[:-2]
    if not _SIZE.fullmatch(line):
        raise NotStrict(f"a chunk size of {line[:50]!r}")
    return int(line, 16)


def _field(line: bytes) -> tuple[bytes, bytes]:
    found = _FIELD.fullmatch(line)
    if found is None:
        raise NotStrict(f"a field of {line[:200]!r}")
    return found[1].lower(), found[2]


Answer: TypeAlias = Callable[[Message, StreamWriter], Awaitable[bool]]
"""Answers a request; whether another one is read afterwards."""


class Recorder:
    """An upstream (a script of `scripted`) that reads strictly and keeps what it has read.

    `seen` are the requests that arrived whole, `faults` what no sidecar may send. `early` may answer before the body.
    """

    def __init__(self, answer: Answer, early: Answer | None = None) -> None:
        self._answer = answer
        self._early = early
        self.seen: list[Message] = []
        self.begun = 0
        self.faults: list[str] = []

    async def __call__(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while request := await read_request_head(reader):
                self.begun += 1
                if self._early is not None and await self._early(request, writer):
                    continue
                self.seen.append(await read_body(reader, request))
                if not await self._answer(request, writer):
                    return
                await writer.drain()
        except NotStrict as error:
            self.faults.append(str(error))


async def parse_answers(raw: bytes, methods: list[bytes]) -> list[Message]:
    """All answers to these requests that there are in what a client got until the connection closed.

    The last may be cut short, which raises `IncompleteReadError`; what is left over raises `NotStrict`, unless it is
    another protocol's.
    """
    reader = StreamReader(limit=1 << 20)
    reader.feed_data(raw)
    reader.feed_eof()
    found: list[Message] = []
    while not reader.at_eof():
        if len(found) == len(methods):
            raise NotStrict(f"more than was asked for: {(await reader.read())[:200]!r}")
        found.append((await read_answer(reader, methods[len(found)]))[1])
        if found[-1].status == 101:
            break
    return found
