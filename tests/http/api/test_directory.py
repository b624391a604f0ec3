"""Users and plans over HTTP, on every store."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
from starlette.types import ASGIApp

from ratelimit import Directory, Identity, Limiter, MemoryStore, User
from ratelimit.dashboard import dashboard
from ratelimit.http.api import Api
from tests.http.api.clients import POLICIES, Service, service_on
from tests.http.api.clients import service as service
from tests.http.apps import call, scope_of

KEY = str(Identity.api_key("an-api-key-that-is-long-enough"))


async def test_a_plan_is_made_changed_listed_and_removed(service: Service, plan: str) -> None:
    client, path = service.client, f"/v1/plans/{plan}"
    assert (await client.get(path)).status_code == 404
    assert (await client.patch(path, json={"quotas": {}})).status_code == 404
    made = await client.put(path, json={"quotas": {"hint": "5/day", "run": "100/hour; 1000/day"}})
    assert (made.status_code, made.json()) == (
        200,
        {"name": plan, "quotas": {"hint": "5/day", "run": "100/hour; 1000/day"}},
    )
    changed = await client.patch(path, json={"quotas": {"hint": "unlimited", "run": None}})
    assert changed.json() == {"name": plan, "quotas": {"hint": "unlimited"}}
    assert (await client.get(path)).json() == changed.json()
    assert changed.json() in (await client.get("/v1/plans?limit=1000")).json()["plans"]
    assert (await client.delete(path)).status_code == 204
    assert (await client.delete(path)).status_code == 404


async def test_a_user_is_made_changed_and_found(service: Service, user: str, plan: str) -> None:
    client, path, email = service.client, f"/v1/users/{user}", f"{user}@example.com"
    await client.put(f"/v1/plans/{plan}", json={"quotas": {}})
    made = await client.put(path, json={"plan": plan, "identities": [f"email:{email.upper()}", KEY]})
    assert made.json() == {
        "id": user, "plan": plan, "quotas": {}, "role": "user", "active": True, "identities": [f"email:{email}", KEY],
    }  # fmt: skip
    assert (await client.get(path)).json() == made.json()
    for found in (f"plan={plan}", f"identity=email:{email}", f"identity={KEY}"):
        assert (await client.get(f"/v1/users?{found}")).json() == {"users": [made.json()], "cursor": None}
    patched = await client.patch(path, json={"quotas": {"hint": "9/day"}, "identities": [KEY], "active": False})
    assert patched.json() == {**made.json(), "quotas": {"hint": "9/day"}, "active": False, "identities": [KEY]}
    assert (await client.get(f"/v1/users?identity=email:{email}")).json()["users"] == []
    patched = await client.patch(path, json={"quotas": {"hint": None}, "plan": None})
    assert (patched.json()["quotas"], patched.json()["plan"]) == ({}, None)
    assert (await client.delete(path)).status_code == 204
    assert [(await client.request(method, path)).status_code for method in ("GET", "DELETE")] == [404, 404]
    assert (await client.patch(path, json={})).status_code == 404


async def test_a_change_is_in_force_at_once_where_it_was_made(service: Service, user: str) -> None:
    checked = {"user": user, "action": "hint"}
    assert (await service.client.post("/v1/peek", json=checked)).json()["limit"] == 5
    await service.client.put(f"/v1/users/{user}", json={"quotas": {"hint": "7/day"}})
    assert (await service.client.post("/v1/peek", json=checked)).json()["limit"] == 7


async def test_page_by_page(service: Service, plan: str) -> None:
    client, names = service.client, [f"{plan}-user-{number}" for number in range(5)]
    await client.put(f"/v1/plans/{plan}", json={"quotas": {}})
    for name in names:
        await client.put(f"/v1/users/{name}", json={"plan": plan})
    found: list[str] = []
    query: dict[str, str] = {"plan": plan, "limit": "2"}
    for _ in range(4):
        page = (await client.get("/v1/users", params=query)).json()
        assert len(page["users"]) <= 2
        found += [one["id"] for one in page["users"]]
        if page["cursor"] is None:
            break
        query["cursor"] = page["cursor"]
    assert sorted(found) == names
    assert (await client.get(f"/v1/users?cursor={query['cursor']}")).status_code == 400


@pytest.mark.parametrize("name", ["a/b", "ä ö", "100%", "%2F", "x#y?z", "..", "日本", "a+b&c=d"])
async def test_any_name_is_one_part_of_a_path(name: str, service: Service) -> None:
    name = f"{uuid4().hex}-{name}"
    path = f"/v1/users/{quote(name, safe='')}"
    assert (await service.client.put(path, json={})).json()["id"] == name
    assert (await service.client.get(path)).json()["id"] == name
    assert (await service.client.get(f"{path}/usage")).json()["user"] == name
    assert (await service.client.post("/v1/check", json={"user": name, "action": "hint"})).json()["used"] == 1
    today = (await service.client.get(f"{path}/usage/totals?action=hint")).json()["totals"]["hint"]
    assert list(today.values()) == [1]


async def test_an_identity_has_one_owner(service: Service, user: str) -> None:
    identity = f"email:{user}@example.com"
    await service.client.put(f"/v1/users/{user}", json={"identities": [identity]})
    answer = await service.client.put(f"/v1/users/{user}-2", json={"identities": [identity]})
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert (await service.client.get(f"/v1/users/{user}-2")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "where"),
    [
        ("PUT", "/v1/users/alice", {"plna": "x"}, ""),
        ("PUT", "/v1/users/alice", {"role": "root"}, "role"),
        ("PUT", "/v1/users/alice", {"quotas": {"hint": "5/fortnight"}}, "quotas.hint"),
        ("PUT", "/v1/users/alice", {"identities": ["email:nobody"]}, "identities[0]"),
        ("PUT", "/v1/users/alice", {"identities": ["api_key:my-secret-key-in-plain-text"]}, "identities[0]"),
        ("PUT", "/v1/users/%00", {}, "id"),
        ("PUT", "/v1/users/%FF", {}, "user"),
        ("PATCH", "/v1/users/alice", {"quotas": {"hint": 5}}, "quotas[...]"),
        ("PUT", "/v1/plans/free", {}, ""),
        ("PUT", "/v1/plans/free", {"quotas": {"hint": "5/day; 6/day"}}, "quotas.hint"),
        ("PUT", f"/v1/plans/{'x' * 65}", {"quotas": {}}, "plan"),
        ("GET", "/v1/users?limit=0", None, "limit"),
        ("GET", "/v1/users?limit=2&limit=3", None, "limit"),
        ("GET", "/v1/users?plna=free", None, ""),
        ("GET", "/v1/users?plan=%80", None, ""),
        ("GET", "/v1/users?identity=bob", None, "identity"),
        ("GET", "/v1/users?identity=email:a@b&plan=free", None, ""),
        ("GET", "/v1/plans?cursor=x", None, ""),
        ("GET", f"/v1/plans?cursor={'x' * 20_000}", None, ""),
    ],
)
async def test_bad_input_is_named(method: str, path: str, body: object, where: str) -> None:
    async with service_on(MemoryStore()) as service:
        answer = await service.client.request(method, path, json=body)
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), answer.text
        assert answer.json()["errors"][0]["path"] == where
        assert "secret" not in answer.text
        assert (await service.client.get("/v1/users")).json()["users"] == []


async def test_a_plan_has_to_exist(service: Service, user: str) -> None:
    for method in ("PUT", "PATCH"):
        answer = await service.client.request(method, f"/v1/users/{user}", json={"plan": f"none-{user}"})
        assert answer.status_code == 404
        assert "there is no plan" in answer.json()["detail"]


@pytest.mark.parametrize("app", ["api", "dashboard"])
@pytest.mark.parametrize("root", ["", "/limits", "/m ü"])
@pytest.mark.parametrize("is_raw", [True, False])
async def test_users_of_any_name_are_found_wherever_it_is_mounted(app: str, root: str, is_raw: bool) -> None:
    """Servers such as AWS Lambda's do not say how the path was sent."""
    store = MemoryStore()
    directory = Directory(store.directory)
    limiter = Limiter(store, POLICIES, directory=directory)
    asked: ASGIApp = Api(limiter, store, directory=directory) if app == "api" else dashboard(limiter, auth="none")
    for name in ("jürgen", "日本", "a%2Fb", "100%"):
        await directory.put_user(User(name))
        raw: dict[str, Any] = (
            {"raw_path": quote(f"{root}/v1/users/").encode() + quote(name, "").encode()} if is_raw else {}
        )
        scope = scope_of(
            f"{root}/v1/users/{name}", method="GET", root_path=root, headers=[(b"host", b"localhost")], **raw
        )
        start, body = await call(asked, scope)
        assert (start["status"], json.loads(body["body"])["id"]) == (200, name)
