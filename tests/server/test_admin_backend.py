"""Ready or not, over HTTP: an engine that loses its table, a service that has not started or is about to end."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any
from uuid import uuid4

from ratelimit.dynamodb import Settings, delete_table
from ratelimit.metrics import Family
from tests.engines import Engine
from tests.server.running import running, write


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
            assert answered.is_set() or answered.wait(60), "nobody is answered meanwhile"
            return collect(**options)

        registry.collect = collect_slowly  # type: ignore[method-assign]
        scrape = asyncio.create_task(service.admin.get("/metrics"))
        await asyncio.sleep(0)
        assert await service.statuses(1) == [200]
        answered.set()
        assert "ratelimit_up" in (await scrape).text
