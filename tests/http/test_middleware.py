"""The middleware around an app: what is checked, what the client sees, what the app sees."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, QuotaExceeded, StoreUnavailable
from ratelimit.http import RateLimitMiddleware, RateLimitState, limited
from ratelimit.limiter import Limiter
from ratelimit.limiter.background import Alert
from ratelimit.names import UserId
from ratelimit.policy import Policy
from ratelimit.store import MemoryStore
from ratelimit.testing import FakeClock
from ratelimit.usage import UsageLog
from tests.http.apps import HINT, call, client_of, headers_of, hello, limiter_of, scope_of, unread, used
from tests.limiter.stores import FailingStore
from tests.turns import settled


async def test_five_pass_and_the_sixth_is_refused_with_a_problem() -> None:
    clock = FakeClock()
    async with client_of(RateLimitMiddleware(hello, limiter=limiter_of(clock=clock))) as client:
        for left in (4, 3, 2, 1, 0):
            answer = await client.post("/hints")
            assert (answer.status_code, answer.text) == (200, "hello")
            assert answer.headers["ratelimit-policy"] == '"hint";q=5;w=86400'
            assert answer.headers["ratelimit"] == f'"hint";r={left};t=43200'
            assert "retry-after" not in answer.headers
        answer = await client.post("/hints")
        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["ratelimit"] == '"hint";r=0;t=43200'
        assert answer.headers["retry-after"] == "43200"
        assert answer.json()["violated-policies"] == ["hint"]
        clock.advance(43199)
        assert (await client.post("/hints")).status_code == 429
        clock.advance(1)
        assert (await client.post("/hints")).status_code == 200


async def test_what_no_policy_matches_passes_without_a_trace() -> None:
    limiter = limiter_of()
    app = RateLimitMiddleware(hello, limiter=limiter)
    sent = await call(app, scope_of(method="GET"))
    assert sent == await call(hello, scope_of(method="GET"))
    assert await used(limiter) == 0


async def test_users_are_told_apart() -> None:
    app = RateLimitMiddleware(hello, limiter=limiter_of(Policy("hint", "1/day", match="/**")))
    for address in ("203.0.113.7", "203.0.113.8", "2001:db8::1", "2001:db8:0:1::1"):
        assert [(await client_of(app, address=address).get("/")).status_code for _ in range(2)] == [200, 429]
    assert (await client_of(app, address="2001:db8::2").get("/")).status_code == 429


async def test_a_spoofed_forwarded_for_changes_nothing() -> None:
    policy = Policy("hint", "1/day", match="/**")
    direct = client_of(RateLimitMiddleware(hello, limiter=limiter_of(policy)))
    proxied = client_of(RateLimitMiddleware(hello, limiter=limiter_of(policy), trusted_proxies=["203.0.113.0/24"]))
    for client, real in ((direct, ""), (proxied, ", 198.51.100.1")):
        answers = [
            await client.get("/", headers={"x-forwarded-for": f"{spoof}{real}"}) for spoof in ("1.1.1.1", "2.2.2.2")
        ]
        assert [answer.status_code for answer in answers] == [200, 429]


async def test_a_refused_request_is_not_read_and_the_app_not_called() -> None:
    async def never(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the app was called")

    start, body = await call(
        RateLimitMiddleware(never, limiter=limiter_of(Policy("hint", "0/day", match="/**"))), scope_of()
    )
    assert start["status"] == 429
    assert int(headers_of(start)["content-length"]) == len(body["body"])


async def test_every_policy_that_matches_is_checked_and_a_refusal_gives_back_the_others() -> None:
    limiter = limiter_of(
        Policy("api", "3/day", match="/**"), Policy("hint", "1/hour", match="POST /hints"), Policy("other", "1/day")
    )
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    answer = await client.post("/hints")
    assert answer.headers["ratelimit-policy"] == '"api";q=3;w=86400, "hint";q=1;w=3600'
    assert answer.headers["ratelimit"] == '"api";r=2;t=43200, "hint";r=0;t=3600'
    answer = await client.post("/hints")
    assert answer.status_code == 429
    assert answer.headers["ratelimit-policy"] == '"hint";q=1;w=3600'
    assert await used(limiter, action="api") == 1


async def test_a_policy_has_a_user_of_its_own() -> None:
    limiter = limiter_of(Policy("hint", "1/day", match="/**", user_from="header:x-api-key"))
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    assert (await client.get("/", headers={"x-api-key": "k1"})).status_code == 200
    assert (await client.get("/", headers={"x-api-key": "k1"})).status_code == 429
    assert (await client.get("/")).status_code == 200
    assert await used(limiter, "k1") == 1


async def test_the_user_that_authentication_found() -> None:
    class Backend(AuthenticationBackend):
        async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser] | None:
            name = conn.headers.get("x-login")
            return (AuthCredentials(), SimpleUser(name)) if name else None

    async def view(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    limiter = limiter_of()
    middleware = [
        Middleware(AuthenticationMiddleware, backend=Backend()),
        Middleware(RateLimitMiddleware, limiter=limiter),
    ]
    client = client_of(Starlette(routes=[Route("/hints", view, methods=["POST"])], middleware=middleware))
    await client.post("/hints", headers={"x-login": "alice"})
    await client.post("/hints")
    assert (await used(limiter, "alice"), await used(limiter)) == (1, 1)


async def test_exempt_requests_are_not_counted() -> None:
    async def internal(connection: HTTPConnection) -> bool:
        return connection.headers.get("x-internal") == "yes"

    limiter = limiter_of(Policy("hint", "5/day", match="/**", exempt=["GET /health", internal]))
    app = RateLimitMiddleware(hello, limiter=limiter, exempt=["/static/**", lambda c: "x-admin" in c.headers])
    client = client_of(app)
    for path, headers in (("/health", {}), ("/", {"x-internal": "yes"}), ("/static/a.js", {}), ("/", {"x-admin": "1"})):
        assert "ratelimit" not in (await client.get(path, headers=headers)).headers
    assert await used(limiter) == 0
    await client.post("/health")
    assert await used(limiter) == 1


async def size(connection: HTTPConnection) -> int:
    return int(connection.headers["x-size"])


@pytest.mark.parametrize("cost", [size, lambda connection: int(connection.headers["x-size"])])
async def test_the_cost_may_depend_on_the_request(cost: Callable[[HTTPConnection], Any]) -> None:
    limiter = limiter_of(Policy("hint", "5/day", match="/**", cost=cost))
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    assert (await client.get("/", headers={"x-size": "3"})).headers["ratelimit"] == '"hint";r=2;t=43200'
    assert (await client.get("/", headers={"x-size": "0"})).status_code == 200
    assert (await client.get("/", headers={"x-size": "3"})).status_code == 429
    too_large = await client.get("/", headers={"x-size": "6"})
    assert too_large.status_code == 429
    assert "retry-after" not in too_large.headers
    assert await used(limiter) == 3


async def test_shadow_and_unlimited_policies_are_not_seen() -> None:
    limiter = limiter_of(Policy("try", "0/day", match="/**", mode="shadow"), Policy("free", "unlimited", match="/**"))
    app = RateLimitMiddleware(hello, limiter=limiter)
    assert await call(app, scope_of()) == await call(hello, scope_of())


async def test_the_app_sees_what_was_decided() -> None:
    seen: list[RateLimitState] = []

    async def view(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["ratelimit"])
        await hello(scope, receive, send)

    limiter = limiter_of()
    await call(RateLimitMiddleware(view, limiter=limiter), scope := scope_of())
    (state,) = seen
    assert [(decision.policy, decision.remaining) for decision in state.decisions] == [("hint", 4)]
    assert state.limiter is limiter
    assert await state.identity.user_of(HTTPConnection(scope)) == "ip:203.0.113.7"


async def test_the_apps_own_headers_win_and_its_messages_are_left_as_they_are() -> None:
    start: Message = {"type": "http.response.start", "status": 200, "headers": ((b"RateLimit", b"mine"),), "extra": 1}
    messages: list[Message] = [
        {"type": "http.response.debug", "info": {}},
        start,
        {"type": "http.response.pathsend", "path": "/x"},
        {"type": "http.response.body", "body": b"", "more_body": False, "also": "this"},
        {"type": "http.response.trailers", "headers": []},
    ]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    sent = await call(RateLimitMiddleware(app, limiter=limiter_of()), scope_of())
    assert start["headers"] == ((b"RateLimit", b"mine"),)
    assert [one for one in sent if one["type"] != "http.response.start"] == [
        one for one in messages if one is not start
    ]
    assert sent[1] == start


async def test_headers_may_be_pairs_of_any_kind() -> None:
    """As the specification has them: iterables of pairs."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": ([b"x-one", b"1"], [b"x-two", b"2"])})

    middleware = RateLimitMiddleware(app, limiter=limiter_of(HINT), user_from="header:x-user")
    scope: Any = scope_of(headers=[])
    scope["headers"] = ([b"x-other", b"-"], [b"x-user", b"alice"])
    (start,) = await call(middleware, scope)
    assert {"x-one", "x-two", "ratelimit"} < set(headers_of(start))
    assert await used(middleware.limiter, "alice") == 1


async def test_checks_go_through_the_limiter_that_is_given() -> None:
    seen: list[UserId] = []

    class CheckCounter(Limiter):
        async def check(self, user: UserId, action: str, **options: Any) -> Decision:
            seen.append(user)
            return await super().check(user, action, **options)

    class Inherited(CheckCounter):
        pass

    wrapped = limiter_of()
    check = wrapped.check

    async def counted(user: UserId, action: str, **options: Any) -> Decision:
        seen.append(user)
        return await check(user, action, **options)

    wrapped.check = counted  # type: ignore[method-assign]
    for limiter in (CheckCounter(MemoryStore(), [HINT]), Inherited(MemoryStore(), [HINT]), wrapped):
        seen.clear()
        app = RateLimitMiddleware(hello, limiter=limiter)
        assert [(await call(app, scope_of()))[0]["status"] for _ in range(6)] == [200] * 5 + [429]
        assert seen == ["ip:203.0.113.7"] * 6


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("was_refused", [False, True])
async def test_no_message_waits_for_the_one_that_follows(status: int, was_refused: bool) -> None:
    """Also where an app answers by itself after a refusal that it has caught: an endless answer is not held back."""
    bodies = [b"one", b"two", b"three", b"four"]
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if was_refused:
            with pytest.raises(QuotaExceeded):
                await limited("closed")(HTTPConnection(scope))
        await send({"type": "http.response.start", "status": status, "headers": []})
        assert len(sent) == 1
        for number, body in enumerate(bodies, start=2):
            await send({"type": "http.response.body", "body": body, "more_body": number <= len(bodies)})
            assert len(sent) == number

    async def send(message: Message) -> None:
        sent.append(message)

    middleware = RateLimitMiddleware(app, limiter=limiter_of(HINT, Policy("closed", "0/day")))
    await middleware(scope_of(), unread, send)
    assert [message.get("body") for message in sent] == [None, *bodies]


async def test_made_of_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text('headers = "legacy"\n[policies.hint]\nquotas = "1/day"\nmatch = "POST /hints"', encoding="utf-8")
    alerts: list[Alert] = []

    async def teapot(request: HTTPConnection, decision: Decision) -> Response:
        return Response(status_code=418)

    app = Starlette(routes=[Route("/hints", lambda request: Response(), methods=["POST"])])
    app.add_middleware(
        RateLimitMiddleware.from_config,
        path=path,
        user_from="header:x-api-key",
        policies={"hint": {"alert_at": [1.0]}},
        on_refused=teapot,
        on_alert=alerts.append,
    )
    async with client_of(app) as client:
        answers = [await client.post("/hints", headers={"x-api-key": "alice"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 418]
    assert answers[0].headers["x-ratelimit-remaining"] == "0"
    assert [alert.user for alert in alerts] == ["alice"]


def test_a_configuration_that_makes_no_sense_is_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"user_from\[0\]: unknown source 'heder:x'"):
        RateLimitMiddleware.from_config(hello, user_from="heder:x")


async def test_a_start_without_headers() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 204})

    (start,) = await call(RateLimitMiddleware(app, limiter=limiter_of()), scope_of())
    assert set(headers_of(start)) == {"ratelimit", "ratelimit-policy"}


async def test_legacy_headers_and_none() -> None:
    answer = await client_of(RateLimitMiddleware(hello, limiter=limiter_of(), headers="legacy")).post("/hints")
    assert answer.headers["x-ratelimit-remaining"] == "4"
    assert "ratelimit" not in answer.headers
    answer = await client_of(RateLimitMiddleware(hello, limiter=limiter_of(), headers="none")).post("/hints")
    assert not [name for name in answer.headers if "ratelimit" in name]


async def test_one_middleware_within_another() -> None:
    outer, inner = limiter_of(Policy("api", "3/day", match="/**")), limiter_of(Policy("hint", "1/hour", match="/hints"))
    client = client_of(RateLimitMiddleware(RateLimitMiddleware(hello, limiter=inner), limiter=outer))
    answer = await client.post("/hints")
    assert answer.headers.get_list("ratelimit") == ['"api";r=2;t=43200, "hint";r=0;t=3600']
    assert answer.headers.get_list("ratelimit-policy") == ['"api";q=3;w=86400, "hint";q=1;w=3600']
    answer = await client.post("/hints")
    assert (answer.status_code, answer.headers.get_list("ratelimit")) == (429, ['"hint";r=0;t=3600'])
    assert await used(outer, action="api") == 1


async def test_an_outer_middleware_speaks_where_the_inner_one_is_silent() -> None:
    outer, inner = limiter_of(Policy("api", "3/day", match="/**")), limiter_of(Policy("hint", "1/hour", match="/hints"))
    client = client_of(RateLimitMiddleware(RateLimitMiddleware(hello, limiter=inner, headers="none"), limiter=outer))
    assert (await client.post("/hints")).headers["ratelimit"] == '"api";r=2;t=43200, "hint";r=0;t=3600'
    refused = await client.post("/hints")
    assert (refused.status_code, refused.headers["ratelimit"]) == (429, '"hint";r=0;t=3600')


async def test_paths_below_a_mount_are_the_mounted_apps_own() -> None:
    async def view(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok")

    limiter = limiter_of()
    middleware = [Middleware(RateLimitMiddleware, limiter=limiter)]
    sub = Starlette(routes=[Route("/hints", view, methods=["POST"])], middleware=middleware)
    client = client_of(Starlette(routes=[Mount("/sub", sub)]))
    assert (await client.post("/sub/hints")).headers["ratelimit"] == '"hint";r=4;t=43200'
    behind = client_of(RateLimitMiddleware(hello, limiter=limiter), root_path="/api")
    assert (await behind.post("/api/hints/")).headers["ratelimit"] == '"hint";r=3;t=43200'


async def test_other_kinds_of_scopes_pass_untouched() -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([scope, receive, send])

    scope: Scope = {"type": "some.day"}
    receive, send = unread_pair()
    await RateLimitMiddleware(app, limiter=limiter_of())(scope, receive, send)
    assert seen == [scope, receive, send]
    assert scope == {"type": "some.day"}


def unread_pair() -> tuple[Receive, Send]:
    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        raise AssertionError

    return receive, send


async def dead() -> None:
    raise StoreUnavailable("nobody is there")


async def hanging() -> None:
    await asyncio.sleep(60)


@pytest.mark.parametrize("fault", [dead, hanging])
@pytest.mark.parametrize(("on_unavailable", "status"), [("allow", 200), ("local", 200), ("deny", 503)])
async def test_a_store_that_fails_is_a_decision(
    fault: Callable[[], Awaitable[None]], on_unavailable: Any, status: int
) -> None:
    store = FailingStore()
    store.fault = fault
    policy = Policy("hint", "5/day", match="/**", on_unavailable=on_unavailable, count="success")
    limiter = limiter_of(policy, store=store, deadline=0.05)
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    answer = await client.post("/hints", headers={"x-status": "200"})
    assert answer.status_code == status
    assert ("ratelimit" in answer.headers) == (on_unavailable == "local")
    if status == 503:
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["type"].endswith("#temporary-reduced-capacity")


async def test_what_the_store_never_counted_is_never_given_back(caplog: pytest.LogCaptureFixture) -> None:
    store = FailingStore()
    limiter = limiter_of(Policy("hint", "5/day", match="/**", on_unavailable="allow", count="success"), store=store)
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    await client.get("/")
    store.fault = dead
    await client.get("/", headers={"x-status": "500"})
    store.fault = None
    assert await used(limiter) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(
    ("policy", "options", "path"),
    [
        (Policy("hint", "5/day", match=["/a", "b"]), {}, "policies.hint.match[1]"),
        (Policy("hint", "5/day", exempt=["/a", "GETT /b"]), {}, "policies.hint.exempt[1]"),
        (Policy("hint", "5/day", user_from="heder:x"), {}, "policies.hint.user_from[0]"),
        (HINT, {"user_from": ["adress"]}, "user_from[0]"),
        (HINT, {"trusted_proxies": -1}, "trusted_proxies"),
        (HINT, {"headers": "ietf"}, "headers"),
        (HINT, {"exempt": ["health"]}, "exempt[0]"),
        (HINT, {"exempt": [7]}, "exempt[0]"),
    ],
)
def test_options_are_validated_once_with_their_path(policy: Policy, options: Any, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RateLimitMiddleware(hello, limiter=limiter_of(policy), **options)
    assert caught.value.path == path


async def test_many_at_once_admit_the_limit() -> None:
    limiter = limiter_of()
    client = client_of(RateLimitMiddleware(hello, limiter=limiter))
    answers = await asyncio.gather(*(client.post("/hints") for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 15
    await settled()


@pytest.mark.parametrize("way", ["allowed", "refused", "asked by a view", "by functions"])
async def test_a_request_leaves_nothing_for_the_garbage_collector(way: str) -> None:
    async def view(request: Request) -> Response:
        await limited("hint")(request)
        return PlainTextResponse("ok")

    quotas = "1/day" if way == "refused" else "1000/day"
    match = "/b" if way == "asked by a view" else "/hints"
    cost: Any = (lambda connection: 1) if way == "by functions" else 1
    limiter = limiter_of(Policy("hint", quotas, match=match, cost=cost))
    app = Starlette(routes=[Route("/hints", view if way == "asked by a view" else _ok, methods=["POST"])])
    app.add_middleware(RateLimitMiddleware, limiter=limiter)
    for _ in range(3):
        await call(app, scope_of())
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await call(app, scope_of())
        assert gc.collect() < 10
    finally:
        gc.enable()


async def _ok(request: Request) -> Response:
    return PlainTextResponse("ok")


async def test_what_a_task_checks_that_outlives_the_request_counts() -> None:
    over, tasks = asyncio.Event(), list[asyncio.Task[Decision]]()

    async def view(request: Request) -> Response:
        async def later() -> Decision:
            await over.wait()
            return await limited("hint")(request)

        tasks.append(asyncio.create_task(later()))
        return PlainTextResponse("ok")

    limiter = limiter_of()
    usage = UsageLog(MemoryStore(), clock=limiter.clock)
    app = Starlette(routes=[Route("/hints", view, methods=["POST"])])
    app.add_middleware(RateLimitMiddleware, limiter=limiter, usage=usage)
    async with usage:
        await call(app, scope_of())
        over.set()
        assert (await tasks[0]).remaining == 3
        await usage.flush()
        assert len((await usage.events("ip:203.0.113.7")).events) == 2
