"""The page's files, its sessions, and who may change what through it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Mount
from starlette.types import ASGIApp

from ratelimit import Limiter, MemoryStore, Policy, UsageLog, User, live, open_store
from ratelimit.algorithms.fields import utc_day
from ratelimit.dashboard import Viewer, dashboard
from ratelimit.dashboard.app import CSP
from ratelimit.dashboard.session import COOKIE, SESSION_S, anybody
from ratelimit.names import is_hash
from ratelimit.prometheus import expose
from ratelimit.regions.home import HomeStore
from ratelimit.store.hashed import HashedUserStore
from tests.dashboard.clients import OPERATOR, ORIGIN, READER, Page, page
from tests.engines import Engine

CHANGES: list[tuple[str, str, Any]] = [
    ("PUT", "/v1/users/alice", {"plan": "pro"}),
    ("PATCH", "/v1/users/alice", {"quotas": {"hint": "9/day"}}),
    ("DELETE", "/v1/users/alice", None),
    ("POST", "/v1/users/alice/erase", {}),
    ("PUT", "/v1/plans/pro", {"quotas": {"hint": "9/day"}}),
    ("PATCH", "/v1/plans/pro", {"quotas": {}}),
    ("DELETE", "/v1/plans/pro", None),
    ("POST", "/v1/reset", {"user": "alice", "action": "hint"}),
    ("POST", "/v1/refund", {"user": "alice", "action": "hint"}),
    ("POST", "/v1/charge", {"user": "alice", "action": "hint", "cost": 1}),
    ("POST", "/v1/check", {"user": "alice", "action": "hint"}),
    ("POST", "/admin/reload", None),
]
PEEK = ("POST", "/v1/peek", {"user": "alice", "action": "hint"})


async def refusals(
    one: Page, method: str, path: str, body: Any, caplog: pytest.LogCaptureFixture, **headers: str
) -> int:
    """The status of a request that has to be refused, and logged without the user's name."""
    caplog.clear()
    answer = await one.client.request(method, path, json=body, headers=headers)
    (record,) = [each for each in caplog.records if each.name == "ratelimit.dashboard"]
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"refused {method} ")
    assert "alice" not in record.getMessage()
    return answer.status_code


@pytest.mark.parametrize(("method", "path", "body"), CHANGES, ids=lambda part: part if isinstance(part, str) else "")
async def test_a_change_is_the_operators_alone_and_comes_from_the_page(
    method: str, path: str, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with page() as one:
        await one.limiter.check("alice", "hint")
        assert await refusals(one, method, path, body, caplog) == 401, "nobody has logged in"
        await one.log_in()
        stale = one.client.headers["x-csrf-token"]
        for foreign in (
            {"origin": "https://elsewhere.example"},
            {"origin": "null"},
            {"sec-fetch-site": "cross-site"},
            {"sec-fetch-site": "same-site"},
            {"x-csrf-token": ""},
            {"x-csrf-token": "0" * 64},
        ):
            assert await refusals(one, method, path, body, caplog, **foreign) == 403, foreign
        await one.log_in()
        assert await refusals(one, method, path, body, caplog, **{"x-csrf-token": stale}) == 403, "of another session"
        del one.client.headers["origin"]
        assert await refusals(one, method, path, body, caplog) == 403, "no browser says nothing at all"
        one.client.headers["origin"] = ORIGIN
        await one.log_in(READER)
        assert await refusals(one, method, path, body, caplog) == 403
        path = "/v1/users/alice/usage/events"
        assert await refusals(one, "GET", path, None, caplog, **{"sec-fetch-site": "cross-site"}) == 403
        assert (await one.limiter.peek("alice", "hint")).used == 1
        assert (await one.usage.events("alice")).events == ()
        assert await one.directory.store.read(User, "alice") is None


async def test_a_reader_sees_everything() -> None:
    async with page() as one:
        session = await one.log_in(READER)
        assert (session["role"], session["has"]) == ("reader", {"admin": False, "directory": True, "usage": True})
        assert (await one.client.request(*PEEK[:2], json=PEEK[2])).json()["remaining"] == 5
        for path in ("/v1/users", "/v1/plans", "/v1/policies", "/v1/users/alice/usage/totals"):
            assert (await one.client.get(path)).status_code == 200


async def test_what_was_changed_is_an_event_of_the_user(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ratelimit.dashboard")
    async with page() as one:
        await one.log_in()
        assert (await one.client.put("/v1/plans/pro", json={"quotas": {"hint": "50/day"}})).status_code == 200
        body = {"plan": "pro", "identities": ["email:alice@example.com"]}
        assert (await one.client.put("/v1/users/a%2Fb", json=body)).status_code == 200
        assert (await one.client.post("/v1/reset", json={"user": "a/b", "action": "hint"})).status_code == 204
        assert (await one.client.patch("/v1/users/a%2Fb", json={"plan": "none"})).status_code == 404
        await one.usage.flush()
        (reset, put) = (await one.usage.events("a/b")).events
        said = {"who": "operator", "role": "operator"}
        assert reset.metadata == {**said, "what": "POST /v1/reset", "set": {"action": "hint"}}
        assert put.metadata == {**said, "what": "PUT /v1/users/*", "set": {"plan": "pro"}}
        assert (put.action, put.cost, put.status) == ("ratelimit.admin", 0, 200)
        (plan,) = (await one.usage.events("ratelimit.admin")).events
        assert plan.metadata["plan"] == "pro"
        assert await one.usage.reconcile("a/b", utc_day(one.clock.now())) == {}, "it counts nothing"
        assert "a/b" not in caplog.text
        assert "a%2Fb" not in caplog.text


async def test_who_was_erased_is_not_named_by_the_event_of_it() -> None:
    async with page() as one:
        await one.log_in()
        await one.limiter.check("alice", "hint")
        await one.client.patch("/v1/users/alice", json={"quotas": {}})
        assert (await one.client.post("/v1/users/alice/erase", json={"actions": ["hint"]})).status_code == 200
        await one.usage.flush()
        assert (await one.usage.events("alice")).events == ()
        (event,) = (await one.usage.events("ratelimit.admin")).events
        assert event.metadata == {"who": "operator", "role": "operator", "what": "POST /v1/users/*/erase"}


# Sessions.


async def test_the_cookie_is_for_the_page_alone() -> None:
    async with page() as one:
        answer = await one.client.post("/session", json={"token": OPERATOR})
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "path" not in cookie, "whatever is in front knows it by another one"
        assert "secure" not in cookie
        secure = await one.client.post(
            "/session", json={"token": OPERATOR}, headers={"origin": "https://limits.example"}
        )
        assert "; secure" in secure.headers["set-cookie"].lower(), "TLS ends in front of it"
        assert (await one.client.delete("/session")).status_code == 204
        assert COOKIE not in one.client.cookies
        assert (await one.client.get("/session")).json() == {"login": True, "role": None}


async def test_a_session_ends() -> None:
    async with page() as one:
        await one.log_in(READER)
        one.clock.advance(SESSION_S - 1)
        assert (await one.client.get("/v1/plans")).status_code == 200
        one.clock.advance(1)
        assert (await one.client.get("/v1/plans")).status_code == 401
        await one.log_in(READER)
        one.tokens["operator"] = "another-operator-of-this"
        assert (await one.client.get("/v1/plans")).status_code == 200, "theirs has not changed"
        one.tokens["reader"] = "another-reader-of-this"
        assert (await one.client.get("/v1/plans")).status_code == 401


CHANGED = [
    lambda cookie: cookie.replace("reader", "operator"),
    lambda cookie: cookie[:-1],
    lambda cookie: cookie + "0",
    lambda cookie: ".".join([cookie.split(".")[0], "99999999999", *cookie.split(".")[2:]]),
    lambda cookie: "",
    lambda cookie: "é" * 9,
]


@pytest.mark.parametrize("change", CHANGED)
async def test_a_cookie_that_was_changed_admits_nobody(change: Any) -> None:
    async with page() as one:
        await one.log_in(READER)
        changed = change(one.client.cookies[COOKIE])
        one.client.cookies.clear()
        answer = await one.client.get("/v1/plans", headers=[(b"cookie", f"{COOKIE}={changed}".encode())])
        assert answer.status_code == 401


@pytest.mark.parametrize(("proxies", "others"), [((), 429), (("127.0.0.0/8",), 200)])
async def test_behind_a_proxy_that_is_trusted_one_attacker_locks_nobody_else_out(
    proxies: tuple[str, ...], others: int
) -> None:
    """What else a client says of its address is not believed: it is tried out no more often."""
    async with page(proxies=proxies) as one:
        for number in range(10):
            forwarded = {"x-forwarded-for": f"198.51.100.{number}, 203.0.113.6"}
            guessed = await one.client.post("/session", json={"token": "guess"}, headers=forwarded)
            assert guessed.status_code == 401
        for address, status in (("198.51.100.77, 203.0.113.6", 429), ("203.0.113.7", others)):
            answer = await one.client.post("/session", json={"token": OPERATOR}, headers={"x-forwarded-for": address})
            assert answer.status_code == status


async def test_tokens_cannot_be_tried_out(caplog: pytest.LogCaptureFixture) -> None:
    async with page() as one:
        for _ in range(10):
            assert await refusals(one, "POST", "/session", {"token": "guess"}, caplog) == 401
        assert await refusals(one, "POST", "/session", {"token": OPERATOR}, caplog) == 429
        assert "guess" not in caplog.text
        one.clock.advance(60)
        for _ in range(20):
            await one.log_in()  # what is right does not count
        assert await refusals(one, "POST", "/session", {"token": OPERATOR}, caplog, origin="http://evil.example") == 403


async def test_without_a_token_it_is_who_is_on_this_machine() -> None:
    async with page(operator=None, reader=None, base_url="http://127.0.0.1:8081") as one:
        session = (await one.client.get("/session")).json()
        assert (session["role"], session["login"]) == ("operator", False)
        headers = {"x-csrf-token": session["csrf"]}
        assert (await one.client.post("/v1/reset", json=CHANGES[7][2])).status_code == 403
        assert (await one.client.post("/v1/reset", json=CHANGES[7][2], headers=headers)).status_code == 204
        for path in ("/session", "/v1/plans"):
            answer = await one.client.get(
                path, headers={"host": "a.name.pointed.here", "origin": "http://a.name.pointed.here"}
            )
            assert answer.status_code == 403, "by a name that somebody has pointed here"


async def test_every_answer_is_hardened() -> None:
    async with page() as one:
        for path in ("/", "/dashboard.js", "/dashboard.css", "/session", "/v1/plans", "/nowhere"):
            answer = await one.client.get(path)
            assert answer.headers["content-security-policy"] == CSP
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] in ("no-store", "no-cache")
        assert "unsafe" not in CSP
        markup = (await one.client.get("/")).text
        assert "style=" not in markup
        assert "<script>" not in markup
        assert (await one.client.post("/")).status_code == 405
        assert (await one.client.put("/session")).headers["allow"] == "GET, HEAD, POST, DELETE"
        assert (await one.client.get("/v1/plans", headers={"sec-fetch-site": "cross-site"})).status_code == 403


# In an app.


async def mounted(auth: Any, **headers: str) -> httpx.AsyncClient:
    store = MemoryStore()
    limiter = Limiter(store, [Policy("hint", "5/day")])
    usage = UsageLog(store)
    app = Starlette(
        routes=[Mount("/ops", Starlette(routes=[Mount("/limits", dashboard(limiter, usage=usage, auth=auth))]))]
    )
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://app.example", headers=headers)


async def test_behind_the_apps_own_login() -> None:
    async def auth(request: Request) -> Viewer | None:
        name = request.headers.get("x-staff")
        return None if name is None else Viewer(name, "operator" if name == "maria" else "reader")

    client = await mounted(auth, **{"x-staff": "maria", "origin": "https://app.example"})
    assert (await client.get("/ops/limits/")).text.startswith("<!doctype html>")
    answer = await client.get("/ops/limits/session")
    assert "; secure" in answer.headers["set-cookie"].lower()
    session = answer.json()
    assert (session["name"], session["login"], session["has"]["directory"]) == ("maria", False, False)
    client.headers["x-csrf-token"] = session["csrf"]
    answer = await client.put("/ops/limits/v1/users/a%2Fb", json={"role": "admin"})
    assert answer.json()["id"] == "a/b"
    assert (await client.post("/ops/limits/session", json={"token": "x"})).status_code == 404
    assert (await client.delete("/ops/limits/v1/users/a%2Fb", headers={"x-staff": "jo"})).status_code == 403
    del client.headers["x-staff"]
    assert (await client.get("/ops/limits/session")).status_code == 401
    assert (await client.get("/ops/limits/v1/users")).status_code == 401


async def test_where_something_in_front_has_asked() -> None:
    client = await mounted("none")
    assert (await client.get("/ops/limits/session")).json()["role"] == "operator"
    assert anybody(Request({"type": "http"})).role == "operator"


# What a mounted page says of the last minutes.


@pytest.fixture
def next_interval(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go on to the next interval."""
    now = count(1000.0, live.INTERVAL_S)
    times = [next(now)]
    monkeypatch.setattr(live, "monotonic", lambda: times[-1])
    return lambda: times.append(next(now))


async def said(app: ASGIApp) -> Any:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app.example") as client:
        answer = await client.get("/limits/live")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        assert (await client.post("/limits/live")).status_code == 403
        return answer.json()


def app_with_page(limiter: Limiter) -> Starlette:
    return Starlette(routes=[Mount("/limits", dashboard(limiter, usage=UsageLog(MemoryStore()), auth="none"))])


async def test_the_last_minutes_of_this_process(next_interval: Callable[[], None]) -> None:
    limiter = Limiter(HashedUserStore(MemoryStore(), "a-secret-of-enough-letters"), [Policy("hint", "2/day")])
    told: list[str] = []
    limiter.observer = lambda decision, span: told.append(decision.policy)
    app, registry = app_with_page(limiter), CollectorRegistry()
    expose(limiter, registry=registry)
    for _ in range(5):
        await limiter.check("alice", "hint")
    next_interval()
    await limiter.check("bob", "run", quotas="9/day")
    next_interval()
    found = await said(app)
    assert found["series"]["denied"] == [3 / live.INTERVAL_S, 0]
    assert found["series"]["allowed"] == [2 / live.INTERVAL_S, 1 / live.INTERVAL_S]
    assert found["totals"] == {"allowed": 3, "denied": 3, "shadow_denied": 0, "unavailable": 0}
    assert [(one["name"], one["source"]) for one in found["policies"]] == [("hint", "app"), ("other", "call")]
    (refused,) = found["refused"]
    assert (refused["action"], refused["count"], is_hash(refused["user"])) == ("hint", 3, True)
    assert ([each["writes"] for each in found["hot"]], found["hot_by"]) == ([2, 1], "checks")
    assert (found["store"], found["cost"]) == ("memory://", None)
    assert found["covers"]["what"] == "this process of the app; others are not among them"
    (worker,) = found["health"]["workers"].values()
    assert (worker["store_state"], worker["breaker"], worker["requests"]) == ("ok", "closed", None)
    assert worker["usage"]["dropped"] == 0
    assert told == ["hint"] * 5 + ["run"], "whoever was told before is told still"
    assert registry.get_sample_value("ratelimit_check_seconds_count") == 6, "counted once, however many look"


async def test_what_it_costs_in_this_process(engine: Engine, next_interval: Callable[[], None]) -> None:
    url = engine.store_url(f"page-{uuid4().hex[:8]}", create="true")
    async with Limiter(await open_store(url), [Policy("hint", "2/day")]) as limiter:
        app = app_with_page(limiter)
        await limiter.check("alice", "hint")
        next_interval()
        found = await said(app)
    assert found["series"]["writes"] == [1 / live.INTERVAL_S]
    assert (found["cost"]["so_far"]["writes"], found["cost"]["seconds"]) == (1, live.INTERVAL_S)
    assert found["store"].startswith("dynamodb://page-")


async def test_over_many_regions_it_says_of_which_replica_it_speaks() -> None:
    store = HomeStore({region: MemoryStore() for region in ("eu-west-1", "us-east-1", "ap-south-1")}, "us-east-1")
    found = await said(app_with_page(Limiter(store)))
    assert "the replica in us-east-1, and neither what is asked of eu-west-1, ap-south-1" in found["covers"]["what"]


async def test_who_is_not_let_in_sees_no_live_data() -> None:
    async with page() as one:
        assert (await one.client.get("/live")).status_code == 401
        await one.log_in(READER)
        assert (await one.client.get("/live")).json()["totals"]["allowed"] == 0
        answer = await one.client.get("/live", headers={"sec-fetch-site": "cross-site"})
        assert answer.status_code == 403
