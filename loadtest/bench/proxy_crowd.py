"""What others notice of slow clients: latencies through the sidecar on its own, and with a crowd on it.

The crowd is `python -m loadtest.bench.proxy_crowd PORT UPLOADS SOCKETS`: each upload sends a byte of its body a second
and never comes to its end; each websocket is open and says nothing.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer

from loadtest.bench.report import AtOnce, BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.requester import asking
from loadtest.bench.runner import Measured, ratio
from loadtest.bench.servers import CLIENT_CORE, MeasuredServer, module, on_client_core, sidecar
from loadtest.bench.worker import Turn, take_turn
from loadtest.talking import obey, talking

_GET: Final = b"GET / HTTP/1.1\r\nhost: a\r\nx-user: a\r\n\r\n"
_EVERY_S: Final = 1.0
_AT_ONCE: Final = 50


def run(
    rounds: Rounds = 5,
    seconds: Seconds = 4,
    at_once: AtOnce = 4,
    uploads: Annotated[int, typer.Option(help="Clients that send a byte a second.")] = 500,
    sockets: Annotated[int, typer.Option(help="Websockets on which nothing is said.")] = 500,
) -> Findings:
    """500 uploads at a byte a second and 500 idle websockets: what the others notice of them, alone and with the crowd
    by turns."""
    alone, crowded = Measured(), Measured()
    with in_front_of_app() as server:
        asyncio.run(_turn(server.port, seconds / 4, at_once))
        for _ in range(rounds):
            alone.turns.append(asyncio.run(_turn(server.port, seconds, at_once)))
            command = [sys.executable, "-m", "loadtest.bench.proxy_crowd", *map(str, (server.port, uploads, sockets))]
            with talking(on_client_core(command)):
                crowded.turns.append(asyncio.run(_turn(server.port, seconds, at_once)))
    rows = [
        Row(name, {"requests/s": one.median("per_second"), **one.milliseconds()})
        for name, one in {"nobody else": alone, f"{uploads} slow uploads, {sockets} websockets": crowded}.items()
    ]
    slower = ratio(crowded, alone, "p99_us")
    targets = [BenchTarget("p99 with the crowd, times that without", slower, "at most", 2)]
    notes = ["the sidecar limits; the upstream is a uvicorn of its own; all share this machine's cores"]
    return Findings(rows, targets, notes)


@contextmanager
def in_front_of_app() -> Iterator[MeasuredServer]:
    """The sidecar, and behind it an app that takes bodies and websockets."""
    with (
        module("loadtest.bench.asgi_server", "app", core=CLIENT_CORE) as upstream,
        sidecar("--upstream", f"http://127.0.0.1:{upstream.port}") as server,
    ):
        yield server


async def _turn(port: int, seconds: float, at_once: int) -> Turn:
    async with asking(port, [_GET], at_once) as call:
        return await take_turn(call, seconds=seconds, at_once=at_once)


async def crowd(port: int, *, uploads: int, sockets: int) -> list[StreamWriter]:
    """Gather all of them, some at a time."""
    ways = [_upload] * uploads + [_websocket] * sockets
    found: list[StreamWriter] = []
    for begin in range(0, len(ways), _AT_ONCE):
        found += await asyncio.gather(*(way(port) for way in ways[begin : begin + _AT_ONCE]))
    return found


async def _upload(port: int) -> StreamWriter:
    """As far as the upstream has said that it is there: it answers the `Expect`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n")
    await _said(reader, b"HTTP/1.1 100 ")
    return writer


async def _websocket(port: int) -> StreamWriter:
    """As far as the handshake goes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    key = base64.b64encode(os.urandom(16))
    writer.write(
        b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        b"sec-websocket-key: %b\r\n\r\n" % key
    )
    await _said(reader, b"HTTP/1.1 101 ")
    return writer


async def _said(reader: StreamReader, start: bytes) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(start):
        raise RuntimeError(f"expected {start!r}, not {head[:60]!r}")


async def _drip(writer: StreamWriter) -> None:
    while True:
        writer.write(b"x")
        await asyncio.sleep(_EVERY_S)


async def _main(port: int, uploads: int, sockets: int) -> None:
    writers = await crowd(port, uploads=uploads, sockets=sockets)
    dripping = []
    for writer in writers[:uploads]:
        dripping.append(asyncio.create_task(_drip(writer)))
        await asyncio.sleep(_EVERY_S / uploads)  # evenly
    await obey("ready")
    for task in dripping:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_main(*map(int, sys.argv[1:])))
