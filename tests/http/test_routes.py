"""Which policies a request has to pass, however it is spelled, and what is remembered of that."""

from __future__ import annotations

import tracemalloc
from urllib.parse import unquote

import pytest
from starlette.types import Scope

from ratelimit.http import RateLimitMiddleware
from ratelimit.http.routes import Routes
from ratelimit.http.surface import Surface
from ratelimit.policy import Policy
from tests.http.apps import client_of, hello, limiter_of, scope_of
from tests.http.spellings import PLAIN


def routes_of(*policies: Policy) -> Routes:
    limiter, surface = limiter_of(*policies), Surface()
    return Routes([surface.gate(limiter, action) for action in limiter.policies])


def names(routes: Routes, scope: Scope) -> list[str]:
    return [gate.policy.name for gate in routes.gates(scope)]


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
