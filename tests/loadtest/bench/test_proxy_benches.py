"""The sidecar's benchmarks run, with few and short turns, and without a promise of speed; and what they show of it."""

from __future__ import annotations

import asyncio

import pytest

from loadtest.bench import builds, proxy_bodies, proxy_crowd, requester, sidecar
from loadtest.bench.servers import module
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
    with proxy_crowd.in_front_of_app() as server:
        writers = await proxy_crowd.crowd(server.port, uploads=200, sockets=200)
        for writer in writers[:200]:
            writer.write(b"x")
        answers = await asyncio.gather(*(ask(f"127.0.0.1:{server.port}", GET) for _ in range(50)))
        await asyncio.gather(*(close(writer) for writer in writers))
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in answers)


@pytest.mark.slow
def test_sidecar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "compiled", lambda: "not in a test")
    monkeypatch.setattr(builds, "peers", lambda: "not in a test")
    monkeypatch.setattr(requester, "has_wrk", lambda: False)  # which counts in whole seconds
    done = sidecar.run(rounds=1, seconds=0.1, at_once=2, rate=100)
    rows = {row.name: row.figures for row in done.rows}
    wanted = {sidecar.FLOOR, sidecar.MEMORY, sidecar.LOGGED, sidecar.DYNAMODB, sidecar.AUTHZ, sidecar.CHECK}
    assert wanted <= set(rows), done.notes
    assert all(figures["requests/s"] and figures["CPU µs per request"] for figures in rows.values())
    assert rows[sidecar.MEMORY]["p99 added, ms"] is not None
    assert any("the compiled build" in note for note in done.notes)
    assert any("the peers" in note for note in done.notes)


@pytest.mark.process
def test_a_steady_rate_is_asked_for() -> None:
    with module("loadtest.bench.asgi_server", "app") as upstream:
        found = requester.latencies(upstream.port, rate=200, seconds=0.5)
    assert 0 < found["p50"] <= found["p99"]


@pytest.mark.slow
def test_proxy_bodies() -> None:
    done = proxy_bodies.run(megabytes=1)
    assert [row.name for row in done.rows] == ["up, with a length", "up, in chunks", "down"]


@pytest.mark.slow
def test_proxy_crowd() -> None:
    done = proxy_crowd.run(rounds=1, seconds=0.1, at_once=2, uploads=3, sockets=3)
    assert [row.name for row in done.rows] == ["nobody else", "3 slow uploads, 3 websockets"]
    assert all(row.figures["p99 ms"] for row in done.rows)
