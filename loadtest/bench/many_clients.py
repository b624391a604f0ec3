"""Clients that take their time: `python -m loadtest.bench.many_clients PORT UPLOADS SOCKETS`.

Each upload sends a byte of its body a second and never comes to its end; each websocket is open and says nothing.
Prints `ready` when all of them are in place, and lets go when its standard input ends.
"""

from __future__ import annotations

import asyncio
import base64
import os
import sys
from asyncio import StreamReader, StreamWriter
from typing import Final

_EVERY_S: Final = 1.0
_AT_ONCE: Final = 50


async def upload(port: int) -> StreamWriter:
    """As far as the upstream has said that it is there: it answers the `Expect`."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 1000000\r\n\r\n")
    await _said(reader, b"HTTP/1.1 100 ")
    return writer


async def websocket(port: int) -> StreamWriter:
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


async def gather(port: int, *, uploads: int, sockets: int) -> list[StreamWriter]:
    """All of them, some at a time."""
    ways = [upload] * uploads + [websocket] * sockets
    found: list[StreamWriter] = []
    for begin in range(0, len(ways), _AT_ONCE):
        found += await asyncio.gather(*(way(port) for way in ways[begin : begin + _AT_ONCE]))
    return found


async def _main(port: int, uploads: int, sockets: int) -> None:
    writers = await gather(port, uploads=uploads, sockets=sockets)
    dripping = []
    for writer in writers[:uploads]:
        dripping.append(asyncio.create_task(_drip(writer)))
        await asyncio.sleep(_EVERY_S / uploads)  # evenly
    print("ready", flush=True)  # noqa: T201
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for task in dripping:
        task.cancel()


if __name__ == "__main__":
    asyncio.run(_main(*map(int, sys.argv[1:])))
