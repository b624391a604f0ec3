"""Which policies a request has to pass, however it is spelled, and what is remembered of that."""

from __future__ import annotations

import tracemalloc
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import Scope

from ratelimit import Policy, RateLimitMiddleware
from ratelimit.http.policy_check import Routes, SurfaceOptions
from tests.http.apps import call, client_of, hello, lifespan_of, limiter_of, scope_of
from tests.http.spellings import PLAIN


def routes_of(*policies: Policy) -> Routes:
    limiter, options = limiter_of(*policies), SurfaceOptions()
    return Routes([options.policy_check(limiter, action) for action in limiter.policies])


def names(routes: Routes, scope: Scope) -> list[str]:
    return [one.policy.name for one in routes.find(scope)]


@pytest.mark.parametrize("uri", PLAIN)
async def test_no_spelling_gets_past_a_policy_of_a_mounted_app(uri: str) -> None:
    routes = routes_of(Policy("all", "1/day", match="/**"), Policy("hint", "1/day", match="POST /hints"))
    scope = scope_of(unquote(uri.partition("?")[0]))
    for _ in range(2):  # scanned, and remembered
        assert names(routes, scope) == ["all", "hint"]


def test_a_pattern_may_have_a_semicolon() -> None:
    routes = routes_of(
        Policy("matrix", "1/day", match="/maps;v=1"),
        Policy("map", "1/day", match="/maps"),
        Policy("one", "1/day", match="/maps/*"),
    )
    assert names(routes, scope_of("/maps;v=1")) == ["matrix", "map"]
    assert names(routes, scope_of("/maps;v=2")) == ["map"]
    assert names(routes, scope_of("/maps")) == ["map"]
    assert names(routes, scope_of("/maps/;v=1")) == ["map", "one"]


async def test_a_parameter_makes_no_exemption() -> None:
    """Some app may take `/health;x` for something else than `/health`."""
    app = RateLimitMiddleware(hello, limiter=limiter_of(Policy("all", "9/day", match="/**")), exempt="/health")
    async with client_of(app) as client:
        assert "ratelimit" not in (await client.get("/health")).headers
        assert "ratelimit" in (await client.get("/health;x")).headers


async def test_an_exemption_holds_for_what_is_exempt_in_every_form() -> None:
    policy = Policy("all", "99/day", match="/**", exempt=["/free/**", "GET /health"])
    app = RateLimitMiddleware(hello, limiter=limiter_of(policy))

    async def is_counted(method: str, target: str) -> bool:
        scope = scope_of(unquote(target), method=method, raw_path=target.encode())
        return b"ratelimit" in dict((await call(app, scope))[0]["headers"])

    for target in ("/free/a", "/free//a", "/free/a/", "/free/%C3%BC"):
        assert not await is_counted("GET", target)
    for target in ("/free/../a", "/free/%2e%2e/a", "/free/..;/a", "/free\\..\\a", "//free/a", "/free%2Fa", "/fre%65/a"):
        assert await is_counted("GET", target)
    assert not await is_counted("GET", "/health")
    for method, target in (("get", "/health"), ("GET", "/health%0A"), ("GET", "//health"), ("GET", "/health%00")):
        assert await is_counted(method, target)


def test_what_goes_up_may_come_down_anywhere() -> None:
    """A server of files may find its own folder again by a name that only the disk knows."""
    routes = routes_of(
        Policy("premium", "1/day", match="GET /files/premium/**"),
        Policy("post", "1/day", match="POST /hints"),
        Policy("any", "1/day", match="/hints"),
    )
    scope = scope_of("/files/../static/premium/x", method="GET")
    assert names(routes, scope) == ["premium", "any"]


@pytest.mark.parametrize("method", ["post", "Post", "POST"])
def test_a_method_in_any_case_is_that_method(method: str) -> None:
    routes = routes_of(Policy("hint", "1/day", match="POST /hints"))
    assert names(routes, scope_of(method=method)) == ["hint"]


@pytest.mark.parametrize(
    ("pattern", "right"),
    [("POST /api/hints", "POST /hints"), ("/api/{id}", "/{id}"), ("POST /api/**", "POST /**"), ("/api", "/")],
)
def test_a_pattern_with_the_mounts_prefix_counts_and_is_told_once(
    pattern: str, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    routes = routes_of(Policy("hint", "99/day", match=pattern))
    path = "/api" if pattern == "/api" else "/api/hints"
    for number in range(2):
        assert names(routes, scope_of(f"{path}{'/' * number}", root_path="/api")) == ["hint"]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{pattern!r} begins with '/api'" in caplog.text
    assert f"write {right!r}" in caplog.text


def test_a_pattern_without_it_is_nobodys_business(caplog: pytest.LogCaptureFixture) -> None:
    routes = routes_of(Policy("hint", "99/day", match=["POST /hints", "/{tenant}/{id}", "/**", "/apis/x"]))
    two = routes_of(Policy("two", "99/day", match="/{tenant}/{id}"))
    assert names(routes, scope_of("/api/hints", root_path="/api")) == ["hint"]
    assert names(two, scope_of("/api/hints", root_path="/api")) == []
    assert caplog.text == ""


async def test_a_mounted_app_counts_and_tells(caplog: pytest.LogCaptureFixture) -> None:
    limiter = limiter_of(Policy("hint", "2/day", match="POST /api/hints", exempt="/api/health"))
    app = Starlette(routes=[Mount("/api", RateLimitMiddleware(hello, limiter=limiter, exempt="GET /api/free"))])
    async with client_of(app) as client:
        assert [(await client.post("/api/hints")).status_code for _ in range(3)] == [200, 200, 429]
    assert "'POST /api/hints' begins with '/api'" in caplog.text
    assert "'/api/health' begins with '/api'" in caplog.text
    assert "'GET /api/free' begins with '/api'" in caplog.text


@pytest.mark.parametrize("around", [True, False])
async def test_an_apps_own_root_path_is_left_out_wherever_the_middleware_stands(around: bool) -> None:
    app = FastAPI()
    app.root_path = "/api"
    app.add_api_route("/hints", lambda: "done", methods=["POST"])
    limiter = limiter_of(Policy("hint", "2/day", match="POST /hints"))
    if not around:
        app.add_middleware(RateLimitMiddleware, limiter=limiter)
    async with client_of(RateLimitMiddleware(app, limiter=limiter) if around else app) as client:
        paths = ["/api/hints", "/hints", "/api/hints", "/hints"]
        assert [(await client.post(path)).status_code for path in paths] == [200, 200, 429, 429]


async def test_a_root_path_that_is_known_at_the_start_is_told_then(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    app.root_path = "/api"
    limiter = limiter_of(Policy("hint", "2/day", match="POST /api/hints", exempt="/api/health"))
    app.add_middleware(RateLimitMiddleware, limiter=limiter, exempt="GET /api/free")
    async with lifespan_of(app):
        for pattern in ("POST /api/hints", "/api/health", "GET /api/free"):
            assert f"{pattern!r} begins with '/api'" in caplog.text


@pytest.mark.heavy
def test_long_paths_are_not_remembered_however_short_they_are_when_tidied() -> None:
    routes = routes_of(Policy("hint", "1/day", match="POST /hints"))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            assert names(routes, scope_of("/" * (20_000 + number) + "hints")) == ["hint"]
            assert names(routes, scope_of("/hints", root_path="/" * (20_000 + number))) == ["hint"]
            assert names(routes, scope_of("/hints", method="X" * (20_000 + number))) == []
        assert tracemalloc.get_traced_memory()[0] - before < 1_000_000
    finally:
        tracemalloc.stop()
