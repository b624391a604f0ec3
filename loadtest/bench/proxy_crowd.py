"""What others notice of slow clients: latencies through the sidecar on its own, and with a crowd on it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer

from loadtest.bench.report import BenchReport, Row, Target, bench_report, conclude
from loadtest.bench.servers import CLIENT_CORE, Server, module, on_client_core, sidecar
from loadtest.bench.worker import Turn, take_turn

_GET: Final = b"GET / HTTP/1.1\r\nhost: a\r\nx-user: a\r\n\r\n"


def command(
    rounds: Annotated[int, typer.Option(help="Turns with and without the crowd.")] = 5,
    seconds: Annotated[float, typer.Option(help="Length of one turn.")] = 4,
    at_once: Annotated[int, typer.Option(help="Requests at a time, of those that are measured.")] = 4,
    uploads: Annotated[int, typer.Option(help="Clients that send a byte a second.")] = 500,
    sockets: Annotated[int, typer.Option(help="Websockets on which nothing is said.")] = 500,
    json: Annotated[Path | None, typer.Option(help="Keep the figures in this file.")] = None,
) -> None:
    """500 uploads at a byte a second and 500 idle websockets: what the others notice of them."""
    conclude(run(rounds=rounds, seconds=seconds, at_once=at_once, uploads=uploads, sockets=sockets), json)


def run(*, rounds: int, seconds: float, at_once: int, uploads: int, sockets: int) -> BenchReport:
    """Turns alone and with the crowd, by turns."""
    alone: list[Turn] = []
    crowded: list[Turn] = []
    with in_front_of_app() as server:
        asyncio.run(_turn(server.port, seconds / 4, at_once))
        for _ in range(rounds):
            alone.append(asyncio.run(_turn(server.port, seconds, at_once)))
            with _crowd(server.port, uploads, sockets):
                crowded.append(asyncio.run(_turn(server.port, seconds, at_once)))
    rows = [
        Row("nobody else", _figures(alone)),
        Row(f"{uploads} slow uploads, {sockets} websockets", _figures(crowded)),
    ]
    slower = median(many.p99_us / one.p99_us for one, many in zip(alone, crowded, strict=True))
    targets = [Target("p99 with the crowd, times that without", slower, "at most", 2)]
    notes = ["the sidecar limits; the upstream is a uvicorn of its own; all share this machine's cores"]
    options = f"--rounds {rounds} --seconds {seconds} --at-once {at_once} --uploads {uploads} --sockets {sockets}"
    return bench_report("proxy-crowd", rows, targets, notes, arguments=options)


@contextmanager
def in_front_of_app() -> Iterator[Server]:
    """The sidecar, and behind it an app that takes bodies and websockets."""
    with (
        module("loadtest.bench.asgi_server", "app", core=CLIENT_CORE) as upstream,
        sidecar("--upstream", f"http://127.0.0.1:{upstream.port}") as server,
    ):
        yield server


def _figures(turns: list[Turn]) -> dict[str, float | None]:
    return {
        "requests/s": median(turn.per_second for turn in turns),
        "p50 ms": median(turn.p50_us for turn in turns) / 1000,
        "p99 ms": median(turn.p99_us for turn in turns) / 1000,
    }


async def _turn(port: int, seconds: float, at_once: int) -> Turn:
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(at_once)]
    idle = list(connections)

    async def call() -> None:
        connection = idle.pop()
        await _get(*connection)
        idle.append(connection)

    try:
        return await take_turn(call, seconds=seconds, at_once=at_once)
    finally:
        for _, writer in connections:
            writer.close()


async def _get(reader: StreamReader, writer: StreamWriter) -> None:
    writer.write(_GET)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise RuntimeError(f"answered {head[:60]!r}")
    await reader.readexactly(int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0]))


@contextmanager
def _crowd(port: int, uploads: int, sockets: int) -> Iterator[None]:
    command = [sys.executable, "-m", "loadtest.bench.many_clients", str(port), str(uploads), str(sockets)]
    with subprocess.Popen(on_client_core(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the crowd did not come together")
        try:
            yield
        finally:
            process.stdin.close()
