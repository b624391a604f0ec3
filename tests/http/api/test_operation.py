"""The OpenAPI document: every route is in it, and the running API keeps to it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ratelimit.http.api import Api
from ratelimit.store import MemoryStore
from tests.engines import Engine
from tests.http.api.fuzz import app_on, fuzz
from tests.http.apps import client_of, limiter_of

SECRET = "0123456789abcdef"


def api(**options: Any) -> Api:
    store = MemoryStore()
    return Api(limiter_of(store=store), store, **options)


async def document(app: Api) -> Any:
    async with client_of(app) as client:
        return (await client.get("/v1/openapi.json")).json()


async def test_every_route_is_in_it_and_every_path_in_it_is_a_route() -> None:
    app = api()
    paths = (await document(app))["paths"]
    documented = {(method.upper(), path) for path, item in paths.items() for method in item}
    assert documented == {(one.method, one.path) for one in app.operations}
    async with client_of(app) as client:
        for method, path in documented:
            answer = await client.request(method, path.replace("{user}", "alice").replace("{plan}", "pro"))
            # Routed: what is missing is a body, or the thing itself.
            assert answer.status_code in (200, 415) or answer.json()["detail"].startswith("there is no "), path
        assert (await client.request("POST", "/v1/openapi.json")).status_code == 405


async def test_names_are_unique_and_everything_is_explained() -> None:
    operations = [one for item in (await document(api()))["paths"].values() for one in item.values()]
    names = [one["operationId"] for one in operations]
    assert len(names) == len(set(names))
    assert all(one["summary"] for one in operations)
    assert all(answer["description"] for one in operations for answer in one["responses"].values())


async def test_references_lead_somewhere() -> None:
    found = await document(api())

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [each for item in value.values() for each in references(item)]
        return [each for item in value for each in references(item)] if isinstance(value, list) else []

    assert {f"#/components/schemas/{name}" for name in found["components"]["schemas"]} == set(references(found))


@pytest.mark.parametrize("quotas", ["5/day", "2 concurrent", "2 concurrent; 100 per 5 minutes", "unlimited", "2 slots"])
async def test_quotas_are_documented_as_they_are_taken(quotas: str) -> None:
    """Slots are a plan's, and none of a check's, which could not give them back."""
    app = api()
    schemas = (await document(app))["components"]["schemas"]
    pattern = schemas["PlanBody"]["properties"]["quotas"]["additionalProperties"]["pattern"]
    of_check, _ = schemas["CheckBody"]["properties"]["quotas"]["anyOf"]
    async with client_of(app) as client:
        plan = await client.put("/v1/plans/pro", json={"quotas": {"hint": quotas}})
        check = await client.post("/v1/check", json={"user": "alice", "action": "hint", "quotas": quotas})
    assert [re.search(pattern, quotas) is not None, re.search(of_check["pattern"], quotas) is not None] == [
        plan.status_code == 200,
        check.status_code == 200,
    ]


async def test_a_token_is_documented_and_not_needed_for_the_document() -> None:
    app = api(token=SECRET)
    found = await document(app)
    operations = [one for item in found["paths"].values() for one in item.values()]
    assert [one["operationId"] for one in operations if one["security"] == []] == ["document"]
    assert all("401" in one["responses"] for one in operations if one["security"])
    assert "security" not in str((await document(api()))["paths"]["/v1/check"])
    async with client_of(app) as client:
        assert (await client.get("/v1/users")).status_code == 401


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("store", "examples"), [("memory", 25), ("dynamodb", 3)])
async def test_schemathesis_finds_nothing(
    store: str, examples: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = "memory://"
    if store == "dynamodb":
        engine: Engine = request.getfixturevalue("engine")
        url = engine.store_url("fuzzed", create="true")
    status, report = await fuzz(app_on(url), tmp_path, examples=examples)
    assert status == 0, report
    # All but the document itself.
    assert f"Tested: {len(api().operations) - 1}" in report
