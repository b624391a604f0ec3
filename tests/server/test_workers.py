"""Several workers: replaced in turn without a request being cut, replaced when they die, and never left alone."""

from __future__ import annotations

import asyncio
import os
from asyncio.subprocess import PIPE
from pathlib import Path
from signal import SIGHUP, SIGKILL, SIGTERM, SIGUSR2
from uuid import uuid4

import httpx
import pytest

from ratelimit.server import workers
from ratelimit.server.address import Address
from ratelimit.server.serve import ShutdownTimeouts
from ratelimit.server.workers import DONE, Supervisor, Worker, WorkerSpec
from tests.engines import Engine
from tests.server.clients import Clients
from tests.server.processes import COMMAND, LONG_S, QUICK, Served, command_of, served, until
from tests.server.sockets import scripted
from tests.server.test_shutdown import quick
from tests.turns import settled

CONNECTIONS = 50


def options(engine: Engine) -> tuple[str, ...]:
    url = engine.store_url(f"workers-{uuid4().hex[:8]}", create="true")
    return (*QUICK, "--store", url, "--workers", "2", "--linger", "1")


def anew(service: Served, former: set[int]) -> bool:
    """Two are at work, and none of the former."""
    return len(service.workers()) == 2 and not service.workers() & former


@pytest.mark.slow
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


@pytest.mark.slow
async def test_one_that_dies_is_replaced(engine: Engine) -> None:
    async with served(*options(engine)) as service:
        former = service.workers()
        for pid in former:
            os.kill(pid, SIGKILL)
        await service.told("ended with status -9; another one takes its place")
        await until(lambda: anew(service, former))
        async with httpx.AsyncClient(base_url=service.url, timeout=LONG_S) as client:
            assert (await client.get("/v1/authz/", headers={"x-api-key": "alice"})).status_code == 200
        service.send(SIGTERM)
        assert await service.ended() == 0


@pytest.mark.slow
async def test_told_to_leave_while_they_are_replaced(engine: Engine) -> None:
    async with served(*options(engine)) as service:
        former = service.workers()
        service.send(SIGUSR2)
        await until(lambda: len(service.workers()) == 3)
        every = former | service.workers()
        service.send(SIGTERM)
        assert await service.ended() == 0
        assert not any(b"spawn_main" in command_of(pid) for pid in every)


@pytest.mark.slow
async def test_they_leave_when_their_supervisor_is_gone(engine: Engine) -> None:
    async with served(*options(engine)) as service:
        workers = service.workers()
        service.send(SIGKILL)
        await service.ended()
        await until(lambda: not any(b"spawn_main" in command_of(pid) for pid in workers))


@pytest.mark.slow
async def test_one_that_cannot_start_ends_them_all(engine: Engine) -> None:
    url = engine.store_url(f"none-{uuid4().hex[:8]}")
    for number in ("1", "2"):
        line = (*COMMAND, *QUICK, "--store", url, "--workers", number, "--port", "0", "--admin", "off")
        process = await asyncio.create_subprocess_exec(*line, stderr=PIPE)
        _, err = await asyncio.wait_for(process.communicate(), LONG_S)
        assert process.returncode == 3
        assert b"ratelimit serves" not in err


@pytest.mark.slow
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
        async with httpx.AsyncClient(base_url=service.url, timeout=LONG_S) as client:
            answer = await client.get("/v1/authz/extra", headers={"x-api-key": "alice"})
        assert '"extra";q=5' in answer.headers["ratelimit-policy"]


# SIGHUP: the configuration freshly read; a bad file keeps the last good one, and the log says so.


FILE = 'user_from = "header:x-api-key"\n[policies.api]\nquotas = "{quotas}"\nmatch = "/**"\n'


async def quota(service: Served) -> str:
    """As a new connection is told, by whichever worker it comes to."""
    async with httpx.AsyncClient(base_url=service.url, timeout=LONG_S) as client:
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


# The slots of several workers: each has a worker that the supervisor knows of, whatever happens at once.


class Started:
    """A worker that serves at once and leaves as it is told, without a process. `every` is all there have been."""

    every: list[Started]

    def __init__(self, _: WorkerSpec) -> None:
        loop = asyncio.get_running_loop()
        self.pid = 1
        self.started: asyncio.Future[bool] = loop.create_future()
        self.started.set_result(True)
        self.ended: asyncio.Future[int] = loop.create_future()
        Started.every.append(self)

    def tell(self, _: bytes) -> None:
        if not self.ended.done():
            self.ended.set_result(DONE)


async def test_a_slot_that_was_taken_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker would go on with the configuration of its day, and nobody could tell it to leave."""
    pause_is_over = asyncio.Event()
    Started.every = []
    monkeypatch.setattr(workers, "WorkerProcess", Started)
    monkeypatch.setattr(workers, "_RESTART_PAUSES_S", (1.0,))
    real = asyncio.sleep
    monkeypatch.setattr("asyncio.sleep", lambda span: pause_is_over.wait() if span else real(0))
    with Address(port=0).bind().socket as listening:
        spec = WorkerSpec(lambda **_: None, ShutdownTimeouts(), listening, bus_dir=tmp_path)  # type: ignore[arg-type]
        one = Supervisor(spec, 1, (), lambda: None)
        one._workers = {0: Started(one._spec)}  # type: ignore[dict-item]
        keeping = asyncio.create_task(one._keep(0))
        Started.every[0].ended.set_result(-9)
        await settled()
        await one._replace_all()
        pause_is_over.set()
        await settled()
        keeping.cancel()
    assert len(Started.every) == 2
    assert one._workers[0] is Started.every[1]
