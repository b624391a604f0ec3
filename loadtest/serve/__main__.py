"""One server: `python -m ratelimit.loadtest.serve NAME STORE HOST [UPSTREAM]`; NAME is `driver` or one of the apps."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from ratelimit.server.listener import Listener

from . import driver
from .apps import APPS, SERVICES
from .books import Books, obey, run

_GRACE_S: Final = 1.0


async def _serve_app(name: str, url: str, host: str, upstream: str) -> None:
    """An app on one worker, on any free port."""
    books = Books(url)
    counts = name != "bare"
    if counts:
        await books.open()
    with socket.create_server((host, 0), backlog=2048) as listening:
        bound, port = listening.getsockname()[:2]
        obeying = partial(obey, f"{bound}:{port}", books.count if counts else None)
        if name in APPS:
            await _by_uvicorn(APPS[name](books, upstream), listening, obeying)
        else:
            listener = Listener(SERVICES[name](books, upstream), listening)
            await listener.start()
            await obeying()
            await listener.drain(linger=0, grace=_GRACE_S)
            await listener.stop()
    if counts:
        await books.close()


async def _by_uvicorn(app: ASGIApp, listening: socket.socket, obeying: Callable[[], Awaitable[None]]) -> None:
    config = uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        log_level="warning",
        access_log=False,
        lifespan="on",
        timeout_keep_alive=75,
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    while not (server.started or serving.done()):  # noqa: ASYNC110 (uvicorn has no event for it)
        await asyncio.sleep(0.01)
    await obeying()
    server.should_exit = True
    await serving


def main(name: str, url: str, host: str, upstream: str = "") -> None:
    run(driver.serve(url, host) if name == "driver" else _serve_app(name, url, host, upstream))


if __name__ == "__main__":
    main(*sys.argv[1:])
