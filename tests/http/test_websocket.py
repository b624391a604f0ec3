"""Websocket handshakes are checked before they are accepted."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket
from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed

from ratelimit import Limiter, MemoryStore, Policy, QuotaExceeded, RateLimitMiddleware, UsageLog, limited
from ratelimit.policy import Count
from tests.http.apps import call, headers_of, limiter_of, scope_of, used

DENIAL: dict[str, Any] = {"websocket.http.response": {}}


def handshake(**more: Any) -> Scope:
    return scope_of("/feed", kind="websocket", **more)


async def chat(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept", "subprotocol": "chat", "headers": [(b"a", b"b")]})
    await send({"type": "websocket.send", "text": "hello"})
    await send({"type": "websocket.close", "code": 1000})


async def test_an_accepted_handshake_carries_the_headers_and_the_rest_is_left_alone() -> None:
    app = RateLimitMiddleware(chat, limiter=limiter_of(Policy("feed", "5/day", match="GET /feed")))
    accept, *rest = await call(app, handshake())
    assert headers_of(accept) == {"a": "b", "ratelimit-policy": '"feed";q=5;w=86400', "ratelimit": '"feed";r=4;t=43200'}
    assert accept["subprotocol"] == "chat"
    assert rest == (await call(chat, handshake()))[1:]


async def test_refused_by_a_close_before_it_is_accepted() -> None:
    app = RateLimitMiddleware(chat, limiter=limiter_of(Policy("feed", "0/day", match="WEBSOCKET /feed")))
    without: list[dict[str, Any] | None] = [None, {}, {"tls": {}}]
    for extensions in without:
        assert await call(app, handshake(extensions=extensions)) == [
            {"type": "websocket.close", "code": 1008, "reason": "quota exceeded"}
        ]


async def test_refused_by_a_response_where_the_server_can() -> None:
    app = RateLimitMiddleware(chat, limiter=limiter_of(Policy("feed", "0/day", match="/**")))
    start, body = await call(app, handshake(extensions=DENIAL))
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert headers_of(start)["content-type"] == "application/problem+json"
    assert body["type"] == "websocket.http.response.body"
    assert json.loads(body["body"])["violated-policies"] == ["feed"]


@pytest.mark.parametrize(
    ("first", "count", "spent"),
    [
        ({"type": "websocket.accept"}, "success", 1),
        ({"type": "websocket.accept"}, "failure", 0),
        ({"type": "websocket.close"}, "success", 0),
        ({"type": "websocket.close"}, "failure", 1),
        ({"type": "websocket.http.response.start", "status": 403}, "success", 0),
        ({"type": "websocket.http.response.start", "status": 200}, "success", 0),
    ],
)
async def test_accepted_is_success(first: Message, count: Count, spent: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send(first)

    limiter = limiter_of(Policy("feed", "5/day", match="/**", count=count))
    await call(RateLimitMiddleware(app, limiter=limiter), handshake())
    assert await used(limiter, action="feed") == spent


async def test_a_refusal_after_the_close_cannot_be_answered() -> None:
    ask = limited("feed")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await chat(scope, receive, send)
        await ask(WebSocket(scope, receive, send))

    with pytest.raises(QuotaExceeded):
        await call(RateLimitMiddleware(app, limiter=limiter_of(Policy("feed", "0/day"))), handshake())


@pytest.mark.parametrize("accepted", [False, True])
async def test_a_view_that_asks_by_itself(accepted: bool) -> None:
    ask = limited("feed")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if accepted:
            await send({"type": "websocket.accept"})
        await ask(WebSocket(scope, receive, send))

    limiter = limiter_of(Policy("feed", "1/day"))
    middleware = RateLimitMiddleware(app, limiter=limiter)
    assert await call(middleware, handshake()) == [{"type": "websocket.accept"}] * accepted
    sent = await call(middleware, handshake())
    assert sent[-1] == {"type": "websocket.close", "code": 1008, "reason": "quota exceeded"}


def checking_messages(limiter: Limiter, *, catches: bool = False, **options: Any) -> ASGIApp:
    """Says ok to each message that passes."""
    ask = limited("message")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        websocket = WebSocket(scope, receive, send)
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            try:
                await ask(websocket)
            except QuotaExceeded:
                if not catches:
                    raise
                await send({"type": "websocket.send", "text": "later"})
            else:
                await send({"type": "websocket.send", "text": "ok"})

    return RateLimitMiddleware(app, limiter=limiter, **options)


def messages(count: int, hook: Callable[[int], None] = lambda number: None) -> Receive:
    sent = 0

    async def receive() -> Message:
        nonlocal sent
        sent += 1
        hook(sent - 1)
        if sent <= count:
            return {"type": "websocket.receive", "text": "hello"}
        return {"type": "websocket.disconnect", "code": 1000}

    return receive


def said(sent: list[Message], text: str) -> int:
    return sum(message.get("text") == text for message in sent)


async def test_messages_stay_spent_however_often_a_client_comes_back() -> None:
    limiter = limiter_of(Policy("feed", "100/day", match="/feed"), Policy("message", "3/minute"))
    app = checking_messages(limiter)
    done = 0
    for _ in range(10):
        sent = await call(app, handshake(), messages(4))
        assert sent[-1] == {"type": "websocket.close", "code": 1008, "reason": "quota exceeded"}
        done += said(sent, "ok")
    assert done == 3
    assert (await used(limiter, action="message"), await used(limiter, action="feed")) == (3, 10)


@pytest.mark.parametrize(("count", "spent"), [("all", 3), ("success", 3), ("failure", 0)])
async def test_a_message_counts_as_its_handshake_did(count: Count, spent: int) -> None:
    limiter = limiter_of(Policy("message", "3/minute", count=count))
    sent = await call(checking_messages(limiter), handshake(), messages(3))
    assert (said(sent, "ok"), await used(limiter, action="message")) == (3, spent)


@pytest.mark.parametrize("inside", [False, True])
async def test_each_message_is_written_down_as_it_comes(inside: bool) -> None:
    """In order, refused ones too; and with whichever of two middlewares has the log."""
    store = MemoryStore()
    limiter = limiter_of(Policy("feed", "9/day", match="/feed"), Policy("message", "2/minute"), store=store)
    usage = UsageLog(store, actions=limiter.policies, clock=limiter.clock)
    kept: list[int] = []
    app = checking_messages(limiter, catches=True, usage=None if inside else usage)
    if inside:
        app = RateLimitMiddleware(app, limiter=limiter_of(Policy("other", "9/day")), usage=usage)
    await call(app, handshake(), messages(3, lambda _: kept.append(usage.stats.accepted)))
    assert kept == [1, 2, 3, 4]
    await usage.flush()
    events = list(reversed((await usage.events("ip:203.0.113.7")).events))
    found = [(event.allowed, event.status) for event in events if event.action == "message"]
    assert found == [(True, 101), (True, 101), (False, 101)]


@pytest.mark.heavy
async def test_a_long_connection_holds_no_more_than_a_short_one() -> None:
    store = MemoryStore()
    limiter = limiter_of(Policy("message", "10/minute", log="allowed"), store=store)
    usage = UsageLog(store, clock=limiter.clock)
    app = checking_messages(limiter, catches=True, usage=usage)
    sizes: dict[int, int] = {}

    def measure(number: int) -> None:
        if number in (500, 5000):
            gc.collect()
            sizes[number] = tracemalloc.get_traced_memory()[0]

    async def nowhere(message: Message) -> None:
        pass

    tracemalloc.start()
    try:
        await app(handshake(), messages(5001, measure), nowhere)
    finally:
        tracemalloc.stop()
    assert sizes[5000] - sizes[500] < 50_000


async def test_a_server_that_names_no_version_is_given_a_code_that_it_takes() -> None:
    limiter = limiter_of(Policy("message", "0/minute"))
    sent = await call(checking_messages(limiter), handshake(asgi={"version": "3.0"}), messages(1))
    assert sent[-1] == {"type": "websocket.close", "code": 4429, "reason": "quota exceeded"}
    sent = await call(
        checking_messages(limiter), handshake(asgi={"version": "3.0", "spec_version": "2.3"}), messages(1)
    )
    assert sent[-1]["code"] == 1008


SITE = """
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from ratelimit import RateLimitMiddleware, configure, limited

message = limited("message")

async def feed(websocket):
    await websocket.accept()
    async for text in websocket.iter_text():
        await message(websocket)
        await websocket.send_text(text)

application = Starlette(routes=[WebSocketRoute("/feed", feed)])
application.add_middleware(RateLimitMiddleware, **configure(policies={"message": {"quotas": "1/year"}}))
"""


@pytest.mark.process
async def test_daphne_closes_the_connection(tmp_path: Path) -> None:
    """Which sends no 1008, and would tell the client of an internal error."""
    (tmp_path / "site_of_a_test.py").write_text(SITE)
    path = str(tmp_path / "socket")
    command = [sys.executable, "-m", "daphne", "-u", path, "site_of_a_test:application"]
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    with subprocess.Popen(command, cwd=tmp_path, env=env, stderr=subprocess.DEVNULL) as server:  # noqa: ASYNC220
        try:
            async with asyncio.timeout(60):
                while not Path(path).exists():
                    assert server.poll() is None, "daphne did not start"
                    await asyncio.sleep(0.02)
                async with unix_connect(path, uri="ws://127.0.0.1/feed") as websocket:
                    await websocket.send("hello")
                    assert await websocket.recv() == "hello"
                    await websocket.send("hello")
                    with pytest.raises(ConnectionClosed) as caught:
                        await websocket.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 4429
        finally:
            server.terminate()
