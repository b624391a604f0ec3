"""SIGHUP: the configuration freshly read; a bad file keeps the last good one, and the log says so."""

from __future__ import annotations

import asyncio
from pathlib import Path
from signal import SIGHUP, SIGTERM, SIGUSR2
from uuid import uuid4

import httpx
import pytest

from ratelimit.server.address import Address
from ratelimit.server.serve import ShutdownTimeouts
from ratelimit.server.workers import Worker, WorkerSpec
from tests.engines import Engine
from tests.server.processes import QUICK, Served, served, until
from tests.turns import settled

FILE = 'user_from = "header:x-api-key"\n[policies.api]\nquotas = "{quotas}"\nmatch = "/**"\n'


async def quota(service: Served) -> str:
    """As a new connection is told, by whichever worker it comes to."""
    async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
        answer = await client.get("/v1/authz/", headers={"x-api-key": "alice"})
    return str(answer.headers["ratelimit-policy"])


@pytest.mark.parametrize("workers", [1, 2])
async def test_sighup(engine: Engine, tmp_path: Path, workers: int) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text(FILE.format(quotas="100/day"), encoding="utf-8")
    store = engine.store_url(f"reload-{uuid4().hex[:8]}", create="true")
    async with served("--config", str(path), "--store", store, "--workers", str(workers)) as service:
        assert await quota(service) == '"api";q=100;w=86400'

        path.write_text(FILE.format(quotas="100/fortnight"), encoding="utf-8")
        service.send(SIGHUP)
        await service.told("unknown unit 'fortnight'")
        assert await quota(service) == '"api";q=100;w=86400'

        path.write_text(FILE.format(quotas="200/day"), encoding="utf-8")
        service.send(SIGHUP)
        done = "the configuration was reloaded: policies.api"
        await until(lambda: sum(done in line for line in service.err) == workers)
        assert {await quota(service) for _ in range(8)} == {'"api";q=200;w=86400'}


@pytest.mark.process
async def test_one_worker_alone_is_not_replaced() -> None:
    async with served(*QUICK, "--linger", "0") as service:
        service.send(SIGUSR2)
        await service.told("here is only one: start with --workers 2")
        service.send(SIGTERM)
        assert await service.ended() == 0


@pytest.mark.heavy
async def test_a_second_reload_during_the_first_is_not_lost() -> None:
    """The file may have been read already, by then."""
    sidecar = SlowToReload()
    with Address(port=0).bind().socket as listening:
        worker = Worker(sidecar, WorkerSpec(lambda **_: sidecar, ShutdownTimeouts(), listening))  # type: ignore[arg-type]
        worker.reload()
        await settled()
        worker.reload()
        worker.reload()
        assert sidecar.reloads == 1
        sidecar.go_on.set()
        await settled()
        assert sidecar.reloads == 2


class SlowToReload:
    """As much of a sidecar as a worker needs that never serves."""

    admin = None

    def __init__(self) -> None:
        self.reloads = 0
        self.go_on = asyncio.Event()

    async def reload(self) -> None:
        self.reloads += 1
        await self.go_on.wait()
