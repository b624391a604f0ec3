"""`ratelimit serve --workers 2` and its one admin listener: all workers are seen, reloaded, and missed."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGUSR2
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.engines import Engine
from tests.server.processes import LONG_S, Served, served
from tests.server.running import write

pytestmark = pytest.mark.slow

TOKEN = "a-secret-of-enough-letters"
ASK = {"authorization": f"Bearer {TOKEN}"}
BOTH = {"0": 1.0, "1": 1.0}
ADMIN = ("--admin", "127.0.0.1:0", "--workers", "2", "--linger", "0")


async def said(admin: httpx.AsyncClient, name: str, **labels: str) -> dict[str, float]:
    """A metric by worker."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    lines = [line for line in (await admin.get("/metrics")).text.splitlines() if line.startswith(f"{name}{{")]
    found = [re.search(r'worker="(\d+)".* (.+)', line) for line in lines if all(label in line for label in wanted)]
    return {match[1]: float(match[2]) for match in found if match}


async def until_they_say(admin: httpx.AsyncClient, name: str, wanted: dict[str, float], **labels: str) -> None:
    async with asyncio.timeout(LONG_S):
        while await said(admin, name, **labels) != wanted:
            await asyncio.sleep(0.05)


def settings(engine: Engine) -> str:
    url = engine.store_url(f"sidecar-{uuid4().hex[:8]}", create="true")
    return f'store = "{url}"\nadmin_token = "{TOKEN}"'


def admin_of(service: Served) -> httpx.AsyncClient:
    # Each question on a connection of its own, so that either worker may get it.
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=str(service.banner["admin"]), headers=ASK, timeout=30, limits=limits)


async def test_reloads_reach_every_worker(engine: Engine, tmp_path: Path) -> None:
    of_the_store = settings(engine)
    path = write(tmp_path, "2/day", of_the_store)
    async with served("--config", str(path), *ADMIN) as service, admin_of(service) as admin:
        await until_they_say(admin, "ratelimit_up", BOTH)
        write(tmp_path, "7/day", of_the_store)
        answer = await admin.post("/reload")
        assert (answer.status_code, answer.json()["workers"]) == (200, 2)
        write(tmp_path, "9/day", of_the_store)
        service.send(SIGHUP)
        await until_they_say(admin, "ratelimit_reloads_total", {"0": 2, "1": 2}, result="done")
        for _ in range(8):
            assert (await admin.get("/config")).json()["policies"]["hint"]["quotas"] == ["9/day"]
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            answers = [await client.post("/v1/authz/hints", headers={"x-api-key": "alice"}) for _ in range(10)]
        assert [answer.status_code for answer in answers] == [200] * 9 + [429]
        for _ in range(4):  # whoever is asked
            async with asyncio.timeout(LONG_S):
                while (live := (await admin.get("/live")).json())["covers"]["silent"]:
                    pass
            assert live["covers"]["workers"] == 2
            assert live["totals"] == {"allowed": 9, "denied": 1, "shadow_denied": 0, "unavailable": 0}
            assert live["refused"] == [{"user": "alice", "action": "hint", "count": 1, "error": 0}]
        service.send(SIGTERM)
        assert await service.ended() == 0
    assert TOKEN not in "".join([*service.out, *service.err])


async def test_replaced_workers_bring_no_new_labels(engine: Engine, tmp_path: Path) -> None:
    path = write(tmp_path, "2/day", settings(engine))
    async with served("--config", str(path), *ADMIN) as service, admin_of(service) as admin:
        await until_they_say(admin, "ratelimit_up", BOTH)
        for pid in service.workers():
            os.kill(pid, SIGKILL)
        await until_they_say(admin, "ratelimit_up", BOTH)
        service.send(SIGUSR2)
        await service.told("all 2 workers are replaced")
        # The new one was there before the old one left, and took the next number.
        async with asyncio.timeout(LONG_S):
            while len(found := await said(admin, "ratelimit_up")) != 2 or not found.keys() <= {"0", "1", "2", "3"}:
                await asyncio.sleep(0.05)
        assert set(found.values()) == {1}


async def test_a_worker_that_hangs_is_told(engine: Engine, tmp_path: Path) -> None:
    path = write(tmp_path, "2/day", settings(engine))
    async with served("--config", str(path), *ADMIN) as service:
        async with admin_of(service) as admin:
            await until_they_say(admin, "ratelimit_up", BOTH)
        hanging, _ = sorted(service.workers())
        os.kill(hanging, SIGSTOP)
        try:
            statuses: set[str] = set()
            health: dict[str, Any] = {}
            live: dict[str, Any] = {}
            async with asyncio.timeout(LONG_S):
                while "silent" not in statuses:
                    # One that hangs may be given the connection; then another one is asked.
                    async with admin_of(service) as admin:
                        try:
                            health = (await admin.get("/health", timeout=5)).json()
                            live = (await admin.get("/live", timeout=5)).json()
                        except httpx.TimeoutException:
                            continue
                        statuses = {worker["status"] for worker in health["workers"].values()}
        finally:
            os.kill(hanging, SIGCONT)
        assert (statuses, health["status"]) == ({"ok", "silent"}, "degraded")
    assert (live["covers"]["workers"], len(live["covers"]["silent"])) == (1, 1)
    assert live["health"]["status"] == "degraded"
