"""The recipes of `docs/policies.md` limit what they say they limit."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import httpx
import jwt
import pytest
from starlette.types import Message

from tests.docs.pages import run, titled
from tests.http.apps import call, client_of, scope_of

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
    return found


@pytest.mark.parametrize(
    ("title", "done"), [("fastapi_app.py", 200), ("starlette_app.py", 200), ("litestar_app.py", 201)]
)
async def test_five_hints_a_day_for_each_user(title: str, done: int) -> None:
    async with client_of((await recipe(title))["app"]) as client:
        assert await statuses(client, "/hints", times=6, key="key-of-alice") == [done] * 5 + [429]
        assert await statuses(client, "/hints", times=1, key="key-of-bob") == [done]


@pytest.mark.parametrize("title", ["fastapi_app.py", "starlette_app.py", "litestar_app.py"])
async def test_keys_that_are_made_up_are_no_new_users(title: str) -> None:
    async with client_of((await recipe(title))["app"]) as client:
        found = [(await statuses(client, "/hints", times=1, key=f"made-up-{number}"))[0] for number in range(6)]
        assert found[5] == 429
        assert 429 not in found[:5]


async def test_an_export_in_fastapi_takes_ten() -> None:
    async with client_of((await recipe("fastapi_app.py"))["app"]) as client:
        assert await statuses(client, "/exports", times=11) == [200] * 10 + [429]


async def test_a_token_says_who_asks_and_by_which_plan() -> None:
    names = await recipe("fastapi_jwt.py")

    def token(**claims: Any) -> dict[str, str]:
        text = jwt.encode({"exp": 2**31, **claims}, names["KEY"], algorithm="HS256")
        return {"authorization": f"Bearer {text}"}

    async with client_of(names["app"]) as client:
        for user, plan, passes in (("alice", "free", 5), ("bob", "pro", 20), ("carol", "gold", 5)):
            found = [(await client.post("/hints", headers=token(sub=user, plan=plan))).status_code for _ in range(20)]
            assert found == [200] * passes + [429] * (20 - passes)
        assert (await client.post("/hints", headers=token(sub="alice", plan="pro"))).status_code == 200
        other = jwt.encode({"sub": "alice", "exp": 2**31}, "x" * 32, algorithm="HS256")
        wrong: list[dict[str, str]] = [
            {},
            {"authorization": "Bearer x"},
            {"authorization": f"Bearer {other}"},
            token(),
            token(sub=""),
        ]
        for headers in wrong:
            assert (await client.post("/hints", headers=headers)).status_code == 401


@pytest.fixture
async def django_login(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """Django's own `LoginView`, behind the recipe."""
    application = (await recipe("asgi.py"))["application"]
    from django.contrib.auth.views import LoginView
    from django.urls import clear_url_caches, path

    site = importlib.import_module("tests.docs.django_site")
    monkeypatch.setattr(site, "urlpatterns", [path("login", LoginView.as_view(template_name="login.html"))])
    clear_url_caches()
    async with client_of(application) as client:
        yield client
    clear_url_caches()


async def log_in(client: httpx.AsyncClient, password: str) -> int:
    token = "t" * 32
    form = {"username": "alice", "password": password, "csrfmiddlewaretoken": token}
    return (await client.post("/login", data=form, headers={"cookie": f"csrftoken={token}"})).status_code


async def test_django_counts_wrong_passwords_which_are_answered_with_200(django_login: httpx.AsyncClient) -> None:
    assert [await log_in(django_login, "correct horse") for _ in range(12)] == [302] * 12
    assert [await log_in(django_login, f"guess {number}") for number in range(11)] == [200] * 10 + [429]
    assert await log_in(django_login, "correct horse") == 429


async def test_a_login_without_a_token_is_no_way_around(django_login: httpx.AsyncClient) -> None:
    answers = [await django_login.post("/login", data={"username": "alice"}) for _ in range(11)]
    assert [answer.status_code for answer in answers] == [403] * 10 + [429]


async def test_a_view_of_django_asks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.urls import clear_url_caches, path

    site = importlib.import_module("tests.docs.django_site")
    application, view = (await recipe("asgi.py"))["application"], (await recipe("views.py"))["hint"]
    monkeypatch.setattr(site, "urlpatterns", [path("hints", view)])
    clear_url_caches()
    try:
        async with client_of(application) as client:
            answers = [await client.get("/hints") for _ in range(6)]
        monkeypatch.setattr(site, "signed_in_as", None)
        guests = []
        for number in range(6):  # of one network
            async with client_of(application, address=f"2001:db8::{number}") as client:
                guests.append((await client.get("/hints")).status_code)
    finally:
        clear_url_caches()
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[5].headers["retry-after"] == "43200"
    assert guests == [200] * 5 + [429]
    assert (await application.limiter.peek("7", "hint", quotas="5/day")).used == 5


async def tries(client: httpx.AsyncClient, name: Any, password: str, *, times: int = 1) -> list[int]:
    answers = [await client.post("/login", data={"name": name, "password": password}) for _ in range(times)]
    return [answer.status_code for answer in answers]


async def test_logins_are_limited_by_address_and_by_account() -> None:
    app = (await recipe("logins.py"))["app"]
    for number, name in enumerate(("alice", "Alice", "ALICE", "aLICE", "alicE")):
        async with client_of(app, address=f"203.0.113.{number}") as client:
            assert await tries(client, name, "no") == [401]
    async with client_of(app, address="203.0.113.99") as client:
        assert await tries(client, "alice", "correct horse") == [429]
        assert await tries(client, "bob", "battery staple", times=30) == [200] * 30


async def test_one_address_may_fail_so_often_whatever_the_account() -> None:
    async with client_of((await recipe("logins.py"))["app"]) as client:
        for number in range(20):
            assert await tries(client, f"user{number}", "no") == [401]
        assert await tries(client, "alice", "correct horse") == [429]


@pytest.mark.parametrize("name", ["", "a" * 300, "a b", "alice\n", "alice\0", None])
async def test_a_name_that_is_none_is_the_clients_fault(name: Any) -> None:
    async with client_of((await recipe("logins.py"))["app"]) as client:
        assert await tries(client, name, "no") == [400]


@pytest.mark.parametrize(
    "kind", ["application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"]
)
async def test_a_login_that_is_none_is_the_clients_fault_and_counts_as_a_failure(kind: str) -> None:
    async with client_of((await recipe("logins.py"))["app"]) as client:
        options: Any = {"content": b'{"name": "alice"}', "headers": {"content-type": kind}}
        statuses_ = [(await client.post("/login", **options)).status_code for _ in range(21)]
    assert statuses_ == [400] * 20 + [429]


async def test_a_graphql_batch_costs_its_operations() -> None:
    async with client_of((await recipe("graphql.py"))["app"]) as client:
        for batch, left in (({"query": "{ me }"}, 99), ([{"query": "{ me }"}] * 20, 79)):
            answer = await client.post("/graphql", json=batch)
            assert len(answer.json()) == (len(batch) if isinstance(batch, list) else 1)
            assert answer.headers["ratelimit"].startswith(f'"graphql";r={left};')
        for body, status in ((b"[]", 400), (b"query", 400), (b"[" + b" " * 70_000 + b"]", 413)):
            assert (await client.post("/graphql", content=body)).status_code == status
        assert (await client.post("/graphql", json={})).headers["ratelimit"].startswith('"graphql";r=78;')


@pytest.mark.parametrize(
    "query",
    ["pages=-5", "pages=abc", "pages=0", "pages=", "pages=1.5", "pages=%2B5", "pages=1_0", "pages=%D9%A3",
     "pages=%C2%B2", "pages=" + "9" * 300, "pages=1&pages=-5", "pages=1%00"],
)  # fmt: skip
async def test_pages_that_are_none_are_the_clients_fault(query: str) -> None:
    names = await recipe("costs.py")
    async with client_of(names["app"]) as client:
        answer = await client.post(f"/exports?{query}")
    assert (answer.status_code, answer.json()["detail"]) == (400, "pages: a whole number from 1 to 999")


async def test_an_export_costs_the_pages_that_it_has() -> None:
    async with client_of((await recipe("costs.py"))["app"]) as client:
        for query, pages in (("", 1), ("pages=60", 60), ("pages=1&pages=30", 30), ("pages=009", 9)):
            answer = await client.post(f"/exports?{query}")
            assert answer.text.count("page") == pages
        refused = await client.post("/exports")
        assert (refused.status_code, refused.headers["ratelimit"].partition(";t")[0]) == (429, '"export";r=0')


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


async def test_two_exports_at_the_same_time() -> None:
    app = (await recipe("exports.py"))["app"]
    async with client_of(app) as client:
        answers = await asyncio.gather(*(client.get("/exports/users") for _ in range(2)))
        assert [answer.text.count("users") for answer in answers] == [3, 3]
        assert answers[0].headers["ratelimit-policy"] == (
            '"export-concurrent";q=2;qu="concurrent-requests", "export-day";q=100;w=86400'
        )
        assert await statuses(client, "/exports/users", times=3, method="GET") == [200] * 3


async def test_a_third_export_is_told_so() -> None:
    export, done, begun = (await recipe("slot.py"))["export"], asyncio.Event(), []

    async def work() -> bool:
        begun.append(1)
        return await done.wait()

    waiting = [asyncio.create_task(export("alice", work)) for _ in range(2)]
    while len(begun) < 2:
        await asyncio.sleep(0)
    assert await export("alice", done.wait) == "busy, ask again in 1 s"
    done.set()
    assert await asyncio.gather(*waiting) == [True, True]
    assert await export("alice", done.wait) is True


async def test_a_stream_is_charged_for_what_it_has_used() -> None:
    app = (await recipe("stream.py"))["app"]
    async with client_of(app) as client:
        answer = await client.post("/chat")
        assert (answer.status_code, answer.text.count("data: ")) == (200, 4)
        again = await client.post("/chat")
    assert again.headers["ratelimit"].startswith('"tokens-concurrent";r=1')
    assert await used_of(app) == 8


async def used_of(app: Any) -> int:
    stack = app.middleware_stack
    while not hasattr(stack, "limiter"):
        stack = stack.app
    return (await stack.limiter.peek("ip:203.0.113.7", "tokens")).quotas[1].used  # type: ignore[no-any-return]


async def test_a_proxy_of_openais_reserves_by_the_body_and_settles_by_the_answer() -> None:
    names = await recipe("openai_proxy.py")
    usage = {"usage": {"total_tokens": 300}}

    def model(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)
        assert request.headers["authorization"] == "Bearer the-key-of-ours"
        if asked.get("stream"):
            assert asked["stream_options"] == {"include_usage": True}
            events = f'data: {{"choices": []}}\n\ndata: {json.dumps(usage)}\n\ndata: [DONE]\n\n'
            return httpx.Response(200, text=events, headers={"content-type": "text/event-stream"})
        return httpx.Response(400 if asked["model"] == "none" else 200, json=usage)

    names["upstream"]._transport = httpx.MockTransport(model)
    (limiter,) = [each.kwargs["limiter"] for each in names["app"].user_middleware]
    async with client_of(names["app"]) as client:
        client.headers["authorization"] = "Bearer key-of-alice"

        async def spent(status: int, **asked: Any) -> int:
            before = (await limiter.peek("alice", "tokens")).used
            answer = await client.post("/v1/chat/completions", json={"model": "m", **asked})
            assert answer.status_code == status
            assert "DONE" in answer.text or not asked.get("stream") or status != 200
            return int((await limiter.peek("alice", "tokens")).used - before)

        assert await spent(200, max_tokens=5_000) == 300
        assert await spent(200, stream=True) == 300
        assert await spent(400, model="none") == 0
        assert await spent(400, max_tokens="many") == 0
        assert await spent(429, max_tokens=9_900) == 0
        assert await spent(413, messages=["x" * 1_048_576]) == 0
        assert (await client.post("/v1/chat/completions", json={}, headers={"authorization": ""})).status_code == 401


async def test_guests_have_less_than_those_with_a_key() -> None:
    async with client_of((await recipe("search.py"))["app"]) as client:
        assert await statuses(client, "/search", times=4, method="GET") == [200] * 3 + [429]
        assert await statuses(client, "/search", times=10, method="GET", key="key-of-alice") == [200] * 10


@pytest.mark.parametrize(
    "keys",
    [["made-up"], [""], ["key-of-alice", "made-up"], ["made-up", "key-of-alice"], ["key-of-alice", "key-of-bob"]],
)
async def test_who_has_no_key_of_ours_is_a_guest(keys: list[str]) -> None:
    headers = [("x-api-key", key) for key in keys]
    async with client_of((await recipe("search.py"))["app"]) as client:
        answers = [await client.get("/search", headers=headers) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429]


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


async def test_the_fourth_message_is_refused_on_the_next_connection_as_well() -> None:
    app = (await recipe("feed.py"))["app"]
    answered = 0
    for _ in range(5):
        messages = iter([{"type": "websocket.connect"}, *([{"type": "websocket.receive", "text": "hello"}] * 4)])

        async def receive(messages: Iterator[dict[str, str]] = messages) -> Message:
            return next(messages)

        sent = await call(app, scope_of("/feed", kind="websocket"), receive)
        answered += sum(message["type"] == "websocket.send" for message in sent)
    assert answered == 3


async def test_a_page_of_another_origin_reads_the_refusal_and_pays_for_no_preflight() -> None:
    origin = {"origin": "https://app.example"}
    async with client_of((await recipe("cors.py"))["app"]) as client:
        for _ in range(10):
            answer = await client.options("/hints", headers={**origin, "access-control-request-method": "POST"})
            assert answer.status_code == 200
        answers = [await client.post("/hints", headers=origin) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert answers[5].headers["access-control-allow-origin"] == "https://app.example"
    assert answers[5].headers["access-control-expose-headers"].startswith("RateLimit, RateLimit-Policy, Retry-After, ")


async def test_a_refusal_of_ones_own() -> None:
    async with client_of((await recipe("refused.py"))["app"]) as client:
        answers = [await client.post("/hints") for _ in range(6)]
        english = "No more hints today. Come back in 43200 seconds."
        assert (answers[5].status_code, answers[5].json()) == (429, {"error": english, "limit": 5})
        assert answers[5].headers["retry-after"] == "43200"
        page = await client.post("/hints", headers={"accept": "text/html", "accept-language": "de-AT,en;q=0.5"})
        assert page.text == "<h1>Heute keine Tipps mehr. Weiter in 43200 Sekunden.</h1>"
        assert (page.status_code, page.headers["ratelimit"]) == (429, '"hint";r=0;t=43200')
