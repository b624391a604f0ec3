"""The recipes of `docs/policies.md` limit what they say they limit."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from starlette.types import Message

from tests.docs.pages import run, titled
from tests.http.apps import call, client_of, scope_of, settled

PAGE = "docs/policies.md"


pytestmark = pytest.mark.usefixtures("noon")


async def recipe(title: str) -> dict[str, Any]:
    return await run(titled(PAGE, title))


async def statuses(
    client: httpx.AsyncClient, url: str, *, times: int, method: str = "POST", key: str = ""
) -> Sequence[int]:
    found = []
    for _ in range(times):
        answer = await client.request(method, url, headers={"x-api-key": key} if key else {})
        found.append(answer.status_code)
        await settled()  # what does not count is given back behind the answer
    return found


@pytest.mark.parametrize(
    ("title", "done"), [("fastapi_app.py", 200), ("starlette_app.py", 200), ("litestar_app.py", 201)]
)
async def test_five_hints_a_day_for_each_user(title: str, done: int) -> None:
    async with client_of((await recipe(title))["app"]) as client:
        assert await statuses(client, "/hints", times=6, key="key-of-alice") == [done] * 5 + [429]
        assert await statuses(client, "/hints", times=1, key="key-of-bob") == [done]


async def test_an_export_in_fastapi_takes_ten() -> None:
    async with client_of((await recipe("fastapi_app.py"))["app"]) as client:
        assert await statuses(client, "/exports", times=11) == [200] * 10 + [429]


async def test_django_counts_failed_logins_by_address() -> None:
    application = (await recipe("asgi.py"))["application"]
    async with client_of(application) as client:
        assert await statuses(client, "/login?password=right", times=12) == [200] * 12
        assert await statuses(client, "/login", times=11) == [401] * 10 + [429]
        assert await statuses(client, "/login?password=right", times=1) == [429]
    async with client_of(application, address="203.0.113.8") as client:
        assert await statuses(client, "/login", times=1) == [401]


async def test_a_view_of_django_asks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.urls import clear_url_caches, path

    site = importlib.import_module("tests.docs.django_site")
    application, view = (await recipe("asgi.py"))["application"], (await recipe("views.py"))["hint"]
    monkeypatch.setattr(site, "urlpatterns", [path("hints", view)])
    clear_url_caches()
    try:
        async with client_of(application) as client:
            answers = [await client.get("/hints") for _ in range(6)]
    finally:
        clear_url_caches()
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[5].headers["retry-after"] == "43200"
    assert (await application.limiter.peek("7", "hint", quotas="5/day")).used == 5


async def test_logins_are_limited_by_address_and_by_account() -> None:
    app = (await recipe("logins.py"))["app"]
    for number in range(5):
        async with client_of(app, address=f"203.0.113.{number}") as client:
            assert await statuses(client, "/login?name=Alice&password=no", times=1) == [401]
    async with client_of(app, address="203.0.113.99") as client:
        assert await statuses(client, "/login?name=alice&password=no", times=1) == [429]
        assert await statuses(client, "/login?name=bob&password=correct horse", times=30) == [200] * 30


async def test_one_address_may_fail_so_often_whatever_the_account() -> None:
    async with client_of((await recipe("logins.py"))["app"]) as client:
        for number in range(20):
            assert await statuses(client, f"/login?name={number}&password=no", times=1) == [401]
        assert await statuses(client, "/login?name=alice&password=no", times=1) == [429]


async def test_tokens_are_reserved_and_settled() -> None:
    names = await recipe("tokens.py")
    limiter = names["limiter"]

    async def frugal(prompt: str, at_most: int) -> tuple[str, int]:
        return prompt.upper(), 300

    async def lavish(prompt: str, at_most: int) -> tuple[str, int]:
        return prompt.upper(), 12_000

    assert await names["complete"]("alice", "hello", frugal) == "HELLO"
    assert (await limiter.peek("alice", "tokens")).used == 300
    assert await names["complete"]("alice", "hello", lavish) == "HELLO"
    assert (await limiter.peek("alice", "tokens")).used == 12_300
    with pytest.raises(names["TooMuch"]):
        await names["complete"]("alice", "hello", frugal)


async def test_guests_have_less_than_those_with_a_key() -> None:
    async with client_of((await recipe("search.py"))["app"]) as client:
        assert await statuses(client, "/search", times=4, method="GET") == [200] * 3 + [429]
        assert await statuses(client, "/search", times=10, method="GET", key="alice") == [200] * 10


async def test_the_fourth_message_closes_the_websocket() -> None:
    messages = iter([{"type": "websocket.connect"}, *([{"type": "websocket.receive", "text": "hello"}] * 4)])

    async def receive() -> Message:
        return next(messages)

    accepted, *answers, closed = await call(
        (await recipe("feed.py"))["app"], scope_of("/feed", kind="websocket"), receive
    )
    assert accepted["type"] == "websocket.accept"
    assert [answer["text"] for answer in answers] == ["HELLO"] * 3
    assert (closed["type"], closed["code"]) == ("websocket.close", 1008)
