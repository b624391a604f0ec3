"""One server: `python -m ratelimit.loadtest.serve NAME STORE HOST [UPSTREAM]`; NAME is `driver` or one of the apps."""

from __future__ import annotations

import asyncio
import socket
import sys

import uvicorn

from . import driver
from .apps import BUILDERS
from .books import Books
from .control import obey, run


async def _serve_app(name: str, url: str, host: str, upstream: str) -> None:
    """An app on one uvicorn worker, on any free port."""
    books = Books(url)
    app = BUILDERS[name](books, upstream)
    counts = name != "bare"
    if counts:
        await books.open()
    with socket.create_server((host, 0), backlog=2048) as listening:
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
        bound, port = listening.getsockname()[:2]
        await obey(f"{bound}:{port}", books.count if counts else None)
        server.should_exit = True
        await serving
    if counts:
        await books.close()


def main(name: str, url: str, host: str, upstream: str = "") -> None:
    """Until the standard input ends."""
    run(driver.serve(url, host) if name == "driver" else _serve_app(name, url, host, upstream))


if __name__ == "__main__":
    main(*sys.argv[1:])
