"""How a refusal is answered: as the app wants it, so that a page of another origin can read it, whoever is between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from litestar import Litestar, get
from litestar import Request as LitestarRequest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ratelimit.decision import Decision
from ratelimit.errors import QuotaExceeded, RateLimitError, StoreUnavailable
from ratelimit.http import EXPOSE_HEADERS, RateLimitMiddleware, limited, quota_exceeded_handler
from ratelimit.http.headers import LIMIT_FIELDS, HeaderWriter
from ratelimit.http.problems import problem_of
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy
from ratelimit.testing import FakeClock
from tests.http.apps import call, client_of, headers_of, hello, limiter_of, scope_of, used
from tests.limiter.stores import FailingStore, failing

ORIGIN = "https://app.example"
PREFLIGHT = {"origin": ORIGIN, "access-control-request-method": "POST"}
CORS = Middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["*"], allow_credentials=True)
FULL = Policy("hint", "0/day", match="/**")


async def ok(request: Request) -> PlainTextResponse:
    return PlainTextResponse("ok")


def limited_app(limiter: Limiter, order: str, **options: Any) -> ASGIApp:
    """With CORS where it was added in this order, or around, or further in."""
    limits = Middleware(RateLimitMiddleware, limiter=limiter, **options)
    routes = [Route("/hints", ok, methods=["GET", "POST"])]
    stacks = {
        "cors outside": [CORS, limits],
        "cors inside": [limits, CORS],
        "cors further in": [limits, Middleware(GZipMiddleware), CORS],
    }
    if order in stacks:
        return Starlette(routes=routes, middleware=stacks[order])
    inner = Starlette(routes=routes)
    inner.add_middleware(CORSMiddleware, allow_origins=[ORIGIN], allow_methods=["*"], allow_credentials=True)
    return RateLimitMiddleware(inner, limiter=limiter, **options)


ORDERS = ["cors outside", "cors inside", "cors further in", "around"]


@pytest.mark.parametrize("order", ORDERS)
async def test_a_preflight_is_never_counted_and_never_refused(order: str) -> None:
    limiter = limiter_of(Policy("hint", "1/day", match="/**"))
    client = client_of(limited_app(limiter, order))
    for _ in range(3):
        answer = await client.options("/hints", headers=PREFLIGHT)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        assert "ratelimit" not in answer.headers
    assert await used(limiter) == 0
    assert [(await client.post("/hints")).status_code for _ in range(2)] == [200, 429]
    assert (await client.options("/hints", headers=PREFLIGHT)).status_code == 200


@pytest.mark.parametrize("order", ORDERS)
async def test_a_page_of_another_origin_can_read_the_refusal(order: str) -> None:
    client = client_of(limited_app(limiter_of(FULL), order))
    answer = await client.post("/hints", headers={"origin": ORIGIN})
    assert answer.status_code == 429
    assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.json()["violated-policies"] == ["hint"]
    foreign = await client.post("/hints", headers={"origin": "https://elsewhere.example"})
    assert foreign.status_code == 429
    assert "access-control-allow-origin" not in foreign.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": ORIGIN}, {"access-control-request-method": "POST"}, {"x-origin": ORIGIN},
        {**PREFLIGHT, "x-http-method-override": "POST"},
    ],
)  # fmt: skip
async def test_what_is_no_preflight_is_counted(headers: dict[str, str]) -> None:
    limiter = limiter_of(Policy("hint", "1/day", match="/**"))
    client = client_of(limited_app(limiter, "cors inside"))
    await client.options("/hints", headers=headers)
    assert (await client.options("/hints", headers=headers)).status_code == 429


async def test_an_app_that_answers_preflights_by_itself_is_not_got_past_with_one() -> None:
    limiter = limiter_of(Policy("hint", "1/day", match="/**"))
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    assert [(await client.options("/hints", headers=PREFLIGHT)).status_code for _ in range(2)] == [200, 429]


async def test_a_refusal_in_a_view_can_be_read_too() -> None:
    ask = limited("hint")

    async def view(request: Request) -> PlainTextResponse:
        await ask(request)
        return PlainTextResponse("ok")

    limits = Middleware(RateLimitMiddleware, limiter=limiter_of(Policy("hint", "0/day")))
    app = Starlette(routes=[Route("/", view)], middleware=[limits, CORS])
    answer = await client_of(app).get("/", headers={"origin": ORIGIN})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (429, ORIGIN)


OWN = PlainTextResponse("later", status_code=420, headers={"Retry-After": "7", "x-ours": "1"})


async def own_later(request: HTTPConnection, decision: Decision) -> Response:
    assert request.headers["host"]
    return JSONResponse({"policy": decision.policy, "path": request.url.path}, status_code=429)


async def test_the_app_may_answer_what_a_policy_refused() -> None:
    def own(request: HTTPConnection, decision: Decision) -> Response:
        return OWN

    client = client_of(RateLimitMiddleware(hello, limiter=limiter_of(FULL), on_refused=own))
    for _ in range(2):  # with the same response each time
        answer = await client.get("/")
        assert (answer.status_code, answer.text, answer.headers["x-ours"]) == (420, "later", "1")
        assert answer.headers.get_list("retry-after") == ["7"]
        assert answer.headers.get_list("ratelimit") == ['"hint";r=0;t=43200']
    one = limiter_of(Policy("hint", "1/day", match="/**"))
    client = client_of(RateLimitMiddleware(hello, limiter=one, on_refused=own_later))
    assert (await client.get("/a")).text == "hello"
    answer = await client.get("/a")
    assert (answer.status_code, answer.json()) == (429, {"policy": "hint", "path": "/a"})
    assert answer.headers["retry-after"] == "43200"


async def test_it_answers_what_a_view_has_asked_as_well_and_may_stream() -> None:
    ask = limited("hint")

    async def view(request: Request) -> PlainTextResponse:
        await ask(request)
        return PlainTextResponse("ok")

    async def pieces() -> Any:
        yield b"one "
        yield b"two"

    def own(request: HTTPConnection, decision: Decision) -> Response:
        return StreamingResponse(pieces(), status_code=429)

    limiter = limiter_of(Policy("hint", "0/day"))
    app = RateLimitMiddleware(Starlette(routes=[Route("/", view)]), limiter=limiter, on_refused=own)
    answer = await client_of(app).get("/")
    assert (answer.status_code, answer.text, answer.headers["ratelimit"]) == (429, "one two", '"hint";r=0;t=43200')


async def test_it_answers_a_handshake_where_the_server_can() -> None:
    app = RateLimitMiddleware(hello, limiter=limiter_of(FULL), on_refused=own_later)
    scope = scope_of("/feed", kind="websocket", headers=[(b"host", b"a")], extensions={"websocket.http.response": {}})
    start, body = await call(app, scope, connecting)
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 429)
    assert headers_of(start)["ratelimit"] == '"hint";r=0;t=43200'
    assert json.loads(body["body"])["policy"] == "hint"
    (close,) = await call(app, scope_of("/feed", kind="websocket", headers=[(b"host", b"a")]), connecting)
    assert (close["type"], close["code"]) == ("websocket.close", 1008)


async def connecting() -> Message:
    return {"type": "websocket.connect"}


class CatchAll(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        try:
            return await call_next(request)
        except Exception:  # noqa: BLE001 (as such middlewares do)
            return JSONResponse({"error": "something broke"}, status_code=500)


def asking() -> Callable[[Request], Awaitable[Response]]:
    ask = limited("hint")

    async def view(request: Request) -> Response:
        await ask(request)
        if "x-bug" in request.headers:
            raise ZeroDivisionError
        return PlainTextResponse("ok")

    return view


@pytest.mark.parametrize("mount", ["added", "around"])
async def test_whoever_answers_every_exception_does_not_turn_a_refusal_into_an_error(mount: str) -> None:
    limiter = limiter_of(Policy("hint", "1/day"))
    app = Starlette(routes=[Route("/", asking())])
    app.add_middleware(CatchAll)
    if mount == "added":
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    client = client_of(app if mount == "added" else RateLimitMiddleware(app, limiter=limiter))
    assert (await client.get("/")).status_code == 200
    refused = await client.get("/")
    assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["hint"])
    assert refused.headers["content-length"] == str(len(refused.content))


async def test_a_bug_stays_one() -> None:
    app = Starlette(routes=[Route("/", asking())])
    app.add_middleware(CatchAll)
    client = client_of(RateLimitMiddleware(app, limiter=limiter_of(Policy("hint", "1/day"))))
    assert (await client.get("/", headers={"x-bug": "1"})).json() == {"error": "something broke"}


async def test_what_such_a_middleware_answers_on_purpose_is_its_own() -> None:
    class Polite(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            try:
                return await call_next(request)
            except QuotaExceeded:
                return PlainTextResponse("busy", status_code=503)

    app = Starlette(routes=[Route("/", asking())])
    app.add_middleware(Polite)
    answer = await client_of(RateLimitMiddleware(app, limiter=limiter_of(Policy("hint", "0/day")))).get("/")
    assert (answer.status_code, answer.text, answer.headers["ratelimit"]) == (503, "busy", '"hint";r=0;t=43200')


async def test_a_framework_that_answers_every_exception_by_itself() -> None:
    ask = limited("hint")

    @get("/")
    async def view(request: LitestarRequest[Any, Any, Any]) -> str:
        await ask(request)  # type: ignore[arg-type]
        return "ok"

    site: Any = Litestar([view], logging_config=None)
    app = RateLimitMiddleware(site, limiter=limiter_of(Policy("hint", "1/day")))
    async with client_of(app) as client:
        assert [(await client.get("/")).status_code for _ in range(2)] == [200, 429]


@pytest.mark.parametrize("handled", [False, True])
async def test_an_answer_to_a_caught_refusal_does_not_wait_for_its_background_task(handled: bool) -> None:
    ask, go = limited("hint"), asyncio.Event()
    ran: list[str] = []

    async def background() -> None:
        await go.wait()
        ran.append("background")

    async def later(request: Request, error: Exception) -> Response:
        return PlainTextResponse("later", status_code=429, background=BackgroundTask(background))

    async def view(request: Request) -> Response:
        try:
            await ask(request)
        except QuotaExceeded as error:
            if handled:
                raise
            return await later(request, error)
        return PlainTextResponse("ok")

    handlers: dict[Any, Any] = {QuotaExceeded: later} if handled else {}
    app = Starlette(routes=[Route("/", view)], exception_handlers=handlers)
    sent: list[Message] = []
    whole = asyncio.Event()

    async def send(message: Message) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            whole.set()

    middleware = RateLimitMiddleware(app, limiter=limiter_of(Policy("hint", "0/day")))
    request = asyncio.create_task(middleware(scope_of("/", method="GET"), connecting, send))
    async with asyncio.timeout(30):
        await whole.wait()
    assert (sent[0]["status"], ran) == (429, [])
    go.set()
    await request
    assert ran == ["background"]


@pytest.mark.parametrize("where", ["inside", "around", "mounted", "asked"])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_handler_of_the_app_answers_what_a_match_or_a_view_refuses(where: str, is_async: bool) -> None:
    ask = limited("hint")

    async def view(request: Request) -> Response:
        await ask(request)
        return PlainTextResponse("ok")

    def answer(request: Request, error: Exception) -> Response:
        assert isinstance(error, QuotaExceeded)
        return PlainTextResponse(f"{request.url.path}: {error.decision.policy}", 418, {"RateLimit": "mine"})

    async def later(request: Request, error: Exception) -> Response:
        return answer(request, error)

    handler = later if is_async else answer
    limiter = limiter_of(Policy("hint", "1/day", match=() if where == "asked" else "/**"))
    app = Starlette(
        routes=[Route("/a", view)] if where == "asked" else [],
        exception_handlers={QuotaExceeded if is_async else RateLimitError: handler},
    )
    made: ASGIApp = app
    if where == "inside":
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    else:
        made = RateLimitMiddleware(app, limiter=limiter)
    if where == "mounted":
        made = Starlette(routes=[Mount("/", made)])
    _, answer_ = [await client_of(made).get("/a") for _ in range(2)]
    assert (answer_.status_code, answer_.text) == (418, "/a: hint")
    assert (answer_.headers["ratelimit"], answer_.headers["retry-after"]) == ("mine", "43200")


async def test_what_is_no_answer_to_a_refusal_is_told() -> None:
    limiter = limiter_of(Policy("hint", "0/day", match="/**"))
    app = RateLimitMiddleware(Starlette(), limiter=limiter, on_refused=lambda request, decision: {"no": "more"})  # type: ignore[arg-type,return-value]
    with pytest.raises(RateLimitError, match="refusal of 'hint' must return a Response, not"):
        await client_of(app).get("/a")


async def test_a_handler_that_leaves_it_to_the_middleware_and_one_of_another_error() -> None:
    async def never(request: Request, error: Exception) -> Response:
        raise AssertionError("this is no refusal")

    for handlers in ({QuotaExceeded: quota_exceeded_handler}, {Exception: never, 500: never, 429: never}):
        app = Starlette(exception_handlers=handlers)  # type: ignore[arg-type]
        limiter = limiter_of(Policy("hint", "0/day", match="/**"))
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
        answer = await client_of(app).get("/a")
        assert (answer.status_code, answer.headers["content-type"]) == (429, "application/problem+json")


def test_every_field_can_be_read_by_a_page_of_another_origin() -> None:
    assert {name.lower().encode() for name in EXPOSE_HEADERS} == {*LIMIT_FIELDS, b"retry-after"}


async def test_a_function_may_say_that_the_client_is_wrong() -> None:
    async def pages(request: HTTPConnection) -> int:
        text = request.query_params.get("pages", "1")
        if not text.isdecimal():
            raise HTTPException(400, "pages: a whole number", headers={"X-See": "docs"})
        return int(text)

    def nobody(request: HTTPConnection) -> str:
        raise HTTPException(401)

    def teapot(request: HTTPConnection) -> bool:
        raise HTTPException(499, "gone")

    limiter = limiter_of(Policy("all", "9/day", match="/**"), Policy("export", "9/day", match="/exports", cost=pages))
    client = client_of(limited_app(limiter, "cors inside"))
    answer = await client.get("/exports?pages=-5", headers={"origin": ORIGIN})
    assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
    assert (answer.json()["title"], answer.json()["detail"]) == ("Bad Request", "pages: a whole number")
    assert (answer.headers["x-see"], answer.headers["access-control-allow-origin"]) == ("docs", ORIGIN)
    assert (await used(limiter, action="all"), await used(limiter, action="export")) == (1, 0)
    for options, status in (({"user_from": nobody}, 401), ({"exempt": teapot}, 499)):
        assert (await client_of(RateLimitMiddleware(hello, limiter=limiter, **options)).get("/a")).status_code == status
    scope = scope_of("/exports", kind="websocket", headers=[])
    scope["query_string"] = b"pages=x"
    assert [message["type"] for message in await call(RateLimitMiddleware(hello, limiter=limiter), scope)] == [
        "websocket.close"
    ]


async def test_an_exception_of_the_app_is_not_taken_for_one_of_them() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(400)

    with pytest.raises(HTTPException):
        await call(RateLimitMiddleware(app, limiter=limiter_of()), scope_of())


BODY = '{"error": "{policy}: {limit} a day, {remaining} left", "wait": {retry_after}}'
TEMPLATE = {"status": 420, "content_type": "application/json", "body": BODY}


async def test_a_policys_template_goes_before_the_functions_of_the_app() -> None:
    clock = FakeClock()
    policies = [Policy("hint", "2/day", match="/hints", refusal=TEMPLATE), Policy("other", "0/day", match="/other")]
    app = RateLimitMiddleware(
        hello, limiter=limiter_of(*policies, clock=clock), on_refused=lambda *_: PlainTextResponse("theirs", 418)
    )
    async with client_of(app) as client:
        answers = [await client.get("/hints") for _ in range(3)]
        other = await client.get("/other")
    refused = answers[-1]
    assert (refused.status_code, refused.headers["content-type"]) == (420, "application/json")
    assert refused.json() == {"error": "hint: 2 a day, 0 left", "wait": int(refused.headers["retry-after"])}
    assert refused.headers["ratelimit"].startswith('"hint";r=0;t=')
    assert (other.status_code, other.text) == (418, "theirs")


async def test_a_template_says_nothing_of_quotas_that_could_not_be_checked() -> None:
    policy = Policy("hint", "2/day", match="/**", on_unavailable="deny", refusal="Slow down.")
    store = FailingStore()
    store.fault = failing(StoreUnavailable("gone"))
    async with client_of(RateLimitMiddleware(hello, limiter=limiter_of(policy, store=store))) as client:
        assert (await client.get("/")).status_code == 503


async def test_a_template_of_json_is_json_whatever_is_filled_in() -> None:
    policy = Policy('a "hint"', "2/day", match="/**", cost=3, refusal=TEMPLATE)
    async with client_of(RateLimitMiddleware(hello, limiter=limiter_of(policy))) as client:
        refused = await client.get("/")
    assert refused.json() == {"error": 'a "hint": 2 a day, 2 left', "wait": None}


async def test_a_template_for_what_can_never_pass_says_no_time() -> None:
    policy = Policy("hint", "2/day", match="/**", cost=3, refusal="{retry_after}{nothing known, so it stays}")
    async with client_of(RateLimitMiddleware(hello, limiter=limiter_of(policy))) as client:
        refused = await client.get("/")
    assert (refused.status_code, refused.text) == (429, "{nothing known, so it stays}")
    assert refused.headers["content-type"] == "text/plain; charset=utf-8"


# Problem bodies: what a refused client reads.


async def refused(quotas: str, *, cost: int = 1, name: str = "hint") -> dict[str, Any]:
    limiter = limiter_of(Policy(name, quotas))
    for _ in range(20):
        decision = await limiter.check("alice", name, cost=cost)
        if not decision.allowed:
            body: dict[str, Any] = json.loads(problem_of(decision, HeaderWriter()).encode())
            return body
    raise AssertionError("never refused")


async def test_a_used_up_quota() -> None:
    assert await refused("5/day") == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "The quota is used up",
        "status": 429,
        "detail": "'hint' allows 5 per day, and 0 are left. Try again in 43200 seconds.",
        "violated-policies": ["hint"],
    }


async def test_one_that_is_left() -> None:
    assert ", and 1 is left. Try" in (await refused("5/day", cost=2))["detail"]


async def test_only_the_violated_quotas_are_named() -> None:
    assert (await refused("2/minute; 100/day"))["violated-policies"] == ["hint-minute"]
    assert (await refused("2/minute; 2/day"))["violated-policies"] == ["hint-minute", "hint-day"]
    assert (await refused("1/day", name='50% "off" für alle'))["violated-policies"] == ['50%25 "off" f%C3%BCr alle']


async def test_a_cost_that_can_never_pass() -> None:
    body = await refused("5/day", cost=7)
    assert body["detail"] == "A cost of 7 can never pass: 'hint' allows 5 per day."
    assert (body["status"], body["title"]) == (429, "The request is larger than its quota")


def test_a_store_that_cannot_be_asked() -> None:
    problem = problem_of(Decision(False, "hint", 1, (), 0.7, "unavailable"), HeaderWriter())
    assert json.loads(problem.encode()) == {
        "type": "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity",
        "title": "Quotas cannot be checked at the moment",
        "status": 503,
        "detail": "The quota of 'hint' cannot be checked at the moment. Try again in 1 second.",
        "violated-policies": ["hint"],
    }


def test_a_user_who_is_not_active_is_forbidden() -> None:
    decision = Decision(allowed=False, policy="hint", cost=1, quotas=(), retry_after=None, reason="inactive")
    problem = problem_of(decision, HeaderWriter())
    assert (problem.status, problem.title, problem.violated_policies) == (403, "Forbidden", [])
