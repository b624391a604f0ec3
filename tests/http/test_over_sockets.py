"""Over a real server and real sockets: streaming, background tasks, websockets, lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from ratelimit.http import RateLimitMiddleware
from ratelimit.policy import Policy
from tests.http.apps import limiter_of
from tests.http.serving import served


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def test_a_streamed_body_arrives_chunk_by_chunk(client: httpx.AsyncClient) -> None:
    received = [asyncio.Event() for _ in range(3)]

    async def view(request: Request) -> StreamingResponse:
        async def chunks() -> AsyncIterator[bytes]:
            for number, event in enumerate(received):
                yield b"chunk %d" % number
                # Not one more before the client has this one: a middleware that collects would wait for ever.
                await event.wait()

        return StreamingResponse(chunks())

    app = RateLimitMiddleware(
        Starlette(routes=[Route("/", view)]), limiter=limiter_of(Policy("hint", "5/day", match="/**"))
    )
    async with served(app) as address, client.stream("GET", f"http://{address}/") as answer:
        assert answer.headers.get_list("ratelimit") == ['"hint";r=4;t=43200']
        number = 0
        async for chunk in answer.aiter_raw():
            assert chunk == b"chunk %d" % number
            received[number].set()
            number += 1
        assert number == 3


async def test_a_background_task_runs_after_the_response(client: httpx.AsyncClient) -> None:
    answered, ran = asyncio.Event(), asyncio.Event()

    async def background() -> None:
        await answered.wait()
        ran.set()

    async def view(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok", background=BackgroundTask(background))

    app = RateLimitMiddleware(
        Starlette(routes=[Route("/", view)]), limiter=limiter_of(Policy("hint", "5/day", match="/**"))
    )
    async with served(app) as address:
        assert (await client.get(f"http://{address}/")).text == "ok"
        assert not ran.is_set()
        answered.set()
        await asyncio.wait_for(ran.wait(), 30)


async def test_a_refused_upload_is_not_read(client: httpx.AsyncClient) -> None:
    app = RateLimitMiddleware(Starlette(), limiter=limiter_of(Policy("hint", "0/day", match="/**")))
    async with served(app) as address:
        answer = await client.post(f"http://{address}/", content=b"x" * 3_000_000)
        assert (answer.status_code, answer.json()["status"]) == (429, 429)
        assert (await client.head(f"http://{address}/")).status_code == 429
        assert (await client.get(f"http://{address}/")).status_code == 429


async def test_websockets() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    limiter = limiter_of(Policy("feed", "1/day", match="GET /feed"))
    app = RateLimitMiddleware(Starlette(routes=[WebSocketRoute("/feed", echo)]), limiter=limiter)
    async with served(app) as address:
        async with connect(f"ws://{address}/feed", proxy=None) as websocket:
            assert websocket.response is not None
            assert websocket.response.headers["ratelimit"] == '"feed";r=0;t=43200'
            await websocket.send("hello")
            assert await websocket.recv() == "hello"
        with pytest.raises(InvalidStatus) as caught:
            await connect(f"ws://{address}/feed", proxy=None)
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["content-type"] == "application/problem+json"
