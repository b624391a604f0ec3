"""Requests at a steady rate, whatever becomes of those before: `python -m loadtest.bench.pace PORT RATE SECONDS`.

Prints the quantiles of their latencies in milliseconds, as JSON. A request goes out on a connection on which nothing is
waited for, and is timed from then to the last byte of its answer; how many wait at once is up to the server.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from typing import cast

from loadtest.bench.servers import on_client_core
from loadtest.bench.stub import body_length

_CONNECTIONS = 32
_USERS = 256


def latencies(port: int, *, rate: int, seconds: float) -> dict[str, float]:
    """`p50` and `p99`, in milliseconds, by a client in a process of its own."""
    command = [sys.executable, "-m", "loadtest.bench.pace", str(port), str(rate), str(seconds)]
    said = subprocess.run(on_client_core(command), capture_output=True, text=True, check=True, timeout=seconds + 60)
    found: dict[str, float] = json.loads(said.stdout)
    return found


class _TimedConnection(asyncio.Protocol):
    def __init__(self, idle: list[_TimedConnection], times: list[float]) -> None:
        self._idle = idle
        self._times = times
        self._since = 0.0
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes) -> None:
        self._since = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head, end, body = self._unread.partition(b"\r\n\r\n")
        if end and len(body) >= body_length(head):
            assert head.startswith(b"HTTP/1.1 200 "), head
            self._times.append(time.perf_counter() - self._since)
            self._unread = b""
            self._idle.append(self)


async def _run(port: int, rate: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    idle: list[_TimedConnection] = []
    times: list[float] = []

    async def connect() -> _TimedConnection:
        return (await loop.create_connection(lambda: _TimedConnection(idle, times), "127.0.0.1", port))[1]

    idle += [await connect() for _ in range(_CONNECTIONS)]
    requests = [b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx-user: user-%d\r\n\r\n" % number for number in range(_USERS)]
    began, number, total = time.perf_counter(), 0, int(rate * seconds)
    while number < total:
        while number < min(total, (time.perf_counter() - began) * rate):
            one = idle.pop() if idle else await connect()
            one.ask(requests[number % _USERS])
            number += 1
        await asyncio.sleep(0.5 / rate)
    async with asyncio.timeout(10):
        while len(times) < total:  # noqa: ASYNC110 (the last is as good as any)
            await asyncio.sleep(0.01)
    times.sort()
    print(json.dumps({"p50": times[total // 2] * 1000, "p99": times[int(total * 0.99)] * 1000}))  # noqa: T201


if __name__ == "__main__":
    import uvloop

    uvloop.run(_run(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
