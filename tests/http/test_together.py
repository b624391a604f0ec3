"""Policies of one request that are admitted together, or spend nothing: `together` and `share`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ratelimit import (
    ConfigError,
    InvalidInput,
    Limiter,
    Policy,
    RateLimitMiddleware,
    Spend,
    UsageLog,
    limited,
    load_config,
)
from ratelimit.directory import Directory
from ratelimit.factory import load_checked
from ratelimit.http.api import Api
from ratelimit.names import Key
from ratelimit.store import MemoryStore
from ratelimit.store.directory import User
from ratelimit.testing import FakeClock

ORG = Policy("org", "4/day", user_from="header:x-org")
ADDRESS = Policy("address", "100/day", user_from="address", exempt="/free/**")
API = Policy("api", "3/day", match="/**", user_from="header:x-user", together=["org", "address"])


def app(limiter: Limiter, **options: Any) -> httpx.AsyncClient:
    async def answer(request: Request) -> Response:
        return PlainTextResponse("done", int(request.headers.get("x-status", "200")))

    async def view(request: Request) -> Response:
        await limited("api", cost=2)(request)
        return await answer(request)

    inner = Starlette(routes=[Route("/view", view), Route("/{rest:path}", answer)])
    transport = httpx.ASGITransport(RateLimitMiddleware(inner, limiter=limiter, **options))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def statuses(client: httpx.AsyncClient, users: str, path: str = "/x", **headers: str) -> list[int]:
    got = [await client.get(path, headers={"x-user": user, "x-org": "acme", **headers}) for user in users]
    return [one.status_code for one in got]


def made(*policies: Policy) -> tuple[MemoryStore, Limiter]:
    store = MemoryStore()
    return store, Limiter(store, policies, clock=FakeClock())


async def used(limiter: Limiter, *keys: tuple[str, str]) -> list[int]:
    totals = [(await limiter.totals(user, actions=[action]))[action] for user, action in keys]
    return [sum(days.values()) for days in totals]


EACH = ("a", "api"), ("b", "api"), ("acme", "org"), ("ip:127.0.0.1", "address")


async def test_a_request_passes_all_or_spends_nothing() -> None:
    _, limiter = made(API, ORG, ADDRESS)
    async with app(limiter) as client:
        assert await statuses(client, "aaaabbb") == [200, 200, 200, 429, 200, 429, 429]
        assert await used(limiter, *EACH) == [3, 1, 4, 4]
        refused = await client.get("/x", headers={"x-user": "b", "x-org": "acme"})
        assert refused.json()["violated-policies"] == ["org"]
        assert refused.headers["ratelimit-policy"] == '"org";q=4;w=86400'
        passed = await client.get("/x", headers={"x-user": "b", "x-org": "other"})
        assert passed.headers["ratelimit-policy"] == '"api";q=3;w=86400, "org";q=4;w=86400, "address";q=100;w=86400'


async def test_what_another_policy_makes_is_not_made_twice() -> None:
    _, limiter = made(Policy("org", "4/day", match="/**", user_from="header:x-org"), API, ADDRESS)
    async with app(limiter) as client:
        await statuses(client, "a")
    assert await used(limiter, *EACH) == [1, 0, 1, 1]


async def test_an_exempt_one_is_left_out() -> None:
    _, limiter = made(API, ORG, ADDRESS)
    async with app(limiter) as client:
        assert await statuses(client, "a", "/free/x") == [200]
    assert await used(limiter, *EACH) == [1, 0, 1, 0]


async def test_what_one_exempts_another_still_counts_that_fits_by_itself() -> None:
    org = Policy("org", "4/day", match="/free/a", user_from="header:x-org", together="address")
    api = Policy("api", "3/day", match="/**", user_from="header:x-user", together="org", exempt="/free/**")
    _, limiter = made(Policy("address", "100/day", user_from="address", match="/free/a"), org, api)
    async with app(limiter) as client:
        assert await statuses(client, "aaaaa", "/free/a") == [200, 200, 200, 200, 429]
        assert await used(limiter, *EACH) == [0, 0, 4, 4]
        assert await statuses(client, "a", "/free/b") == [200]
    assert await used(limiter, *EACH) == [0, 0, 4, 4]


async def test_what_is_free_for_one_another_counts_by_a_cost_of_its_own() -> None:
    api = Policy("api", "3/day", match="/**", user_from="header:x-user", together=["org", "address"],
                 cost=lambda request: int(request.headers["x-units"]))  # fmt: skip
    one = Policy("address", "2/day", match="/**", user_from="address", cost=lambda request: 1)
    _, limiter = made(api, Policy("org", "4/day", match="/**", user_from="header:x-org"), one)
    async with app(limiter) as client:
        assert await statuses(client, "aaa", **{"x-units": "0"}) == [200, 200, 429]
    assert await used(limiter, *EACH) == [0, 0, 0, 2]


async def test_each_counts_as_its_policy_says() -> None:
    org = Policy("org", "4/day", user_from="header:x-org", count="failure")
    _, limiter = made(API, org, ADDRESS)
    async with app(limiter) as client:
        assert await statuses(client, "a") == [200]
        assert await statuses(client, "a", **{"x-status": "401"}) == [401]
    assert await used(limiter, *EACH) == [2, 0, 1, 2]


async def test_a_view_asks_for_all_of_them_at_its_cost() -> None:
    one = Policy("address", "100/day", user_from="address", cost=lambda request: 1)
    _, limiter = made(Policy("api", "3/day", user_from="header:x-user", together=["org", "address"]), ORG, one)
    async with app(limiter) as client:
        assert await statuses(client, "ab", "/view") == [200, 200]
        assert await statuses(client, "c", "/view") == [429]
    assert await used(limiter, *EACH) == [2, 2, 4, 2]


async def test_the_usage_log_has_an_event_of_each() -> None:
    store, limiter = made(API, ORG, ADDRESS)
    async with UsageLog(store, clock=limiter.clock) as usage, app(limiter, usage=usage) as client:
        await statuses(client, "aaaaa")
    found: Sequence[Any] = list(store.events)
    assert sorted((one.action, one.user, one.allowed, one.cost) for one in found) == [
        *[("address", "ip:127.0.0.1", True, 0)] * 2,
        *[("address", "ip:127.0.0.1", True, 1)] * 3,
        *[("api", "a", False, 1)] * 2,
        *[("api", "a", True, 1)] * 3,
        *[("org", "acme", True, 0)] * 2,
        *[("org", "acme", True, 1)] * 3,
    ]


async def test_a_share_of_the_first() -> None:
    """A fifth of what the organisation has, by whatever it has; its own quota holds besides."""
    user = Policy("user", "3/minute", match="/**", user_from="header:x-user", together="org", share=0.2)
    clock = FakeClock()
    limiter = Limiter(MemoryStore(), [user, Policy("org", "25/day", user_from="header:x-org")], clock=clock)
    async with app(limiter) as client:
        assert await statuses(client, "aaaa") == [200, 200, 200, 429]
        clock.advance(60)
        assert await statuses(client, "aaab") == [200, 200, 429, 200]
        refused = await client.get("/x", headers={"x-user": "a", "x-org": "acme"})
    assert '"user-day";q=5;w=86400' in refused.headers["ratelimit-policy"]


@pytest.mark.parametrize("org", ["unlimited", "2/day"])
async def test_a_share_follows_what_the_organisation_has(org: str) -> None:
    policies = [Policy("user", "2/day", together="org", share=0.5), Policy("org", "10/day")]
    limiter = Limiter(MemoryStore(), policies, clock=FakeClock())
    answers = [await limiter.check_all([("alice", "user"), Spend("acme", "org", quotas=org)]) for _ in range(3)]
    assert sum(map(bool, answers)) == (2 if org == "unlimited" else 1)


async def test_one_of_them_cannot_be_asked_for_alone() -> None:
    store, limiter = made(API, ORG, ADDRESS)
    with pytest.raises(InvalidInput, match=r"check_all\(\[\(…, 'api'\), \(…, 'org'\), \(…, 'address'\)\]\)"):
        await limiter.check("a", "api")
    with pytest.raises(InvalidInput, match="'api' is decided together with 'address'"):
        await limiter.check_all([("a", "api"), ("acme", "org")])
    assert await store.read(Key("acme", "org")) == {}
    assert await limiter.check("acme", "org")


@pytest.mark.parametrize(
    ("of_a", "of_b", "problem"),
    [
        ("together = ['b', 'x']", "", r"a\.together\[1\]: no policy is named 'x' \(there are: a, b\)"),
        ("together = 'b'", "together = 'a'", r"b\.together\[0\]: leads back to 'a'"),
        ("together = 'a'", "", r"a\.together\[0\]: leads back to 'a'"),
        ("share = 0.5", "", r"a\.share: needs together"),
        ("together = 'b'\nshare = 0", "", r"a\.share: must be more than 0"),
        ("together = 'b'\nshare = 2", "", r"a\.share: must be a part from 0 to 1"),
    ],
)
def test_what_cannot_be_says_where(tmp_path: Path, of_a: str, of_b: str, problem: str) -> None:
    file = tmp_path / "ratelimit.toml"
    file.write_text(
        "".join(f"[policies.{name}]\nquotas = '1/day'\n{more}\n" for name, more in (("a", of_a), ("b", of_b)))
    )
    for load in (load_config, load_checked):
        with pytest.raises(ConfigError, match=r"^policies\." + problem):
            load(file, env={})


def test_a_limiter_says_where_as_well() -> None:
    with pytest.raises(ConfigError, match=r"policies\.api\.together\[1\]: no policy is named 'address'"):
        Limiter(MemoryStore(), [API, ORG])


async def test_slots_of_a_users_own_are_refused_with_the_reason_and_spend_nothing() -> None:
    store = MemoryStore()
    directory = Directory(store.directory)
    await directory.put_user(User("acme", quotas={"org": "2 concurrent"}))
    limiter = Limiter(store, (API, ORG, ADDRESS), clock=FakeClock(), directory=directory)
    async with app(limiter) as client:
        refused = await client.get("/x", headers={"x-user": "a", "x-org": "acme"})
        assert await statuses(client, "a", **{"x-org": "other"}) == [200]
    assert refused.status_code == 403
    assert "how many requests go on at the same time" in refused.json()["detail"]
    assert await used(limiter, ("a", "api"), ("acme", "org")) == [1, 0]


async def test_such_a_plan_is_refused_where_it_is_written() -> None:
    store = MemoryStore()
    limiter = Limiter(store, (API, ORG, ADDRESS), directory=Directory(store.directory))
    transport = httpx.ASGITransport(Api(limiter, store, directory=Directory(store.directory)))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        body = {"quotas": {"org": "9/day; 2 concurrent"}}
        for path in ("/v1/plans/pro", "/v1/users/acme"):
            for write in (client.put, client.patch):
                answer = await write(path, json=body)
                assert answer.status_code == 400
                assert "quotas.org" in answer.text
        assert (await client.put("/v1/plans/pro", json={"quotas": {"other": "2 concurrent"}})).status_code == 200
