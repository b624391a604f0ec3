"""An app over real sockets, behind uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

_GRACE_S: Final = 2
_LOOK_AGAIN_S: Final = 0.002


@asynccontextmanager
async def served(app: ASGIApp, *, log_level: str = "error", **options: Any) -> AsyncIterator[str]:
    """The app on a free loopback port; yields `127.0.0.1:PORT`. `options` are uvicorn's."""
    # With its protocol said, asyncio turns Nagle's algorithm off: no answer waits 40 ms for an acknowledgement.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level=log_level, ws="websockets-sansio", **options)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[listener])
        assert server.started, "the server did not start"
        await server.on_tick(0)  # the headers that every answer has
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await _end(server)


async def _end(server: uvicorn.Server) -> None:
    """As `Server.serve` ends, which looks only every 100 ms whether it should, and whether it may."""
    for each in server.servers:
        each.close()
    state = server.server_state
    for connection in list(state.connections):
        connection.shutdown()
    with suppress(TimeoutError):
        async with asyncio.timeout(_GRACE_S):
            while state.connections or state.tasks:
                await asyncio.sleep(_LOOK_AGAIN_S)
    for task in state.tasks:
        task.cancel()
    await server.lifespan.shutdown()
