"""`limited(...)`: views that ask by themselves, in FastAPI and in plain Starlette, with the middleware and without."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit import describe_refusals
from ratelimit.decision import Decision
from ratelimit.errors import InvalidCost, QuotaExceeded, RateLimitError, UnknownAction
from ratelimit.http import RateLimitMiddleware, limited, quota_exceeded_handler
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from tests.http.apps import call, client_of, lifespan_of, limiter_of, scope_of, used

HINT = Policy("hint", "2/day")


def fastapi_app() -> FastAPI:
    app = FastAPI()

    @app.post("/hints", dependencies=[Depends(limited("hint"))])
    async def hints() -> dict[str, str]:
        return {"hint": "look left"}

    @app.post("/told")
    async def told(decision: Annotated[Decision, Depends(limited("hint"))]) -> dict[str, int | None]:
        return {"left": decision.remaining}

    return app


def starlette_app(**options: Any) -> Starlette:
    hint = limited("hint")

    async def hints(request: Request) -> PlainTextResponse:
        decision = await hint(request)
        return PlainTextResponse(str(decision.remaining))

    return Starlette(routes=[Route("/hints", hints, methods=["POST"])], **options)


def added(app: Starlette, limiter: Limiter) -> ASGIApp:
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    return app


def wrapped(app: Starlette, limiter: Limiter) -> ASGIApp:
    return RateLimitMiddleware(app, limiter=limiter)


@pytest.mark.parametrize("mount", [added, wrapped])
@pytest.mark.parametrize("make", [fastapi_app, starlette_app])
async def test_a_view_that_asks(make: Callable[[], Starlette], mount: Callable[[Starlette, Limiter], ASGIApp]) -> None:
    client = client_of(mount(make(), limiter_of(HINT)))
    for left in (1, 0):
        answer = await client.post("/hints")
        assert answer.status_code == 200
        assert answer.headers.get_list("ratelimit") == [f'"hint";r={left};t=43200']
    answer = await client.post("/hints")
    assert (answer.status_code, answer.headers["content-type"]) == (429, "application/problem+json")
    assert answer.headers.get_list("ratelimit") == ['"hint";r=0;t=43200']
    assert answer.headers["retry-after"] == "43200"
    assert answer.json()["violated-policies"] == ["hint"]


async def test_the_decision_is_handed_to_the_view_and_hidden_from_the_schema() -> None:
    app = fastapi_app()
    answer = await client_of(wrapped(app, limiter_of(HINT))).post("/told")
    assert answer.json() == {"left": 1}
    assert "parameters" not in app.openapi()["paths"]["/told"]["post"]


async def test_joins_what_the_middleware_decided_which_stays_spent_when_a_view_is_refused() -> None:
    limiter = limiter_of(Policy("api", "9/day", match="/**"), Policy("hint", "1/day"))
    client = client_of(added(fastapi_app(), limiter))
    assert (await client.post("/hints")).headers["ratelimit"] == '"api";r=8;t=43200, "hint";r=0;t=43200'
    assert (await client.post("/hints")).status_code == 429
    assert await used(limiter, action="api") == 2


async def test_the_policys_own_cost_user_and_exemptions_hold_here_too() -> None:
    policy = Policy("hint", "9/day", cost=2, user_from="header:x-api-key", exempt="/health")
    limiter = limiter_of(policy)
    plain, dear = limited("hint"), limited("hint", cost=lambda connection: int(connection.headers["x-size"]))

    async def view(request: Request) -> PlainTextResponse:
        await (dear if "x-size" in request.headers else plain)(request)
        return PlainTextResponse("ok")

    app = RateLimitMiddleware(Starlette(routes=[Route("/{path:path}", view)]), limiter=limiter, exempt="/static/**")
    client = client_of(app)
    for path, headers in (
        ("/", {}),
        ("/", {"x-size": "3"}),
        ("/", {"x-size": "0"}),
        ("/health", {}),
        ("/static/a", {}),
    ):
        assert (await client.get(path, headers={"x-api-key": "k1", **headers})).status_code == 200
    assert await used(limiter, "k1") == 5


async def test_success_and_failure_count_here_too() -> None:
    limiter = limiter_of(Policy("login", "5/day", count="failure"))
    login = limited("login")

    async def view(request: Request) -> PlainTextResponse:
        await login(request)
        return PlainTextResponse("", status_code=int(request.query_params["status"]))

    client = client_of(RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter))
    for status, spent in ((200, 0), (401, 1), (302, 1), (403, 2)):
        await client.get("/", params={"status": status})
        assert await used(limiter, action="login") == spent


async def test_a_view_may_catch_the_refusal_and_answer_by_itself() -> None:
    hint = limited("hint")

    async def view(request: Request) -> PlainTextResponse:
        try:
            await hint(request)
        except QuotaExceeded as error:
            return PlainTextResponse(f"later: {error.decision.policy}", status_code=int(request.headers["x-status"]))
        return PlainTextResponse("ok")

    limiter = limiter_of(Policy("api", "9/day", match="/**"), Policy("hint", "0/day"))
    client = client_of(RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter))
    for status in (200, 402, 500):
        answer = await client.get("/", headers={"x-status": str(status)})
        assert (answer.status_code, answer.text) == (status, "later: hint")
        assert '"hint";r=0' in answer.headers["ratelimit"]
    assert await used(limiter, action="api") == 3


async def test_a_streamed_error_after_a_caught_refusal_is_not_held_back() -> None:
    hint, sent = limited("hint"), list[Message]()

    async def view(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(QuotaExceeded):
            await hint(HTTPConnection(scope))
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert [message.get("body") for message in sent] == [None, b"one"]
        await send({"type": "http.response.body", "body": b"two"})

    async def send(message: Message) -> None:
        sent.append(message)

    app = RateLimitMiddleware(view, limiter=limiter_of(Policy("hint", "0/day")))
    await app(scope_of(), connecting, send)
    assert [message.get("body") for message in sent] == [None, b"one", b"two"]


async def test_an_error_answer_after_a_caught_refusal_is_still_sent_and_the_error_raised() -> None:
    hint = limited("hint")

    async def view(request: Request) -> PlainTextResponse:
        with pytest.raises(QuotaExceeded):
            await hint(request)
        raise ZeroDivisionError

    app = RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter_of(Policy("hint", "0/day")))
    with pytest.raises(ZeroDivisionError):
        await client_of(app).get("/")
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    answer = await httpx.AsyncClient(transport=transport, base_url="http://test").get("/")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


async def test_a_refusal_after_the_response_began_cannot_be_answered() -> None:
    hint = limited("hint")

    async def view(request: Request) -> StreamingResponse:
        async def body() -> Any:
            yield b"one"
            await hint(request)

        return StreamingResponse(body())

    limiter = limiter_of(Policy("hint", "0/day"))
    app = RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter)
    with pytest.raises(QuotaExceeded):
        await client_of(app).get("/")


async def test_without_the_middleware_a_limiter_and_the_handler_will_do() -> None:
    limiter = limiter_of(HINT)
    hint = limited("hint", limiter=limiter)

    async def view(request: Request) -> PlainTextResponse:
        await hint(request)
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/", view)])
    app.add_exception_handler(QuotaExceeded, quota_exceeded_handler)  # type: ignore[arg-type]
    client = client_of(app)
    assert [(await client.get("/")).status_code for _ in range(3)] == [200, 200, 429]
    answer = await client.get("/")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["ratelimit"] == '"hint";r=0;t=43200'
    assert answer.headers["retry-after"] == "43200"


async def test_another_limiter_than_the_middlewares() -> None:
    other = limiter_of(Policy("other", "1/day"))
    ask = limited("other", limiter=other)

    async def view(request: Request) -> PlainTextResponse:
        await ask(request)
        return PlainTextResponse("ok")

    app = RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter_of(), trusted_proxies=1)
    client = client_of(app)
    for _, status in ((0, 200), (1, 429)):
        answer = await client.get("/", headers={"x-forwarded-for": "198.51.100.1"})
        assert answer.status_code == status
    assert await used(other, "ip:198.51.100.1", "other") == 1


async def test_mistakes_are_told_clearly() -> None:
    request = HTTPConnection({"type": "http", "headers": []})
    with pytest.raises(
        RateLimitError, match=r"limited\('hint'\) needs RateLimitMiddleware around the app, or limiter="
    ):
        await limited("hint")(request)
    with pytest.raises(UnknownAction, match="no policy is named 'hnt'"):
        limited("hnt", limiter=limiter_of(HINT))
    with pytest.raises(RateLimitError, match="counts only failure"):
        await limited("login", limiter=limiter_of(Policy("login", "5/day", count="failure")))(request)
    with pytest.raises(UnknownAction):
        await client_of(added(starlette_app(), limiter_of(Policy("other", "1/day")))).post("/hints")


@pytest.mark.parametrize("handler", [False, True])
async def test_a_fastapi_websocket(handler: bool) -> None:
    limiter = limiter_of(Policy("feed", "1/day"))
    app, ask = FastAPI(), limited("feed", limiter=limiter)

    @app.websocket("/feed", dependencies=[Depends(ask)])
    async def feed(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()

    if handler:
        app.add_exception_handler(QuotaExceeded, quota_exceeded_handler)  # type: ignore[arg-type]
    else:
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    handshake = scope_of("/feed", kind="websocket", subprotocols=[], extensions={"websocket.http.response": {}})
    accept, text, close = await call(app, dict(handshake), connecting)
    assert (accept["type"], text["text"], close["type"]) == ("websocket.accept", "hello", "websocket.close")
    start, body = await call(app, dict(handshake), connecting)
    assert (start["status"], json.loads(body["body"])["violated-policies"]) == (429, ["feed"])
    (close,) = await call(app, {**handshake, "extensions": {}}, connecting)
    assert (close["type"], close["code"]) == ("websocket.close", 1008)


async def connecting() -> Message:
    return {"type": "websocket.connect"}


async def test_what_a_batch_has_done_stays_spent_when_the_rest_of_it_is_refused() -> None:
    """Also where the app further in has limits of its own: each of its requests was one."""
    operation = limited("operation")
    done: list[int] = []

    async def view(request: Request) -> PlainTextResponse:
        for number in range(10):
            await operation(request)
            done.append(number)
        return PlainTextResponse("ok")

    limiter = limiter_of(Policy("api", "100/day", match="/**"), Policy("operation", "3/minute"))
    client = client_of(added(Starlette(routes=[Route("/", view)]), limiter))
    assert [(await client.get("/")).status_code for _ in range(10)] == [429] * 10
    assert (len(done), await used(limiter, action="operation"), await used(limiter, action="api")) == (3, 3, 10)


async def test_what_the_app_refuses_by_itself_gives_back_nothing() -> None:
    async def view(request: Request) -> PlainTextResponse:
        decision = await limiter.check("alice", "hint")
        if not decision.allowed:
            raise QuotaExceeded(decision)
        return PlainTextResponse("ok")

    limiter = limiter_of(Policy("api", "9/day", match="/**"), Policy("hint", "1/day"))
    client = client_of(added(Starlette(routes=[Route("/", view)]), limiter))
    assert [(await client.get("/")).status_code for _ in range(3)] == [200, 429, 429]
    assert (await used(limiter, action="api"), await used(limiter, "alice")) == (3, 1)


async def test_a_request_whose_last_answer_was_a_refusal_counts_as_a_failure() -> None:
    first, second = limited("first"), limited("second")

    async def view(request: Request) -> PlainTextResponse:
        await first(request)
        await second(request)
        return PlainTextResponse("ok")

    for count, spent in (("all", 1), ("failure", 1), ("success", 0)):
        limiter = limiter_of(Policy("first", "9/day", count=count), Policy("second", "0/day"))  # type: ignore[arg-type]
        client = client_of(wrapped(Starlette(routes=[Route("/", view)]), limiter))
        assert (await client.get("/")).status_code == 429
        assert await used(limiter, action="first") == spent


@pytest.mark.parametrize("cost", [0, lambda request: 0])
async def test_what_costs_nothing_is_free(cost: Any) -> None:
    app, limiter = FastAPI(), limiter_of(Policy("hint", "0/day"))
    app.get("/", dependencies=[Depends(limited("hint", cost=cost))])(lambda: "ok")
    answer = await client_of(added(app, limiter)).get("/")
    assert (answer.status_code, "ratelimit" in answer.headers) == (200, False)
    assert await used(limiter) == 0


@pytest.mark.parametrize("cost", [-1, 1.5, "1", True, 10**30])
def test_a_cost_that_is_none_is_told_where_it_is_written(cost: Any) -> None:
    with pytest.raises(InvalidCost, match=r"limited\('hint'\): cost is .*, or a function of the request, is expected"):
        limited("hint", cost=cost)


async def items_of(request: Request) -> int:
    """A function that wants the body, as FastAPI's users write it."""
    return len(await request.json())


async def test_in_a_view_the_cost_may_be_read_from_the_body() -> None:
    app, limiter = FastAPI(), limiter_of(Policy("hint", "5/day"))

    @app.post("/fastapi", dependencies=[Depends(limited("hint", cost=items_of))])
    async def with_body(items: list[int]) -> int:
        return sum(items)

    ask = limited("hint", cost=items_of)

    async def view(request: Request) -> JSONResponse:
        await ask(request)
        return JSONResponse(sum(await request.json()))

    app.router.routes.append(Route("/starlette", view, methods=["POST"]))
    client = client_of(added(app, limiter))
    for path, left in (("/fastapi", 3), ("/starlette", 1)):
        answer = await client.post(path, json=[20, 22])
        assert (answer.json(), answer.headers["ratelimit"]) == (42, f'"hint";r={left};t=43200')
    assert (await client.post("/fastapi", json=[1, 2])).status_code == 429


async def test_functions_are_called_with_a_request() -> None:
    def of_method(request: Request) -> int:
        return 3 if request.method == "POST" else 1

    limiter = limiter_of(Policy("hint", "9/day", match="/**", cost=of_method))
    client = client_of(RateLimitMiddleware(Starlette(), limiter=limiter))
    await client.post("/")
    await client.get("/")
    assert await used(limiter) == 4


# FastAPI's OpenAPI says of a limited route that it may answer 429, with which fields and body.


TOLD = Policy("hint", "1/day")


def app_of() -> FastAPI:
    app, router = FastAPI(), APIRouter(prefix="/api", dependencies=[Depends(limited("hint"))])
    own: dict[int | str, dict[str, Any]] = {429: {"description": "Slow down."}}

    @app.post("/hints/{number}", dependencies=[Depends(limited("hint"))])
    async def hints(number: int) -> str:
        return "hint"

    @app.get("/own", dependencies=[Depends(limited("hint", quotas="1/day"))], responses=own)
    async def said() -> str:
        return "own"

    @app.get("/free")
    async def free() -> str:
        return "free"

    @router.get("/included")
    async def included() -> str:
        return "included"

    app.include_router(router)
    app.add_middleware(RateLimitMiddleware, limiter=limiter_of(TOLD))
    return app


async def test_a_limited_route_shows_its_refusal_as_it_is() -> None:
    app = app_of()
    async with lifespan_of(app), client_of(app) as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
        refusal = paths["/hints/{number}"]["post"]["responses"]["429"]
        assert refusal == paths["/api/included"]["get"]["responses"]["429"]
        assert paths["/own"]["get"]["responses"]["429"]["description"] == "Slow down."
        assert "429" not in paths["/free"]["get"]["responses"]
        answers = [await client.post("/hints/1") for _ in range(2)]
    check(refusal, answers[1])


def check(refusal: dict[str, Any], answer: httpx.Response) -> None:
    assert answer.status_code == 429
    assert {name.lower() for name in refusal["headers"]} <= set(answer.headers)
    ((kind, body),) = refusal["content"].items()
    assert kind == answer.headers["content-type"]
    assert set(body["schema"]["required"]) == set(body["schema"]["properties"]) == set(answer.json())


def test_the_document_can_be_written_without_a_server() -> None:
    app = app_of()
    assert "429" not in app.openapi()["paths"]["/api/included"]["get"]["responses"]
    for _ in range(2):
        describe_refusals(app)
        assert "429" in app.openapi()["paths"]["/api/included"]["get"]["responses"]
