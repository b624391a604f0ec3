"""What Starlette does works the same behind the middleware, message for message: it only adds headers to the start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from ratelimit import Policy, RateLimitMiddleware
from tests.http.apps import call, limiter_of, scope_of

OURS = (b"ratelimit", b"ratelimit-policy")
ran: list[str] = []


async def chunks() -> AsyncIterator[bytes]:
    for number in range(3):
        yield b"chunk %d" % number


def threaded_chunks() -> Iterator[str]:
    yield from ("one", "two")


async def pieces(request: Request) -> JSONResponse:
    return JSONResponse([len(piece) async for piece in request.stream() if piece])


async def fails(request: Request) -> Response:
    raise HTTPException(418, "a teapot")


async def fails_late(request: Request) -> Response:
    raise ZeroDivisionError


async def tasks(request: Request) -> Response:
    several = BackgroundTasks([BackgroundTask(ran.append, "first"), BackgroundTask(ran.append, "second")])
    return PlainTextResponse("answered before", background=several)


async def stop(request: Request) -> Response:
    answer = StreamingResponse(chunks(), media_type="text/event-stream", background=BackgroundTask(ran.append, "done"))
    answer.set_cookie("a", "1")
    answer.set_cookie("b", "2")
    return answer


async def talk(websocket: WebSocket) -> None:
    await websocket.accept(subprotocol="chat")
    await websocket.send_json(await websocket.receive_json())
    await websocket.send_bytes(await websocket.receive_bytes())
    async for text in websocket.iter_text():
        await websocket.send_text(text)
    ran.append("hung up")


async def refuse(websocket: WebSocket) -> None:
    await websocket.send_denial_response(PlainTextResponse("not you", status_code=403))


async def close(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close(4001, "enough")


class Passing(BaseHTTPMiddleware):
    """The kind of middleware that reads the app's messages and sends its own."""

    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        return await call_next(request)


def starlette_app() -> Starlette:
    responses: dict[str, Any] = {
        "plain": lambda _: PlainTextResponse("hello"),
        "json": lambda _: JSONResponse({"a": 1}),
        "empty": lambda _: Response(status_code=204),
        "stream": lambda _: StreamingResponse(chunks()),
        "threaded": lambda _: StreamingResponse(threaded_chunks()),
        "file": lambda _: FileResponse(Path(__file__)),
        "redirect": lambda _: RedirectResponse("/plain"),
        "gzip": lambda _: PlainTextResponse("hello" * 1000),
    }
    views = {"pieces": pieces, "fails": fails, "fails_late": fails_late, "tasks": tasks, "stop": stop}
    sockets = {"talk": talk, "refuse": refuse, "close": close}
    return Starlette(
        routes=[
            *(Route(f"/{name}", view, methods=["GET", "POST"]) for name, view in {**responses, **views}.items()),
            *(WebSocketRoute(f"/{name}", view) for name, view in sockets.items()),
        ],
        middleware=[Middleware(Passing), Middleware(GZipMiddleware)],
    )


class Wire:
    """Where a server would be: keeps every message that was sent, of all connections."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.sent: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def noting(message: Message) -> None:
            self.sent.append(message)
            await send(message)

        await self.app(scope, receive, noting)


def bare_and_behind() -> tuple[Wire, Wire]:
    limiter = limiter_of(Policy("hint", "1000/day", match="/**"))
    return Wire(starlette_app()), Wire(RateLimitMiddleware(starlette_app(), limiter=limiter))


def without_ours(messages: list[Message], *, least: int) -> list[Message]:
    """The messages as the app sent them. At least so many of them say where the quota stands."""
    found: list[Message] = []
    told = 0
    for message in messages:
        fields = [(name, value) for name, value in message.get("headers", ()) if name not in OURS]
        told += len(fields) < len(message.get("headers", ()))
        found.append({**message, "headers": fields} if "headers" in message else message)
    assert told >= least
    return found


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        *(
            ("GET", f"/{name}", {})
            for name in ("plain", "json", "empty", "stream", "threaded", "file", "tasks", "stop")
        ),
        *(("HEAD", f"/{name}", {}) for name in ("plain", "stream", "file")),
        ("GET", "/redirect", {}),
        ("GET", "/gzip", {"headers": {"accept-encoding": "gzip"}}),
        ("GET", "/file", {"headers": {"range": "bytes=3-9"}}),
        *(("GET", f"/{name}", {}) for name in ("fails", "fails_late", "nowhere")),
        ("DELETE", "/plain", {}),
    ],
)
async def test_an_answer_is_sent_as_the_app_sends_it(method: str, path: str, options: dict[str, Any]) -> None:
    ran.clear()
    bare, behind = bare_and_behind()
    for wire in (bare, behind):
        transport = httpx.ASGITransport(wire, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await client.request(method, path, **options)
    assert [message["type"] for message in behind.sent].count("http.response.start") == 1
    assert without_ours(behind.sent, least=1) == bare.sent
    assert ran == {"/tasks": ["first", "second"] * 2, "/stop": ["done"] * 2}.get(path, [])


async def upload() -> AsyncIterator[bytes]:
    yield b"a" * 10
    yield b"b" * 20


async def test_a_body_is_read_by_the_app_piece_by_piece() -> None:
    bare, behind = bare_and_behind()
    for wire in (bare, behind):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(wire), base_url="http://test") as client:
            assert (await client.post("/pieces", content=upload())).json() == [10, 20]
    assert without_ours(behind.sent, least=1) == bare.sent


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/talk", [{"text": '{"a":1}'}, {"bytes": b"\x00"}, {"text": "b"}, {"text": "c"}]),
        ("/refuse", []),
        ("/close", []),
    ],
)
async def test_a_websocket_says_what_the_app_says(path: str, said: list[dict[str, Any]]) -> None:
    ran.clear()
    bare, behind = bare_and_behind()
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    for wire in (bare, behind):
        heard: list[Message] = [{"type": "websocket.receive", **message} for message in said]
        inbox = iter([{"type": "websocket.connect"}, *heard, {"type": "websocket.disconnect", "code": 1000}])

        async def receive(inbox: Iterator[Message] = inbox) -> Message:
            return next(inbox)

        await call(wire, scope_of(path, kind="websocket", subprotocols=["chat"], extensions=extensions), receive)
    assert without_ours(behind.sent, least=1) == bare.sent
    assert ran == (["hung up"] * 2 if said else [])
