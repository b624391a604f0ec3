"""The decision endpoint and the API on one limiter, as wiring puts them together."""

from __future__ import annotations

import httpx

from ratelimit.config import load_config
from ratelimit.factory import decision_app
from tests.http.serving import served


async def test_both_spend_from_the_same_quota() -> None:
    policies = {"hint": {"quotas": "2/hour", "match": ["POST /hints"], "user_from": ["header:x-api-key"]}}
    app = decision_app(load_config(env={}, policies=policies))
    async with served(app) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
        assert (await client.post("/v1/authz/hints", headers={"x-api-key": "alice"})).status_code == 200
        asked = {"user": "alice", "action": "hint"}
        assert (await client.post("/v1/check", json=asked)).json()["remaining"] == 0
        assert (await client.post("/v1/authz/hints", headers={"x-api-key": "alice"})).status_code == 429
