"""The proxy's benchmarks run, with few and short turns, and without a promise of speed; and what they show of it."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.bench import crowd, proxy, proxy_bodies, proxy_crowd, requester
from loadtest.bench.proxy_server import VARIANTS
from tests.server.sockets import GET, ask, close


@pytest.mark.process
async def test_bodies_of_200_mb_each_way_pass_in_bounded_memory() -> None:
    """A process of its own, so that what it takes is its own."""
    passed = await proxy_bodies.transfer(200 * proxy_bodies.MB)
    assert set(passed) == {"up, with a length", "up, in chunks", "down"}
    assert {name: one.grown for name, one in passed.items() if one.grown > 50} == {}


@pytest.mark.process
async def test_clients_that_take_their_time_keep_nobody_waiting() -> None:
    """How much longer others wait is measured by `python -m loadtest.bench proxy-crowd`."""
    with (
        proxy.running("app") as upstream,
        proxy.running("limited", f"http://127.0.0.1:{upstream.port}") as sidecar,
    ):
        writers = await crowd.gather(sidecar.port, uploads=200, sockets=200)
        for writer in writers[:200]:
            writer.write(b"x")
        answers = await asyncio.gather(*(ask(f"127.0.0.1:{sidecar.port}", GET) for _ in range(50)))
        await asyncio.gather(*(close(writer) for writer in writers))
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


@pytest.mark.slow
def test_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requester, "has_wrk", lambda: False)  # which counts in whole seconds
    done = proxy.run(rounds=1, seconds=0.1, at_once=2)
    assert len(done.rows) == len(VARIANTS)
    assert all(row.figures["requests/s"] and row.figures["CPU µs per request"] for row in done.rows)
    assert len(done.targets) == 3


@pytest.mark.slow
def test_proxy_bodies() -> None:
    done = proxy_bodies.run(megabytes=1)
    assert [row.name for row in done.rows] == ["up, with a length", "up, in chunks", "down"]


@pytest.mark.slow
def test_proxy_crowd() -> None:
    done = proxy_crowd.run(rounds=1, seconds=0.1, at_once=2, uploads=3, sockets=3)
    assert [row.name for row in done.rows] == ["nobody else", "3 slow uploads, 3 websockets"]
    assert all(row.figures["p99 ms"] for row in done.rows)
