"""`GET /live`: the last minutes of a sidecar, who is refused, and what a reload would change."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from ratelimit import Spend, live
from ratelimit.clock import replace_system_clock
from ratelimit.names import is_hash
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.faults import FaultServer, hang_up
from tests.server.running import Service, running, write

TOKEN = "a-secret-of-enough-letters"


async def said(service: Service) -> dict[str, Any]:
    answer = await service.admin.get("/live")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    found: dict[str, Any] = answer.json()
    return found


async def test_now_and_who_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL_S", 0.05)
    async with running(write(tmp_path, "2/day"), file="ratelimit.toml") as service:
        assert await service.statuses(5) == [200, 200, 429, 429, 429]
        await service.statuses(3, "bob")
        async with asyncio.timeout(30):
            while sum(filter(None, (found := await said(service))["series"]["denied"])) * 0.05 < 3.9:
                await asyncio.sleep(0.01)
    assert sum(found["series"]["denied"]) * 0.05 == pytest.approx(4, abs=0.05), "rates of two decimals"
    assert found["totals"] == {"allowed": 4, "denied": 4, "shadow_denied": 0, "unavailable": 0}
    assert found["refused"] == [
        {"user": "alice", "action": "hint", "count": 3, "error": 0},
        {"user": "bob", "action": "hint", "count": 1, "error": 0},
    ], "also those that the denial cache has answered"
    assert {(key["user"], key["writes"]) for key in found["hot"]} == {("alice", 2), ("bob", 2)}
    (policy,) = found["policies"]
    assert (policy["name"], policy["quotas"], policy["mode"]) == ("hint", ["2/day"], "enforce")
    assert (policy["algorithm"], policy["source"]) == ("fixed_window", "configuration")
    assert (found["covers"]["workers"], found["covers"]["silent"]) == (1, [])
    assert "other sidecars" in found["covers"]["what"]
    assert found["configuration"] == {"file": "ratelimit.toml", "state": "as read"}
    assert (found["store"], found["cost"], found["health"]["status"]) == ("memory://", None, "ok")


async def test_users_are_behind_the_token_and_hashed_where_they_are_stored_so(tmp_path: Path) -> None:
    secret = f'admin_token = "{TOKEN}"\nuser_hash_key = "another-secret-of-enough-letters"'
    async with running(write(tmp_path, "1/day", settings=secret)) as service:
        await service.statuses(2)
        assert (await service.admin.get("/live")).status_code == 401
        answer = await service.admin.get("/live", headers={"authorization": f"Bearer {TOKEN}"})
    assert "alice" not in answer.text
    for users in ("refused", "hot"):
        assert is_hash(answer.json()[users][0]["user"])


async def test_writes_are_those_that_the_table_is_asked_for(tmp_path: Path, engine: Engine) -> None:
    url = engine.store_url(f"sidecar-{uuid4().hex[:8]}", create="true", consumed="true")
    async with running(write(tmp_path, "2/day", settings=f'store = "{url}"')) as service:
        assert await service.statuses(9) == [200] * 2 + [429] * 7
        writes = await service.metric("ratelimit_store_calls_total", operation="UpdateItem")
        found = await said(service)
        limiter = service.sidecar.current.runtime.limiter
        await limiter.check_all([Spend("bob", "hint"), Spend("carol", "run", quotas="5/day")])
        together = await said(service)
    assert [(key["user"], key["writes"]) for key in found["hot"]] == [("alice", writes)], "and not one a refusal"
    assert found["refused"][0]["count"] == 7
    assert {key["user"]: key["writes"] for key in together["hot"]} == {"alice": writes, "bob": 1, "carol": 1}
    assert found["store"].startswith("dynamodb://sidecar-")
    assert found["units"] == "measured"


async def test_a_store_that_is_down_and_a_clock_that_goes_back(tmp_path: Path) -> None:
    async with FaultServer() as server:
        url = f"dynamodb://limits?region=eu-west-1&endpoint={server.endpoint}&attempts=1"
        async with running(write(tmp_path, settings=f'store = "{url}"')) as service:
            server.always(hang_up())
            assert await service.statuses(3) == [200, 200, 429], "counted in this process"
            replace_system_clock(FakeClock(1))
            try:
                found = await said(service)
            finally:
                replace_system_clock(None)
    assert found["at"] == "1970-01-01T00:00:01Z"
    assert found["totals"] == {"allowed": 0, "denied": 1, "shadow_denied": 0, "unavailable": 2}
    assert found["health"]["workers"]["0"]["store_state"] == "unavailable"


async def test_what_a_reload_would_change(tmp_path: Path) -> None:
    async with running(write(tmp_path, "2/day")) as service:
        ask = service.admin
        assert await answered(ask) == (200, {"changed": [], "restart": [], "settings": {}})
        path = write(tmp_path, "1/day", settings="denial_cache = 2")
        path.write_text(path.read_text() + '\n[policies.run]\nquotas = "5/hour"\n', encoding="utf-8")
        status, found = await answered(ask)
        assert (status, found["changed"]) == (200, ["denial_cache", "policies.hint", "policies.run"])
        assert found["settings"]["denial_cache"] == {"now": 1.0, "then": 2.0}
        assert found["settings"]["policies.hint"]["now"]["quotas"] == ["2/day"]
        assert found["settings"]["policies.hint"]["then"]["quotas"] == ["1/day"]
        assert found["settings"]["policies.run"]["now"] is None
        assert await service.statuses(3) == [200, 200, 429], "nothing has changed"
        assert await service.metric("ratelimit_reloads_total") == 0
        write(tmp_path, "2/dya")
        status, problem = await answered(ask)
        assert (status, "did you mean 'day'?" in problem["detail"]) == (422, True)
        assert (await ask.get("/health")).json()["workers"]["0"]["configuration"] == "as read"


async def answered(client: httpx.AsyncClient) -> tuple[int, dict[str, Any]]:
    answer = await client.get("/reload")
    return answer.status_code, answer.json()
