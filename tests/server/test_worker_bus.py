"""Several workers, one admin listener: whoever is asked speaks for all, also when one hangs, or has died."""

from __future__ import annotations

import asyncio
import socket
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import pytest
import uvloop

from ratelimit.server import worker_bus
from ratelimit.server.worker_bus import WorkerBus
from tests.server.running import running, write


async def hello() -> bytes:
    return b"hello"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "siblings"
    folder.mkdir(mode=0o700)
    return folder


async def test_one_speaks_for_all(tmp_path: Path, folder: Path) -> None:
    path = write(tmp_path)
    async with running(path, bus_dir=folder) as one, running(path, bus_dir=folder) as other:
        assert await one.statuses(3) == [200, 200, 429]
        assert await other.statuses(1, user="bob") == [200]
        for asked in (one, other):
            assert await asked.metric("ratelimit_up") == 2
            assert await asked.metric("ratelimit_decisions_total", worker="0", outcome="allowed") == 2
            assert await asked.metric("ratelimit_decisions_total", worker="1", outcome="allowed") == 1
            assert set((await asked.admin.get("/health")).json()["workers"]) == {"0", "1"}
        write(tmp_path, "3/day")
        assert (await other.admin.post("/reload")).json()["workers"] == 2
        assert await one.statuses(2) == [200, 429]
    assert list(folder.glob("*.sock")) == []


async def test_a_reload_that_fails_elsewhere_is_told(tmp_path: Path, folder: Path) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for each in (mine, theirs):
        each.mkdir()
        write(each)
    async with (
        running(mine / "ratelimit.toml", bus_dir=folder) as one,
        running(theirs / "ratelimit.toml", bus_dir=folder),
    ):
        write(mine, "3/day")
        write(theirs, "3/dya")
        answer = await one.admin.post("/reload")
        assert answer.status_code == 422
        assert "this worker has reloaded, and not all others: worker 1: policies.hint.quotas" in answer.json()["detail"]


async def test_one_that_hangs_is_shown_as_such(folder: Path) -> None:
    async def never() -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    one, other = WorkerBus(folder, {}), WorkerBus(folder, {"health": never})
    await one.start()
    await other.start()
    assert (one.number, other.number) == ("0", "1")
    assert await one.ask("health", within=0.05) == {"1": None}
    await other.end()
    assert await one.ask("health", within=30) == {}
    await one.end()


@pytest.mark.parametrize("steps", range(6))
def test_who_asks_at_the_end_is_hung_up_on(folder: Path, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However far its connection has come by then. (With uvloop, as asyncio's own server forgets some itself.)"""
    monkeypatch.setattr(worker_bus, "_QUESTION_TIMEOUT_S", 300)

    async def ask() -> None:
        one = WorkerBus(folder, {})
        await one.start()
        with socket.socket(socket.AF_UNIX) as asking:
            asking.connect(str(folder / "0.sock"))
            asking.setblocking(False)
            for _ in range(steps):
                await asyncio.sleep(0)
            await one.end()
            with suppress(ConnectionResetError):
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(asking, 1), 30) == b""

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(ask())


async def test_an_answer_that_was_cut_short_is_none(folder: Path) -> None:
    async def cut_short(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"half')
        writer.close()

    server = await asyncio.start_unix_server(cut_short, folder / "7.sock")
    assert await WorkerBus(folder, {}).ask("health", within=30) == {"7": None}
    server.close()


@pytest.mark.parametrize("question", [b"\n", b"nonsense\n", b"x" * 5000, b"\xff\xfe\n", b""])
async def test_what_is_no_question_gets_no_answer(folder: Path, question: bytes) -> None:
    one = WorkerBus(folder, {"health": hello})
    await one.start()
    reader, writer = await asyncio.open_unix_connection(folder / "0.sock")
    writer.write(question)
    writer.write_eof()
    assert await asyncio.wait_for(reader.read(), 30) == b""
    writer.close()
    other = WorkerBus(folder, {})
    await other.start()
    assert await other.ask("health", within=30) == {"0": b"hello"}
    await one.end()
    await other.end()


@pytest.mark.process
async def test_the_number_of_a_worker_that_was_killed_is_free(folder: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from ratelimit.server.worker_bus import WorkerBus\n"
        "async def main():\n"
        "    one = WorkerBus(Path(sys.argv[1]), {}); await one.start(); print(one.number, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(folder), stdout=PIPE)
    assert victim.stdout is not None
    assert await asyncio.wait_for(victim.stdout.readline(), 30) == b"0\n"
    one = WorkerBus(folder, {"health": hello})
    await one.start()
    assert one.number == "1"
    victim.kill()
    await victim.wait()
    assert await one.ask("health", within=30) == {}, "its socket is there still, and nobody behind it"
    following = WorkerBus(folder, {})
    await following.start()
    assert following.number == "0"
    assert await following.ask("health", within=30) == {"1": b"hello"}
    await one.end()
    await following.end()
