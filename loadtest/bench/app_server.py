"""The app that `app` measures, on one uvicorn worker: `python -m loadtest.bench.app_server VARIANT [ENDPOINT]`.

Prints its port, and serves until its standard input ends. `GET /` is limited, `GET /cpu` tells the seconds of CPU that
this process has used and is not.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import time

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.http import RateLimitMiddleware
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from ratelimit.store import MemoryStore, Store


def build(variant: str, endpoint: str) -> Starlette:
    """The same app for all: `bare`, or with the middleware on the `embedded` store, the `fast` lane or the `slow` one;
    `frozen` is the fast lane in a process that has called `gc.freeze()` once it had started."""
    app = Starlette(routes=[Route("/", _hello), Route("/cpu", _cpu)])
    if variant != "bare":
        policy = Policy("hello", "1000000000/hour", match="GET /", on_unavailable="deny")
        limiter = Limiter(_store(variant, endpoint), [policy], deadline=30)
        app.add_middleware(RateLimitMiddleware, limiter=limiter, user_from="header:x-user")
    return app


def _store(variant: str, endpoint: str) -> Store:
    if variant == "embedded":
        return MemoryStore()
    return DynamoDBStore(table="bench", endpoint=endpoint, fast=variant != "slow")


async def _hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


async def _cpu(request: Request) -> PlainTextResponse:
    return PlainTextResponse(repr(time.process_time()))


async def _serve(variant: str, endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        app = build(variant, endpoint)
        config = uvicorn.Config(app, loop="none", http="httptools", log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        while not (server.started or serving.done()):  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        if variant == "frozen":
            gc.collect()
            gc.freeze()
        print(listening.getsockname()[1], flush=True)  # noqa: T201
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        server.should_exit = True
        await serving


def main(variant: str, endpoint: str = "") -> None:
    """On uvloop."""
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(variant, endpoint))


if __name__ == "__main__":
    main(*sys.argv[1:])
