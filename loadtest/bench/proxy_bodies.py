"""Bodies larger than memory is meant to be, through the sidecar both ways: how fast, and in how much memory."""

from __future__ import annotations

import asyncio
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, NamedTuple, TypeAlias

import typer

from loadtest.bench.report import BenchTarget, Findings, Row
from loadtest.bench.servers import MeasuredServer, megabytes_of, sidecar
from loadtest.bench.stub import body_length

MB: Final = 1 << 20
_PIECE: Final = bytes(range(256)) * 256
_PATIENCE_S: Final = 600


Way: TypeAlias = Callable[[StreamReader, StreamWriter, int], Awaitable[int]]
"""Sends or fetches a body of so many bytes; how many arrived."""


class Passed(NamedTuple):
    """One body that went through."""

    size: int
    seconds: float
    grown: float
    """MB that the sidecar's resident memory had, at most, more than before."""


def run(megabytes: Annotated[int, typer.Option(help="Size of each body.")] = 1024) -> Findings:
    """A body of 1 GB up, one down, and one up in chunks, one after the other: the sidecar's memory stays as it was."""
    passed = asyncio.run(transfer(megabytes * MB))
    rows = [Row(name, {"MB/s": one.size / one.seconds / MB, "RSS, MB more": one.grown}) for name, one in passed.items()]
    most = max(one.grown for one in passed.values())
    targets = [BenchTarget("the sidecar's resident memory, MB more than at the start", most, "at most", 50)]
    notes = [f"each body has {megabytes} MB; the client and the upstream are one process, which shares the cores"]
    return Findings(rows, targets, notes)


async def transfer(size: int) -> dict[str, Passed]:
    """Bodies of so many bytes. Raises `RuntimeError` where one did not arrive whole."""
    server = await asyncio.start_server(_upstream, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with sidecar("--upstream", f"http://127.0.0.1:{port}") as ours:
            await _pass(ours, 1, _download)
            start = megabytes_of("VmRSS", ours.pid)
            passed = {name: await _pass(ours, size, way, start) for name, way in _WAYS.items()}
        # The sidecar is gone, and with it the upstream's connections: let those that serve them come to their end.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
    return passed


async def _pass(server: MeasuredServer, size: int, way: Way, start: float = 0.0) -> Passed:
    since = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(_PATIENCE_S):
            arrived = await way(reader, writer, size)
    finally:
        writer.close()
    if arrived != size:
        raise RuntimeError(f"of {size} bytes {arrived} arrived")
    return Passed(size, time.perf_counter() - since, megabytes_of("VmHWM", server.pid) - start)


async def _upload(reader: StreamReader, writer: StreamWriter, size: int) -> int:
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nx-user: a\r\ncontent-length: %d\r\n\r\n" % size)
    for begin in range(0, size, len(_PIECE)):
        writer.write(_PIECE[: size - begin])
        await writer.drain()
    return int(await _body(reader))


async def _upload_in_chunks(reader: StreamReader, writer: StreamWriter, size: int) -> int:
    writer.write(b"POST / HTTP/1.1\r\nhost: a\r\nx-user: a\r\ntransfer-encoding: chunked\r\n\r\n")
    for begin in range(0, size, len(_PIECE)):
        piece = _PIECE[: size - begin]
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
    writer.write(b"0\r\n\r\n")
    return int(await _body(reader))


async def _download(reader: StreamReader, writer: StreamWriter, size: int) -> int:
    writer.write(b"GET /%d HTTP/1.1\r\nhost: a\r\nx-user: a\r\nconnection: close\r\n\r\n" % size)
    await reader.readuntil(b"\r\n\r\n")
    arrived = 0
    while piece := await reader.read(MB):
        arrived += len(piece)
    return arrived


_WAYS: Final[dict[str, Way]] = {"up, with a length": _upload, "up, in chunks": _upload_in_chunks, "down": _download}


async def _body(reader: StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    return await reader.readexactly(body_length(head))


async def _upstream(reader: StreamReader, writer: StreamWriter) -> None:
    """Sends as many bytes as the path says, and counts those that it is sent."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"GET"):
                await _send(writer, int(head.split(b" ", 2)[1][1:]))
            else:
                count = await _chunked(reader) if b"chunked" in head.lower() else await _read(reader, body_length(head))
                answer = b"%d" % count
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(answer), answer))
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _send(writer: StreamWriter, size: int) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
    for begin in range(0, size, len(_PIECE)):
        writer.write(_PIECE[: size - begin])
        await writer.drain()


async def _read(reader: StreamReader, size: int) -> int:
    missing = size
    while missing:
        if not (piece := await reader.read(min(missing, MB))):
            raise asyncio.IncompleteReadError(b"", missing)
        missing -= len(piece)
    return size


async def _chunked(reader: StreamReader) -> int:
    count = 0
    while size := int(await reader.readline(), 16):
        count += await _read(reader, size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return count
