"""Frames at random, and at random wrong: whatever comes, a connection answers or ends, in time and in bounded memory.

make fuzz-grpc FOR=600 ARGS=SEED
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable

from ratelimit.envoy import http2
from ratelimit.envoy.grpc import Call
from ratelimit.envoy.http2 import PREFACE, frame
from tests.envoy.wire import ECHO, Client, prefixed

SLOW_S = 0.25
"""More for what one read brings, of at most some 20 KB, is a finding."""


async def _later(message: bytes) -> bytes:
    await asyncio.sleep(0 if len(message) % 2 else 0.001)
    return message


def _method(message: bytes, call: Call) -> object:
    return _later(message) if len(message) % 3 else message


class Fuzz:
    """One connection's life."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.client = Client({ECHO: _method}, greet=False)  # type: ignore[dict-item]
        self.stream = 1

    async def run(self) -> None:
        chance = self.random
        known = PREFACE + frame(http2.SETTINGS, 0, 0)
        self.feed(known if chance.random() < 0.9 else self.mutated(known))
        for _ in range(chance.randint(1, 30)):
            sent = b"".join(self.some() for _ in range(chance.randint(1, 8)))
            self.feed(self.mutated(sent) if chance.random() < 0.5 else sent)
            if chance.random() < 0.2:
                await asyncio.sleep(0)
            if chance.random() < 0.1:
                self.client.tick(chance.choice((0.5, 5, 30)))
            self.check()
        self.client.protocol.connection_lost(None)
        await asyncio.sleep(0)
        assert not self.client.protocol.streams
        assert not self.client.protocol._running

    def feed(self, data: bytes) -> None:
        """In pieces, as a socket would give them, and no more after its end."""
        chance = self.random
        since = time.process_time()
        while data and self.client.transport.state == "open":
            size = chance.choice((1, 9, 100, len(data)))
            self.client.send(data[:size])
            data = data[size:]
        assert time.process_time() - since < SLOW_S, "it takes too long"

    def check(self) -> None:
        protocol = self.client.protocol
        assert len(protocol.streams) <= http2.MAX_STREAMS
        assert len(protocol._buffer) <= 9 + 16_384
        assert len(protocol._discarded) <= http2.ALLOWANCE
        assert all(len(each.body) <= 65_535 for each in protocol.streams.values())
        for answered in self.client.frames():  # what comes back is in frames, each of a type that servers send
            assert answered.kind in (0, 1, 3, 4, 6, 7, 8)

    def some(self) -> bytes:
        """A frame or a few, mostly as they should be."""
        return self.random.choice(_KINDS)(self)

    def mutated(self, data: bytes) -> bytes:
        chance = self.random
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 5, 20))):
            at = chance.randrange(len(changed) + 1)
            match chance.randrange(5):
                case 0:
                    changed[at : at + 1] = bytes((chance.randrange(256),))
                case 1:
                    del changed[at : at + chance.choice((1, 4, 100))]
                case 2:
                    changed[at:at] = chance.randbytes(chance.choice((1, 3, 40)))
                case 3:
                    changed[at:at] = changed[max(at - 50, 0) : at]
                case _ if at < len(changed):
                    changed[at] ^= 1 << chance.randrange(8)
        return bytes(changed)

    def call(self) -> bytes:
        self.stream += 2
        return self.client.call(self.stream, self.random.randbytes(self.random.choice((0, 1, 5, 300, 20_000))))

    def part(self) -> bytes:
        self.stream += 2
        return self.client.head(self.stream, flags=self.random.randrange(256)) + self.data()

    def data(self) -> bytes:
        body = self.random.choice((b"", prefixed(b"abc"), b"\x01abc", self.random.randbytes(50)))
        return frame(http2.DATA, self.random.randrange(256), self.near(), body)

    def fields(self) -> bytes:
        fields = [(self.random.choice(_NAMES), self.random.choice(_VALUES)) for _ in range(self.random.randrange(9))]
        self.stream += 2
        return frame(http2.HEADERS, 5, self.stream, self.client.encoder.encode(fields))

    def block(self) -> bytes:
        self.stream += 2
        return frame(http2.HEADERS, self.random.choice((0, 1, 4, 5)), self.stream, self.random.randbytes(40))

    def any(self) -> bytes:
        payload = self.random.randbytes(self.random.choice((0, 4, 5, 6, 8, 12, 100)))
        return frame(self.random.randrange(12), self.random.randrange(256), self.near(), payload)

    def control(self) -> bytes:
        kind, size = self.random.choice(((4, 6), (6, 8), (8, 4), (3, 4), (2, 5), (7, 8)))
        small = self.random.choice((b"\0\4\0\0", b"\0\0\0\1", b"\0\0\1\0"))
        stream = 0 if kind in (4, 6, 7) else self.near()
        return frame(kind, self.random.choice((0, 0, 1)), stream, (small + bytes(8))[:size])

    def near(self) -> int:
        return self.random.choice((0, 1, self.stream, self.stream, self.stream + 2, max(self.stream - 2, 0)))


_KINDS: tuple[Callable[[Fuzz], bytes], ...] = (
    *(Fuzz.call,) * 4,
    *(Fuzz.control,) * 3,
    Fuzz.part,
    Fuzz.data,
    Fuzz.fields,
    Fuzz.block,
    Fuzz.any,
)
_NAMES = (
    b":method",
    b":path",
    b":scheme",
    b":status",
    b"te",
    b"content-length",
    b"grpc-timeout",
    b"X",
    b"content-type",
)
_VALUES = (
    b"POST",
    ECHO,
    b"http",
    b"trailers",
    b"",
    b"-1",
    b"5",
    b"1m",
    b"99999999999H",
    b"application/grpc",
    b"\xff\n",
)


async def fuzz(seed: int, is_over: Callable[[int], bool]) -> int:
    """Run connection after connection until there are enough; return how many. The next one has the next seed."""
    loop = asyncio.get_running_loop()
    faults: list[object] = []
    loop.set_exception_handler(lambda loop, context: faults.append(context))
    runs = 0
    while not is_over(runs):
        try:
            await Fuzz(seed + runs).run()
            assert not faults, faults
        except BaseException as error:
            error.add_note(f"seed {seed + runs}")
            raise
        runs += 1
    await asyncio.sleep(0.01)
    assert len(asyncio.all_tasks()) == 1
    return runs


if __name__ == "__main__":
    logging.disable()
    until = time.monotonic() + float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    print(asyncio.run(fuzz(seed, lambda _: time.monotonic() > until)))  # noqa: T201
