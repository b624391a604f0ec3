"""The page on the admin listener, in the place of a bearer token a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.dashboard.clients import OPERATOR, READER
from tests.server.running import running, write

TOKENS = f"""
admin_token = "{OPERATOR}"
admin_read_token = "{READER}"
usage = "memory"
"""


async def test_it_is_beside_the_admin_routes_and_asks_them(tmp_path: Path) -> None:
    async with running(write(tmp_path, settings=TOKENS)) as service:
        admin = service.admin
        for path in ("/", "/dashboard"):
            answer = await admin.get(path)
            assert (answer.status_code, answer.headers["location"]) == (307, "dashboard/")
        assert "<title>ratelimit</title>" in (await admin.get("/dashboard/")).text
        assert (await admin.get("/dashboard/admin/config")).status_code == 401
        headers = {"origin": "http://127.0.0.1"}
        session = (await admin.post("/dashboard/session", json={"token": OPERATOR}, headers=headers)).json()
        assert session["has"]["admin"]
        said = (await admin.get("/dashboard/live")).json()
        assert ("the workers of this sidecar" in said["covers"]["what"], said["hot_by"]) == (True, "checks")
        config = (await admin.get("/dashboard/admin/config")).json()
        assert (config["admin_token"], config["admin_read_token"]) == ("***", "***")
        assert (await admin.get("/config")).status_code == 401, "a session is the page's"
        write(tmp_path, "9/day", settings=TOKENS)
        headers["x-csrf-token"] = session["csrf"]
        reloaded = await admin.post("/dashboard/admin/reload", headers=headers)
        assert reloaded.json()["changed"] == ["policies.hint"]
        policies = (await admin.get("/dashboard/v1/policies")).json()["policies"]
        assert policies["hint"]["quotas"] == ["9/day"], "of the configuration that holds now"
        await service.sidecar.current.runtime.usage.flush()  # type: ignore[union-attr]
        path = "/dashboard/v1/users/ratelimit.admin/usage/events"
        (event,) = (await admin.get(path)).json()["events"]
        assert event["metadata"]["what"] == "POST /admin/reload"


async def test_who_may_read_may_do_so_by_a_bearer_token_too(tmp_path: Path) -> None:
    async with running(write(tmp_path, settings=TOKENS)) as service:
        headers = {"authorization": f"Bearer {READER}"}
        assert (await service.admin.get("/metrics", headers=headers)).status_code == 200
        assert (await service.admin.post("/reload", headers=headers)).status_code == 401
        headers = {"authorization": f"Bearer {OPERATOR}"}
        assert (await service.admin.post("/reload", headers=headers)).status_code == 200


async def test_a_token_that_is_exchanged_ends_sessions(tmp_path: Path) -> None:
    async with running(write(tmp_path, settings=TOKENS)) as service:
        headers = {"origin": "http://127.0.0.1"}
        await service.admin.post("/dashboard/session", json={"token": READER}, headers=headers)
        assert (await service.admin.get("/dashboard/v1/plans")).status_code == 200
        write(tmp_path, settings=TOKENS.replace(READER, "another-reader-of-this"))
        await service.sidecar.reload()
        assert (await service.admin.get("/dashboard/v1/plans")).status_code == 401


@pytest.mark.parametrize(("trusted", "told"), [("1", "127.0.0.1"), ("['127.0.0.0/8']", "203.0.113.7")])
async def test_who_logs_in_is_told_apart_by_the_networks_of_trusted_proxies(
    tmp_path: Path, trusted: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """How many proxies stand in front of the public listener says nothing of this one."""
    async with running(write(tmp_path, settings=f"{TOKENS}trusted_proxies = {trusted}\n")) as service:
        headers = {"origin": "http://127.0.0.1", "x-forwarded-for": "203.0.113.7"}
        assert (
            await service.admin.post("/dashboard/session", json={"token": "guess"}, headers=headers)
        ).status_code == 401
        assert f"refused POST /session from ip:{told}" in caplog.text
