"""Several workers: replaced in turn without a request being cut, replaced when they die, and never left alone."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR2
from uuid import uuid4

import httpx
import pytest

from tests.engines import Engine
from tests.server.clients import Clients
from tests.server.processes import COMMAND, LONG_S, QUICK, Served, command_of, served, until
from tests.server.sockets import scripted
from tests.server.test_shutdown import quick

pytestmark = pytest.mark.slow

CONNECTIONS = 50


def options(engine: Engine) -> tuple[str, ...]:
    url = engine.store_url(f"workers-{uuid4().hex[:8]}", create="true")
    return (*QUICK, "--store", url, "--workers", "2", "--linger", "1")


def anew(service: Served, former: set[int]) -> bool:
    """Two are at work, and none of the former."""
    return len(service.workers()) == 2 and not service.workers() & former


async def test_replaced_in_turn_under_load(engine: Engine) -> None:
    async with scripted(quick) as upstream:
        async with served("--upstream", f"http://{upstream}", *options(engine)) as service:
            clients = Clients("127.0.0.1", service.port)
            clients.start(CONNECTIONS)
            await clients.get(CONNECTIONS)
            former = service.workers()
            service.send(SIGUSR2)
            await service.told("all 2 workers are replaced")
            assert anew(service, former)
            await clients.get(CONNECTIONS)
            await clients.stop()
            assert clients.cut == []
            assert set(clients.statuses) == {200}
            assert clients.last_ones >= CONNECTIONS
            service.send(SIGTERM)
            assert await service.ended() == 0


async def test_one_that_dies_is_replaced(engine: Engine) -> None:
    async with served(*options(engine)) as service:
        former = service.workers()
        for pid in former:
            os.kill(pid, SIGKILL)
        await service.told("ended with status -9; another one takes its place")
        await until(lambda: anew(service, former))
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            assert (await client.get("/v1/authz/", headers={"x-api-key": "alice"})).status_code == 200
        service.send(SIGTERM)
        assert await service.ended() == 0


async def test_told_to_leave_while_they_are_replaced(engine: Engine) -> None:
    async with served(*options(engine)) as service:
        former = service.workers()
        service.send(SIGUSR2)
        await until(lambda: len(service.workers()) == 3)
        every = former | service.workers()
        service.send(SIGTERM)
        assert await service.ended() == 0
        assert not any(b"spawn_main" in command_of(pid) for pid in every)


async def test_they_leave_when_their_supervisor_is_gone(engine: Engine) -> None:
    async with served(*options(engine)) as service:
        workers = service.workers()
        service.send(SIGKILL)
        await service.ended()
        await until(lambda: not any(b"spawn_main" in command_of(pid) for pid in workers))


async def test_one_that_cannot_start_ends_them_all(engine: Engine) -> None:
    url = engine.store_url(f"none-{uuid4().hex[:8]}")
    for workers in ("1", "2"):
        line = (*COMMAND, *QUICK, "--store", url, "--workers", workers, "--port", "0", "--admin", "off")
        process = await asyncio.create_subprocess_exec(*line, stderr=PIPE)
        _, err = await asyncio.wait_for(process.communicate(), LONG_S)
        assert process.returncode == 3
        assert b"ratelimit serves" not in err


async def test_a_worker_started_later_falls_back_on_the_last_good_configuration(engine: Engine, tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text('[policies.extra]\nquotas = "5/day"\nmatch = "/extra"\n', encoding="utf-8")
    async with served(*options(engine), "--config", str(path)) as service:
        path.write_text("nonsense = 1\n", encoding="utf-8")
        former = service.workers()
        service.send(SIGUSR2)
        await service.told("all 2 workers are replaced")
        assert anew(service, former)
        await service.told("the last good configuration holds")
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as client:
            answer = await client.get("/v1/authz/extra", headers={"x-api-key": "alice"})
        assert '"extra";q=5' in answer.headers["ratelimit-policy"]
