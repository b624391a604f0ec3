"""The slots of several workers: each has a worker that the supervisor knows of, whatever happens at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ratelimit.server import workers
from ratelimit.server.address import Address
from ratelimit.server.serve import ShutdownTimeouts
from ratelimit.server.workers import DONE, Supervisor, WorkerSpec
from tests.turns import settled


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
