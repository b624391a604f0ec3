"""Functions that see the request's body before the app does, and the app that reads the same one afterwards."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ratelimit import ConfigError, InvalidBody, InvalidCost, InvalidInput, InvalidUser, Policy, RateLimitMiddleware
from ratelimit.http.authz import Authz
from tests.http.apps import call, client_of, hello, limiter_of, scope_of, used


async def tokens(request: Request) -> int:
    asked = await request.json()
    return int(asked["tokens"])


async def account(request: Request) -> str:
    return str((await request.form())["name"])


class Pieces:
    """A `receive` that counts how often it was asked: for these pieces of a body, then to wait for ever."""

    def __init__(self, *pieces: bytes, leaves: bool = False) -> None:
        self.asked = 0
        self._left = list(pieces)
        self._leaves = leaves

    async def __call__(self) -> Message:
        self.asked += 1
        if not self._left:
            if not self._leaves:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}
        piece = self._left.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self._left) or self._leaves}


class Echo:
    """An app that keeps the messages it was given, up to the end of the body."""

    def __init__(self) -> None:
        self.given: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not self.given or self.given[-1].get("more_body"):
            self.given.append(await receive())
        await PlainTextResponse("ok")(scope, receive, send)


async def test_the_app_reads_what_functions_have_read_and_each_reads_it_once() -> None:
    limiter = limiter_of(
        Policy("tokens", "1000/day", match="/**", cost=tokens),
        Policy("account", "9/day", match="/**", user_from=lambda request: user(request), exempt=lambda r: never(r)),
    )

    async def user(request: Request) -> str:
        return str((await request.json())["user"])

    async def never(request: Request) -> bool:
        assert b"".join([piece async for piece in request.stream()]) == await request.body()
        return False

    body = json.dumps({"tokens": 873, "user": "alice"}).encode()
    app, receive = Echo(), Pieces(body[:5], body[5:])
    start, *_ = await call(RateLimitMiddleware(app, limiter=limiter), scope_of(), receive)
    assert (start["status"], app.given) == (200, [{"type": "http.request", "body": body, "more_body": False}])
    assert receive.asked == 2
    assert (await used(limiter, action="tokens"), await used(limiter, "alice", "account")) == (873, 1)


async def test_nothing_is_read_where_no_function_asks() -> None:
    policy = Policy("hint", "9/day", match="/**", cost=lambda request: 1, user_from=lambda request: "alice")
    app, receive = Echo(), Pieces(b"one", b"two")
    handed: list[Any] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        handed.append(receive)
        await app(scope, receive, send)

    for one in (policy, Policy("hint", "9/day", match="/**")):
        await call(RateLimitMiddleware(watched, limiter=limiter_of(one)), scope_of(), receive)
    assert handed == [receive, receive]
    assert [message["body"] for message in app.given] == [b"one", b"two"]


async def test_what_the_app_gets_after_the_part_that_was_read_comes_from_the_server_piece_by_piece() -> None:
    """A function that does without a body that is too large leaves the rest of it where it is."""

    async def cost(request: Request) -> int:
        for _ in range(2):
            with pytest.raises(InvalidBody, match="larger than the 8 bytes"):
                await request.body()
        return 7

    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=cost))
    app, receive = Echo(), Pieces(b"12345", b"6789", b"abc", b"def")
    asked: list[int] = []

    async def slowly(scope: Scope, receive_: Receive, send: Send) -> None:
        asked.append(receive.asked)
        await app(scope, receive_, send)

    await call(RateLimitMiddleware(slowly, limiter=limiter, max_body_bytes=8), scope_of(), receive)
    assert [message["body"] for message in app.given] == [b"123456789", b"abc", b"def"]
    assert (asked, receive.asked, await used(limiter)) == ([2], 4, 7)


@pytest.mark.parametrize("length", [True, False])
async def test_a_body_that_is_too_large_is_answered_and_nothing_is_spent(length: bool) -> None:
    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=tokens))
    app = RateLimitMiddleware(hello, limiter=limiter, max_body_bytes=10)
    receive = Pieces(b"x" * 6, b"x" * 5, b"x" * 5)
    headers = [(b"content-length", b"16")] if length else []
    start, body = await call(app, scope_of(headers=headers), receive)
    assert (start["status"], receive.asked) == (413, 0 if length else 2)
    assert "larger than the 10 bytes" in json.loads(body["body"])["detail"]
    assert await used(limiter) == 0
    enough, _ = await call(app, scope_of(), Pieces(b'{"tokens"', b":", b"3", b"}"))
    assert enough["status"] == 413
    for size in (b"1" * 5000, b"99999999999999999999"):
        start, _ = await call(app, scope_of(headers=[(b"content-length", size)]), Pieces())
        assert start["status"] == 413


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
async def test_what_is_not_json_is_answered_and_nothing_is_spent(body: bytes) -> None:
    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=tokens))
    start, answer = await call(RateLimitMiddleware(hello, limiter=limiter), scope_of(), Pieces(body))
    assert (start["status"], await used(limiter)) == (400, 0)
    assert "the body is not JSON" in json.loads(answer["body"])["detail"]


async def test_an_error_of_the_body_is_a_value_error_and_an_answer_of_starlette() -> None:
    error = InvalidBody(413, "too large")
    assert {ValueError, InvalidInput, HTTPException} <= set(type(error).__mro__)
    assert (error.status_code, error.detail) == (413, "too large")


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=b"])
async def test_a_form(kind: str) -> None:
    limiter = limiter_of(Policy("login", "9/day", match="/**", user_from=account))

    async def login(request: Request) -> JSONResponse:
        async with request.form() as form:
            return JSONResponse({"name": form["name"]})

    app = Starlette(routes=[Route("/login", login, methods=["POST"])])
    parts = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nalice\r\n--b--\r\n'
    body = parts if kind.startswith("multipart") else b"name=alice"
    client = client_of(RateLimitMiddleware(app, limiter=limiter))
    answer = await client.post("/login", content=body, headers={"content-type": kind})
    assert (answer.json(), await used(limiter, "alice", "login")) == ({"name": "alice"}, 1)


async def test_what_is_no_form_is_answered() -> None:
    limiter = limiter_of(Policy("login", "9/day", match="/**", user_from=account))
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    answer = await client.post("/", content=b"no parts", headers={"content-type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, "the body is no form" in answer.json()["detail"]) == (400, True)


async def test_a_client_that_leaves_before_the_body_is_complete() -> None:
    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=tokens))
    start, _ = await call(RateLimitMiddleware(hello, limiter=limiter), scope_of(), Pieces(b"{", leaves=True))
    assert (start["status"], await used(limiter)) == (400, 0)

    async def tolerant(request: Request) -> int:
        with pytest.raises(InvalidBody):
            await request.json()
        return 1

    async def view(request: Request) -> PlainTextResponse:
        with pytest.raises(ClientDisconnect):
            await request.body()
        return PlainTextResponse("nobody reads this")

    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=tolerant))
    app = RateLimitMiddleware(Starlette(routes=[Route("/hints", view, methods=["POST"])]), limiter=limiter)
    start, _ = await call(app, scope_of(query_string=b""), Pieces(b"{", leaves=True))
    assert start["status"] == 200


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("cost", lambda request: 1 / 0, ZeroDivisionError),
        ("cost", lambda request: -1, InvalidCost),
        ("cost", lambda request: "12", InvalidCost),
        ("user_from", lambda request: "a\0", InvalidUser),
        ("user_from", lambda request: request.state.nobody, AttributeError),
        ("exempt", lambda request: dict[str, bool]()["key"], KeyError),
    ],
)
async def test_a_function_that_fails_or_answers_nonsense_spends_nothing(option: str, value: Any, error: Any) -> None:
    """Neither what its own policy takes nor what those before it have taken."""
    first = Policy("first", "9/day", match="/**")
    limiter = limiter_of(first, Policy("hint", "9/day", match="/**", **{option: value}))
    with pytest.raises(error) as caught:
        await call(RateLimitMiddleware(hello, limiter=limiter), scope_of(state={}))
    told = [*getattr(caught.value, "__notes__", ()), str(caught.value)]
    assert "HTTPException(400)" in told[0] or "user" in told[0]
    assert (await used(limiter, action="first"), await used(limiter, action="hint")) == (0, 0)


async def test_a_middleware_further_in_reads_it_too() -> None:
    outer = limiter_of(Policy("tokens", "1000/day", match="/**", cost=tokens))
    inner = limiter_of(Policy("tokens", "1000/day", match="/**", cost=tokens))
    app = Echo()
    both = RateLimitMiddleware(RateLimitMiddleware(app, limiter=inner), limiter=outer)
    await call(both, scope_of(), Pieces(b'{"tokens":', b"5}"))
    assert [message["body"] for message in app.given] == [b'{"tokens":5}']
    assert (await used(outer, action="tokens"), await used(inner, action="tokens")) == (5, 5)


async def test_a_websocket_has_no_body() -> None:
    def kind(connection: HTTPConnection) -> str:
        return type(connection).__name__

    limiter = limiter_of(Policy("feed", "9/day", match="/**", user_from=kind))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    await call(RateLimitMiddleware(app, limiter=limiter), scope_of("/feed", kind="websocket"))
    assert await used(limiter, "HTTPConnection", "feed") == 1


async def test_a_gateways_question_has_not_the_clients_body(caplog: pytest.LogCaptureFixture) -> None:
    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=tokens))
    start, _ = await call(Authz(limiter=limiter), scope_of("/v1/authz/hints"), Pieces(b"{}"))
    assert start["status"] == 429
    assert "asked for the body, which is not here" in caplog.text


async def test_the_answer_to_a_refusal_may_go_by_the_body() -> None:
    async def refused(request: HTTPConnection, decision: Any) -> PlainTextResponse:
        assert isinstance(request, Request)
        return PlainTextResponse(str((await request.json())["tokens"]), status_code=429)

    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=tokens))
    app = RateLimitMiddleware(hello, limiter=limiter, on_refused=refused)
    start, body = await call(app, scope_of(), Pieces(b'{"tokens": 10}'))
    assert (start["status"], body["body"]) == (429, b"10")


async def test_messages_are_not_taken_from_the_app() -> None:
    async def gone(request: Request) -> int:
        return 0 if await request.is_disconnected() else 1

    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=gone))
    with pytest.raises(ConfigError, match=r"next message; use body\(\), json\(\) or form\(\)"):
        await call(RateLimitMiddleware(hello, limiter=limiter), scope_of())


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, 2**31])
def test_a_bound_that_is_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="max_body_bytes: expected 1 to"):
        RateLimitMiddleware(hello, limiter=limiter_of(), max_body_bytes=value)
