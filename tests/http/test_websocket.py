"""Websocket handshakes are checked before they are accepted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from ratelimit.errors import QuotaExceeded
from ratelimit.http import RateLimitMiddleware, limited
from ratelimit.policy import Count, Policy
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
