"""One user has one name, whoever says it and in whatever way: limiter, log, directory, API, CLI, middleware."""

from __future__ import annotations

import asyncio
import unicodedata
from typing import Any
from uuid import uuid4

import pytest

from ratelimit import Directory, InvalidUser, Limiter, Policy, RateLimitMiddleware, UsageLog, User, open_store
from ratelimit.http.api import Api
from ratelimit.names import MAX_USER_BYTES, Key, UserId, check_user
from tests.cli.command import Command, ratelimit
from tests.engines import Engine
from tests.http.apps import client_of, hello

__all__ = ["ratelimit"]  # a fixture

NAMES = [
    pytest.param((12345, "12345"), "12345", id="integer"),
    pytest.param((unicodedata.normalize("NFD", "josé"), "josé"), "josé", id="composed"),
]


@pytest.mark.parametrize(
    ("user", "name"),
    [(0, "0"), (-7, "-7"), (2**64, str(2**64)), ("e\u0301", "é"), ("\u212b", "Å"), ("ﬁ", "ﬁ"), ("Alice", "Alice")],
)
def test_the_one_name(user: UserId, name: str) -> None:
    assert check_user(user) == name
    assert Key.of(user, "hint").user == name
    assert check_user(name) == name


@pytest.mark.parametrize(
    "user", [True, False, 7.0, None, b"alice", 10**256, pytest.param(10**5000, id="huge"), "e\u0301" * MAX_USER_BYTES]
)
def test_what_is_no_name(user: Any) -> None:
    with pytest.raises(InvalidUser):
        check_user(user)


@pytest.mark.parametrize(("spelled", "name"), NAMES)
async def test_every_surface_means_the_same_user(engine: Engine, spelled: tuple[UserId, str], name: str) -> None:
    """On one table, where each spends of one quota and leaves an event of one user."""
    store = await open_store(engine.store_url(f"names-{uuid4().hex[:8]}", create="true"))
    policy = Policy("hint", "100/day", match="/**", user_from=["header:x-user"])
    directory = Directory(store.directory)
    async with Limiter(store, [policy], directory=directory) as limiter, UsageLog(store) as usage:
        for number, user in enumerate(spelled):
            await directory.put_user(User(user, quotas={"hint": f"{50 + number}/day"}))
            assert (await limiter.check(user, "hint")).limit == 50 + number
            await limiter.charge(user, "hint", 1)
            await usage.record(user, "hint")
            async with client_of(Api(limiter, store, usage=usage, directory=directory)) as client:
                for path in ("check", "charge", "peek"):
                    body = {"user": user, "action": "hint", **({"cost": 1} if path == "charge" else {})}
                    answer = await client.post(f"/v1/{path}", json=body)
                    assert answer.status_code == 200, answer.text
                batch = await client.post("/v1/check/batch", json={"checks": [{"user": user, "action": "hint"}]})
                assert batch.json()["results"][0]["decision"]["limit"] == 50 + number
                assert (await client.get(f"/v1/users/{user}")).json()["id"] == name
                await client.post("/v1/refund", json={"user": user, "action": "hint"})
            async with client_of(RateLimitMiddleware(hello, limiter=limiter)) as client:
                await client.get("/", headers=[(b"x-user", str(user).encode())])
        await usage.flush()
        for user in spelled:
            assert (await limiter.peek(user, "hint")).used == 10
            assert len((await usage.events(user)).events) == 8
            assert sum((await usage.totals(user, actions=["hint"]))["hint"].values()) == 10
            assert (found := await directory.user(user)) is not None
            assert found.id == name
        await limiter.reset(spelled[0], "hint")
        assert (await limiter.peek(spelled[1], "hint")).used == 0
        assert await usage.erase(spelled[0]) > 0
        assert await directory.store.read(User, name) is None


@pytest.mark.parametrize(("spelled", "name"), NAMES)
def test_the_command_line_means_the_same_user(
    ratelimit: Command, engine: Engine, spelled: tuple[UserId, str], name: str
) -> None:
    url = engine.store_url(f"names-{uuid4().hex[:8]}", create="true")

    async def spend() -> None:
        async with open_store(url) as store, Limiter(store) as limiter:
            await limiter.check(spelled[0], "hint", quotas="9/day")

    asyncio.run(spend())
    for number, user in enumerate(spelled, start=2):
        result = ratelimit("check", str(user), "hint", "--quota", "9/day", "--store", url, "--json")
        assert result.json["quotas"][0]["used"] == number
    assert ratelimit("user", "set", str(spelled[0]), "--role", "admin", "--store", url).status == 0
    assert ratelimit("user", "show", str(spelled[0]), "--store", url, "--json").json["id"] == name
    assert ratelimit("usage", "erase", str(spelled[0]), "--action", "hint", "--yes", "--store", url).status == 0
    assert ratelimit("user", "show", str(spelled[1]), "--store", url).status != 0
