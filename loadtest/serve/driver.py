"""The driver: calls the `Limiter` for whoever sends it a line, and says what came of it and how long the call took.

    allowed lt-x-1-17          may this user do this action?
    a 134                      allowed; the check took 134 µs by this process's clock (r: refused, f: failed)
    - lt-x-0-3                 nothing at all, and the answer at once: what asking the driver costs

What is allowed or refused goes into the usage log as well, as it does behind the middleware.
"""

from __future__ import annotations

import asyncio
from time import perf_counter_ns
from typing import Final, cast

from ratelimit.limiter import Limiter

from ..plan import SERIES
from ..talking import obey
from .books import Books

_NOTHING: Final = b"a 0 \n"


class _Orders(asyncio.Protocol):
    """One connection: its orders one after the other, as a user of Locust sends them."""

    def __init__(self, limiters: dict[str, Limiter], books: Books, running: set[asyncio.Task[None]]) -> None:
        self._limiters = limiters
        self._usage = books.usage
        self._running = running
        self._pending = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._pending += data
        while (end := self._pending.find(b"\n")) >= 0:
            action, _, user = self._pending[:end].decode().partition(" ")
            self._pending = self._pending[end + 1 :]
            if action == "-":
                self._transport.write(_NOTHING)
                continue
            task = asyncio.create_task(self._check(action, user))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _check(self, action: str, user: str) -> None:
        began = perf_counter_ns()
        try:
            decision = await self._limiters[action].check(user, action)
        except Exception as error:
            # Whatever it is, the one who asked has to hear of it, and the report: nothing is decided here.
            self._transport.write(f"f 0 {error!r}\n".replace("\n", " ").encode() + b"\n")
            raise
        took = (perf_counter_ns() - began) // 1000
        if decision.reason == "unavailable":
            self._transport.write(f"f {took} unavailable\n".encode())
            return
        self._transport.write(f"{'a' if decision.allowed else 'r'} {took} \n".encode())
        if (waiting := self._usage._accept(user, action, allowed=decision.allowed)) is not None:
            await waiting


async def serve(url: str, host: str) -> None:
    """Until the standard input ends. A limiter, and so a store and a count of writes, for each action."""
    books = Books(url)
    actions = [series.action for series in SERIES["checks"] if series.action]
    limiters = {action: books.limiter(action, [action]) for action in actions}
    await books.open()
    running: set[asyncio.Task[None]] = set()
    server = await asyncio.get_running_loop().create_server(lambda: _Orders(limiters, books, running), host, 0)
    name, port = server.sockets[0].getsockname()[:2]
    try:
        await obey(f"{name}:{port}", books.count)
    finally:
        server.close()
        for limiter in limiters.values():
            await limiter._checker.background.tasks.drain()
        await books.close()
