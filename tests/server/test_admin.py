"""The admin listener: who may ask, and what it answers, whatever the backend shows."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL, SIGSTOP, SIGTERM, SIGUSR2
from typing import Any
from uuid import uuid4

import httpx
import pytest

from ratelimit.dynamodb import Settings, delete_table
from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.http.auth import Token
from ratelimit.metrics import Family
from ratelimit.server.admin import AdminBackend, admin_app
from tests.dashboard.clients import OPERATOR, READER
from tests.engines import Engine
from tests.server.processes import LONG_S, Served, served
from tests.server.running import running, write

TOKEN = "a-secret-of-enough-letters"
GUARDED = [
    ("GET", "/live"),
    ("GET", "/metrics"),
    ("GET", "/config"),
    ("GET", "/reload"),
    ("POST", "/reload"),
    ("GET", "/nowhere"),
]


class FakeBackend(AdminBackend):
    """One that shows what the test wants."""

    def __init__(self, token: str | None = None) -> None:
        self.admitting = Token(token)
        self.reason: str | None = None
        self.error: Exception | None = None
        self.reloads = 0

    def token(self) -> Token:
        return self.admitting

    async def health(self) -> Mapping[str, object]:
        return {"status": "ok"}

    async def unready(self) -> str | None:
        return self.reason

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return f"# {accept}".encode(), "text/plain; version=0.0.4"

    async def live(self) -> Mapping[str, object]:
        return {"refused": [{"user": "alice"}]}

    async def config(self) -> Mapping[str, object]:
        return {"admin_token": "***"}

    async def preview(self) -> Mapping[str, object]:
        if self.error is not None:
            raise self.error
        return {"changed": ["policies.hint"]}

    async def reload(self) -> Mapping[str, object]:
        self.reloads += 1
        if self.error is not None:
            raise self.error
        return {"changed": []}


@asynccontextmanager
async def asking(
    backend: FakeBackend | None = None, *, host: str = "127.0.0.1:8081", **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    app = admin_app(backend or FakeBackend())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as client:
        yield client


async def test_health_is_for_everybody() -> None:
    backend = FakeBackend(TOKEN)
    async with asking(backend, host="a.name.of.mine") as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
        backend.reason = "The store cannot be used: late."
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"] == backend.reason
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", TOKEN)],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
        [("authorization", b"Bearer \xff\xfe")],
    ],
)
async def test_the_rest_takes_the_token(method: str, path: str, headers: list[tuple[str, str]]) -> None:
    backend = FakeBackend(TOKEN)
    async with asking(backend) as client:
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        assert TOKEN not in answer.text
        assert backend.reloads == 0


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_with_the_token(scheme: str) -> None:
    backend = FakeBackend(TOKEN)
    async with asking(backend, host="a.name.of.mine", authorization=f"{scheme} {TOKEN}") as client:
        assert (await client.get("/config")).json() == {"admin_token": "***"}
        answer = await client.get("/metrics", headers={"accept": "x/y"})
        assert (answer.text, answer.headers["content-type"]) == ("# x/y", "text/plain; version=0.0.4")
        assert (await client.get("/live")).json() == {"refused": [{"user": "alice"}]}
        assert (await client.get("/reload")).json() == {"changed": ["policies.hint"]}
        assert backend.reloads == 0
        assert (await client.post("/reload")).json() == {"changed": []}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8081", "localhost:8081", "[::1]:8081", "10.1.2.3"])
async def test_without_a_token_it_is_asked_by_address(host: str) -> None:
    async with asking(host=host) as client:
        assert (await client.get("/config")).status_code == 200


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("evil.example", {}),
        ("evil.example:8081", {}),
        ("127.0.0.1.evil.example", {}),
        ("127.0.0.1:8081", {"origin": "https://evil.example"}),
        ("127.0.0.1:8081", {"origin": "null"}),
    ],
)
@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_and_not_by_pages_of_others(method: str, path: str, host: str, headers: dict[str, str]) -> None:
    backend = FakeBackend()
    async with asking(backend, host=host) as client:
        answer = await client.request(method, path, headers=headers)
        assert (answer.status_code, backend.reloads) == (403, 0)
        assert answer.json()["title"] == "Forbidden"


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/", 404, "There are: /health, /health/live, /health/ready, /live, /metrics, /config, /reload"),
        ("GET", "/health/", 404, "There are: /health, "),
        ("DELETE", "/reload", 405, "/reload takes "),
        ("DELETE", "/metrics", 405, "/metrics takes "),
    ],
)
async def test_what_is_not_there(method: str, path: str, status: int, detail: str) -> None:
    async with asking() as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("policies.hint", "is bad"), 422), (StoreUnavailable("is away"), 503), (RuntimeError("s3cret"), 500)],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_reload_that_fails(method: str, error: Exception, status: int) -> None:
    backend = FakeBackend()
    backend.error = error
    async with asking(backend) as client:
        answer = await client.request(method, "/reload")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert ("s3cret" not in answer.text) if status == 500 else (str(error) in answer.json()["detail"])


# Ready or not, over HTTP: an engine that loses its table, a service that has not started or is about to end.


async def test_over_http(tmp_path: Path, engine: Engine) -> None:
    table = f"sidecar-{uuid4().hex[:8]}"
    url = engine.store_url(table, create="true")
    async with running(write(tmp_path, settings=f'store = "{url}"')) as service:
        assert (await service.admin.get("/health/ready")).json() == {"status": "ready"}
        await delete_table(Settings(table=table, endpoint=engine.endpoint))
        async with asyncio.timeout(60):
            while (answer := await service.admin.get("/health/ready")).status_code == 200:
                await asyncio.sleep(0.05)
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        assert answer.json()["detail"] == "The store cannot be used: table_not_found."
        assert table not in answer.text
        health = await service.admin.get("/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert (await service.admin.get("/health/live")).status_code == 200


async def test_not_ready_before_the_start_and_when_it_leaves(tmp_path: Path) -> None:
    async with running(write(tmp_path)) as service:
        assert (await service.admin.get("/health/ready")).status_code == 200
        service.sidecar.stopping = True
        answer = await service.admin.get("/health/ready")
        assert (answer.status_code, answer.json()["detail"]) == (503, "The service is about to end.")
        assert (await service.admin.get("/health")).json()["status"] == "leaving"
        assert await service.statuses(1) == [200], "everything else goes on"
        service.sidecar.stopping, service.sidecar.running = False, False
        assert (await service.admin.get("/health/ready")).status_code == 503


async def test_metrics_are_written_while_requests_are_answered(tmp_path: Path) -> None:
    answered = threading.Event()
    async with running(write(tmp_path)) as service:
        registry = service.sidecar.registry
        collect = registry.collect

        def collect_slowly(**options: Any) -> list[Family]:
            # The live data, which an answer may take note of, go without those of decisions.
            assert "but" in options or answered.wait(60), "nobody is answered meanwhile"
            return collect(**options)

        registry.collect = collect_slowly  # type: ignore[method-assign]
        scrape = asyncio.create_task(service.admin.get("/metrics"))
        await asyncio.sleep(0)
        assert await service.statuses(1) == [200]
        answered.set()
        assert "ratelimit_up" in (await scrape).text


# `ratelimit serve --workers 2` and its one admin listener: all workers are seen, reloaded, and missed.


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
    return httpx.AsyncClient(base_url=str(service.banner["admin"]), headers=ASK, timeout=LONG_S, limits=limits)


@pytest.mark.slow
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
        async with httpx.AsyncClient(base_url=service.url, timeout=LONG_S) as client:
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


@pytest.mark.slow
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


@pytest.mark.slow
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


# The page on the admin listener, in the place of a bearer token a session.


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
