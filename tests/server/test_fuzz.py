"""Mutated bytes of HTTP/1 from both sides through the running sidecar: no crash, hang, growth or mix-up.

Some seconds in the suite; `make fuzz-http` does so for ten minutes. `RATELIMIT_TEST_SEED=7` has others mutated.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from asyncio import StreamWriter
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha1
from pathlib import Path
from random import Random
from typing import Final

import pytest

from tests.server import test_smuggling as table
from tests.server.processes import QUICK, Served, served, until
from tests.server.sockets import close, scripted, until_gone
from tests.server.strict import Message, NotStrict, Recorder, parse_answers

SECONDS: Final = float(os.environ.get("RATELIMIT_TEST_FUZZ_S", "5"))
SEED: Final = os.environ.get("RATELIMIT_TEST_SEED", "1")

_CLIENTS: Final = 16
_HUNG_S: Final = 60.0
"""All timeouts of the sidecar's are a second here."""
_GROWN_MB: Final = 30.0
_CANARY: Final = b"/canary"
_OK: Final = b"HTTP/1.1 200 OK\r\n"
_REQUESTS: Final = [
    *table.REFUSED.values(), *(raw for raw, _ in table.OTHERWISE_REFUSED.values() if len(raw) < 10_000),
    *table.BROKEN.values(), *[raw for raw, _ in table.PASSED.values()] * 5,
    b"PUT /a?b=c HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n\r\n" + b"a" * 5000,
    *[b"GET /chat HTTP/1.1\r\nhost: a\r\n" + table.WEBSOCKET + b"\r\n\x81\x82\0\0\0\0hi\x88\x80\0\0\0\0"] * 20,
    b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nHEAD /2 HTTP/1.1\r\nhost: a\r\n\r\nGET /3 HTTP/1.1\r\nhost: a\r\n\r\n",
]  # fmt: skip
_ANSWERS: Final = [
    *(raw for raw in table.INVALID.values() if len(raw) < 10_000),
    *(b"".join(piece for piece in pieces if piece[:1] != b"\0") for pieces in table.CUT.values()),
    *[b"".join(pieces) for _, _, pieces in table.DROPPED.values()] * 3,
    *[b"".join(piece for piece in pieces if piece[:1] != b"\0") for _, pieces in table.KEPT_ANSWERS.values()] * 3,
    _OK + b"content-length: 5000\r\nset-cookie: a=b\r\ndate: Sat, 21 Nov 2026 00:00:00 GMT\r\n\r\n" + b"a" * 5000,
    _OK + b"transfer-encoding: chunked\r\ntrailer: x\r\n\r\n3\r\nabc\r\n0\r\nx: 1\r\n\r\n",
]
_TOKENS: Final = [
    b"\r\n", b"\n", b"\r", b"\0", b"\t", b" ", b":", b": ", b",", b";", b"\xff", b"\x80", b"\r\n\r\n", b"0\r\n\r\n",
    b"0", b"-1", b"+5", b"5\r\nhello\r\n", b"ffffffffffffffff\r\n", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0",
    b"GET / HTTP/1.1\r\n", b"content-length: 5\r\n", b"Content-Length: 0\r\n", b"transfer-encoding: chunked\r\n",
    b"host: b\r\n", b" folded\r\n", b"connection: close\r\n", b"connection: keep-alive, x\r\n", b"te: trailers\r\n",
    b"expect: 100-continue\r\n", b"upgrade: websocket\r\n", b"x-ratelimit-cost: 3\r\n", b"x: " + b"a" * 9000,
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n", b"HEAD ", b"OPTIONS * ", b"CONNECT a:1 ", b"#",
    b"%00", b"/../", b"http://b/",
]  # fmt: skip

_FRAMES: Final = [b"", b"\x81\x02hi", b"\x81\x7f" + b"\xff" * 8, b"\x88\x02\x03\xe8", b"\x89\x00", b"\xff\xff", b"\x01"]
_WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

pytestmark = [pytest.mark.process, pytest.mark.timeout(SECONDS + 300)]


def mutated(draw: Random, corpus: list[bytes]) -> bytes:
    """One of these, with some changes."""
    raw = draw.choice(corpus)
    for _ in range(draw.choice((0, 1, 1, 2, 3, 6))):
        begin = draw.randint(0, len(raw))
        end = min(len(raw), begin + draw.choice((1, 1, 2, 5, 20, 100)))
        other = draw.choice(corpus)
        half = draw.randint(0, len(other))
        raw = draw.choice((
            raw[:begin] + bytes((draw.randrange(256),)) + raw[begin + 1 :],
            raw[:begin] + raw[end:],
            raw[:end] + raw[begin:],
            raw[:begin] + draw.choice(_TOKENS) + raw[begin:],
            raw[:begin] + draw.choice(_TOKENS) + raw[end:],
            raw[:begin] + other[half:],
            raw[:begin],
        ))  # fmt: skip
    return raw[:50_000]


class HttpFuzz:
    """Many clients at once, and one upstream. What went wrong is in `faults`, with what was sent."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._answers = itertools.count()
        self.upstream = Recorder(self._answer)
        self.faults: list[str] = []
        self.came = Counter[str]()
        self._over = False

    async def run(self, service: Served) -> None:
        """For as long as it takes."""
        clients = [asyncio.create_task(self._client(service.port)) for _ in range(_CLIENTS)]
        await asyncio.sleep(SECONDS / 3)
        warm = resident(service.process.pid)
        await asyncio.sleep(SECONDS * 2 / 3)
        await until(lambda: self.came["200"] > 20 or bool(self.faults))
        self._over = True
        await asyncio.gather(*clients)
        if (grown := resident(service.process.pid) - warm) > _GROWN_MB:
            self.faults.append(f"it has grown by {grown:.0f} MB")

    async def _client(self, port: int) -> None:
        while not self._over and len(self.faults) < 10:
            number = next(self._numbers)
            draw = Random(f"{SEED}/{number}")
            if draw.random() < 0.2:
                raw = b"GET %b-%d HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" % (_CANARY, number)
                await self._check(raw, await self._ask(port, raw, draw, leaves=False), b"%b-%d" % (_CANARY, number))
            else:
                raw = mutated(draw, _REQUESTS)
                await self._check(raw, await self._ask(port, raw, draw, leaves=draw.random() < 0.2))

    async def _ask(self, port: int, raw: bytes, draw: Random, *, leaves: bool) -> bytes:
        cuts = sorted(draw.randint(0, len(raw)) for _ in range(draw.choice((0, 0, 1, 3))))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            async with asyncio.timeout(_HUNG_S):
                for begin, end in itertools.pairwise([0, *cuts, len(raw)]):
                    writer.write(raw[begin:end])
                    await asyncio.sleep(0)
                if leaves:
                    await asyncio.sleep(draw.choice((0, 0.001, 0.01)))
                    writer.transport.abort()
                elif draw.random() < 0.9:
                    with suppress(OSError):
                        writer.write_eof()
                else:
                    await asyncio.sleep(0.1)
                    with suppress(OSError):
                        writer.write_eof()
                return await until_gone(reader)
        except TimeoutError:
            self.faults.append(f"it hung: {raw!r}")
            return b""
        except ConnectionError:
            return b""
        finally:
            await close(writer)

    async def _check(self, raw: bytes, answer: bytes, own: bytes | None = None) -> None:
        self.came[answer[9:12].decode("latin-1") or "nothing"] += 1
        if b"HEAD" in raw:  # which of the answers is to it cannot be told
            return
        try:
            answers = await parse_answers(answer, [b"GET"] * 1000)
        except asyncio.IncompleteReadError:
            answers = []
        except NotStrict as error:
            self.faults.append(f"a client got {error}: {raw!r}: {answer[:1000]!r}")
            return
        if own is not None and [(one.status, one.body) for one in answers] != [(200, own)]:
            self.faults.append(f"{own!r} got {answer[:1000]!r}")

    async def _answer(self, request: Message, writer: StreamWriter) -> bool:
        if request.target.startswith(_CANARY):
            writer.write(_OK + b"content-length: %d\r\n\r\n%b" % (len(request.target), request.target))
            return True
        draw = Random(f"{SEED}/answer/{next(self._answers)}")
        if keys := request.values(b"sec-websocket-key"):
            accept = b64encode(sha1(keys[0] + _WEBSOCKET_GUID, usedforsecurity=False).digest())
            head = b"HTTP/1.1 101 Go\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: %b\r\n\r\n"
            writer.write(draw.choice((head % accept, mutated(draw, [head % accept]))) + draw.choice(_FRAMES))
            return False
        # In one piece: what comes behind an answer when its connection is in use again is no proxy's to tell apart.
        writer.write(mutated(draw, _ANSWERS))
        return draw.random() < 0.7


async def test_no_crash_no_hang_no_growth() -> None:
    fuzz = HttpFuzz()
    quick = ("--connect-timeout", "1", "--first-byte-timeout", "1", "--idle-timeout", "1", "--access-log", "off")
    async with scripted(fuzz.upstream) as upstream:
        async with served("--upstream", f"http://{upstream}", *QUICK, *quick) as service:
            await fuzz.run(service)
            assert service.process.returncode is None
            await until_settled(lambda: descriptors(service.process.pid), at_most=100)
    faults = fuzz.faults + [f"the upstream got {fault}" for fault in fuzz.upstream.faults]
    assert not faults, f"seed {SEED}: " + "\n".join(faults)
    unhandled = [number for number, line in enumerate(service.err) if "Traceback" in line or " ERROR " in line]
    assert not unhandled, "".join(service.err[unhandled[0] : unhandled[0] + 60])


async def until_settled(count: Callable[[], int], *, at_most: int) -> None:
    """Connections that are over are let go of."""
    async with asyncio.timeout(_HUNG_S):
        while count() > at_most:
            await asyncio.sleep(0.1)


def resident(pid: int) -> float:
    """MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
