"""Requests by the thousand: `wrk` where it is installed, else a client of our own, which takes more of the machine."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from math import ceil
from pathlib import Path
from typing import Literal, TypeAlias, cast

from loadtest.bench.servers import MeasuredServer, on_client_core
from loadtest.bench.stub import body_length
from loadtest.bench.worker import Call, Turn, take_turn

Shape: TypeAlias = Literal["get", "authz", "check"]

Load: TypeAlias = Callable[..., tuple[float, int]]
"""Asks a port for so many `seconds`, `at_once`: requests a second, and how many."""

_USERS = 256
_PACED_CONNECTIONS = 32
_SCRIPT = Path(__file__).with_name("requests.lua")
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_MADE = re.compile(r"(\d+) requests in")
_BAD = re.compile(r"Non-2xx.*|Socket errors.*")


def has_wrk() -> bool:
    return shutil.which("wrk") is not None


def client() -> str:
    """Return who asks, for people."""
    return "wrk" if has_wrk() else "our own client (there is no wrk)"


def turn_of(server: MeasuredServer, load: Load | None = None, *, seconds: float, at_once: int) -> Turn:
    """Let a server be asked for so many seconds, and return what it has done and used. Raises `RuntimeError`."""
    before = server.cpu_seconds()
    rate, requests = (load or request_many)(server.port, seconds=seconds, at_once=at_once)
    if not requests:
        raise RuntimeError("nothing was answered")
    return Turn(requests, requests / rate, server.cpu_seconds() - before)


def request_many(port: int, *, seconds: float, at_once: int, shape: Shape = "get") -> tuple[float, int]:
    """Requests a second, and how many; every one of them answered with 200. Raises `RuntimeError` where one was not.

    `wrk` rounds the seconds up to whole ones.
    """
    if has_wrk():
        command = ["wrk", "-t1", f"-c{at_once}", f"-d{ceil(seconds)}s", "-s", str(_SCRIPT), f"http://127.0.0.1:{port}/"]
        command += ["--", shape]
    else:
        command = [sys.executable, "-m", "loadtest.bench.requester", str(port), str(seconds), str(at_once), shape]
    said = subprocess.run(
        on_client_core(command), capture_output=True, text=True, check=True, timeout=seconds + 60
    ).stdout
    rate, made, bad = _RATE.search(said), _MADE.search(said), _BAD.search(said)
    if rate is None or made is None or bad is not None:
        raise RuntimeError(said if bad is None else bad.group())
    return float(rate.group(1)), int(made.group(1))


def _request(user: str, shape: str) -> bytes:
    if shape == "check":
        body = f'{{"user":"{user}","action":"api"}}'
        fields = f"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        return f"POST /v1/check HTTP/1.1\r\n{fields}".encode()
    path = "/v1/authz/" if shape == "authz" else "/"
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nx-user: {user}\r\n\r\n".encode()


@asynccontextmanager
async def asking(port: int, requests: Sequence[bytes], at_once: int) -> AsyncIterator[Call]:
    """Open so many connections, and yield what makes the next of the requests on one that is idle. It raises
    `RuntimeError` for an answer that is not 200."""
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(at_once)]
    writers, turns = [writer for _, writer in idle], itertools.cycle(requests)

    async def call() -> None:
        reader, writer = connection = idle.pop()
        writer.write(next(turns))
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200 "):
            raise RuntimeError(f"answered {head[:60]!r}")
        await reader.readexactly(body_length(head))
        idle.append(connection)

    try:
        yield call
    finally:
        for writer in writers:
            writer.close()


async def _as_fast_as_it_goes(port: int, seconds: float, at_once: int, shape: str) -> None:
    requests = [_request(f"user-{number}", shape) for number in range(_USERS)]
    async with asking(port, requests, at_once) as call:
        turn = await take_turn(call, seconds=seconds, at_once=at_once)
    print(f"{turn.calls} requests in {seconds}s\nRequests/sec: {turn.per_second}")  # noqa: T201


# Requests at a steady rate, whatever becomes of those before: each goes out on a connection on which nothing is waited
# for, and is timed from then to the last byte of its answer. How many wait at once is up to the server.


def latencies(port: int, *, rate: int, seconds: float) -> dict[str, float]:
    """`p50` and `p99`, in milliseconds, by a client in a process of its own."""
    command = [sys.executable, "-m", "loadtest.bench.requester", str(port), str(seconds), str(rate), "paced"]
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


async def _at_pace(port: int, seconds: float, rate: int) -> None:
    loop = asyncio.get_running_loop()
    idle: list[_TimedConnection] = []
    times: list[float] = []

    async def connect() -> _TimedConnection:
        return (await loop.create_connection(lambda: _TimedConnection(idle, times), "127.0.0.1", port))[1]

    idle += [await connect() for _ in range(_PACED_CONNECTIONS)]
    requests = [_request(f"user-{number}", "get") for number in range(_USERS)]
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


def _main(port: str, seconds: str, many: str, shape: str) -> None:
    if shape == "paced":
        import uvloop

        uvloop.run(_at_pace(int(port), float(seconds), int(many)))
    else:
        asyncio.run(_as_fast_as_it_goes(int(port), float(seconds), int(many), shape))


if __name__ == "__main__":
    _main(*sys.argv[1:])
