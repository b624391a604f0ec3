"""Every benchmark runs, with few and short turns, and leaves a report of what it measured. No promise of speed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loadtest.bench import (
    app,
    builds,
    cold,
    embedded,
    frameworks,
    hotkey,
    lane,
    live,
    operations,
    outage,
    peers,
    requester,
    sync,
)
from loadtest.bench.ours import exactness
from loadtest.bench.report import BenchTarget, Findings, Row, conclude, read, reported
from loadtest.bench.servers import Absent
from loadtest.bench.worker import take_turn
from tests.engines import Engine

pytestmark = pytest.mark.slow

TINY = 0.02
NO_PEERS = f"not measured: the peers ({', '.join(builds.PINNED)}): not in a test"
NOT_COMPILED = "not measured: the compiled build: not in a test"


@pytest.fixture(autouse=True)
def _nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installing the peers, or compiling, takes its time."""
    monkeypatch.setattr(builds, "peers", lambda: "not in a test")
    monkeypatch.setattr(builds, "compiled", lambda: "not in a test")


def rows(done: Findings) -> dict[str, dict[str, object]]:
    return {row.name: dict(row.figures) for row in done.rows}


def absent(*_: object) -> None:
    raise Absent("not on this machine")


def test_live_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        live,
        "CASES",
        {"one": {"users": 1}, "a table": {"users": 1, "table": True}, "an app": {"users": 1, "app": True}},
    )
    done = live.run(rounds=2, seconds=TINY)
    assert {"one", "a table", "an app"} < set(rows(done))
    assert all(row.figures["added µs"] is not None for row in done.rows)


def test_embedded() -> None:
    done = embedded.run(rounds=2, seconds=TINY)
    assert all(figures["checks/s"] for figures in rows(done).values())
    assert {embedded.OURS, embedded.REFUSED} < set(rows(done))
    calls = next(target for target in done.targets if target.promise.startswith("calls"))
    assert calls.met
    assert done.notes == [NOT_COMPILED, NO_PEERS]


def test_lane() -> None:
    done = lane.run(rounds=1, seconds=TINY, at_once=4)
    assert {lane.BARE, lane.FAST, lane.GCRA, lane.APPLY, lane.FAST + lane.TLS, lane.BARE + lane.TLS} < set(rows(done))
    assert len(done.targets) == 4
    assert done.notes == [NOT_COMPILED]


def test_operations() -> None:
    done = operations.run(times=2)
    columns = [f"{operations.OURS}: {what}" for what in ("writes", "reads", "write units")]
    assert {name: [figures[column] for column in columns] for name, figures in rows(done).items()} == {
        "check": [1, 0, 1],
        "refused": [1, 0, 1],
        "refused again at once": [0, 0, 0],
        "reserve and settle": [2, 0, 2],
        "take a slot and return it": [2, 0, 2],
        "two keys": [1, 0, 4],
        "two keys, the second refused": [1, 0, 4],
        "two keys, a second later": [1, 1, 4],
    }
    assert done.notes == [NO_PEERS]


def test_hotkey(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotkey, "engine", absent)
    done = hotkey.run(rounds=1, seconds=TINY, at_once=16)
    assert rows(done)[hotkey.COALESCED]["writes per check"] < 0.5  # type: ignore[operator]
    assert rows(done)[hotkey.PLAIN]["writes per check"] == 1
    assert "exactness" in done.notes[-1]


async def test_a_hot_key_is_exact(engine: Engine) -> None:
    found = await exactness(engine.endpoint, quota=50, checks=80, at_once=16)
    assert found["admitted"] == found["counted"] == 50


def test_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requester, "has_wrk", lambda: False)  # which counts in whole seconds
    done = app.run(rounds=1, seconds=TINY, at_once=2)
    assert len(done.rows) == 4
    assert all(figures["requests/s"] for figures in rows(done).values())


def test_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "LANES", ("fast",))
    done = outage.run(rounds=1, at_once=2, repeats=10)
    assert len(done.rows) == 12
    assert all(figures["max ms"] for figures in rows(done).values())


def test_peers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "engine", absent)
    monkeypatch.setattr(peers, "redis", absent)
    done = peers.run(rounds=1, seconds=TINY)
    assert not done.rows
    assert len(done.notes) == 3
    assert all("not measured" in note for note in done.notes)


def test_peers_are_measured_on_the_replay_server(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    @contextmanager
    def without_java(name: str) -> Iterator[str]:
        if name == "dynamodb-local":
            raise Absent("not on this machine")
        yield engine.endpoint

    monkeypatch.setattr(peers, "engine", without_java)
    monkeypatch.setattr(peers, "redis", absent)
    done = peers.run(rounds=1, seconds=TINY, at_once=4)
    assert list(rows(done)) == [f"{name}, {peers.REPLAY}" for name in (peers.FAST, peers.SLOW, peers.BARE)]
    assert {figures["calls per check"] for figures in rows(done).values()} == {1}
    assert {figures["write units per check"] for figures in rows(done).values()} == {1}
    assert [target.promise for target in done.targets] == ["write units per check"]
    assert "handed" in done.notes[-1]


def test_sync() -> None:
    done = sync.run(rounds=1, seconds=TINY)
    figures = rows(done)
    assert {sync.MEMORY, sync.DYNAMODB, sync.BARE, sync.FLOOR} < set(figures)
    assert len(figures) == 9
    assert all(row["checks/s"] and row["p50 µs"] for row in figures.values())
    assert len(done.targets) == 3
    assert done.notes == [NOT_COMPILED]


def test_cold() -> None:
    done = cold.run(rounds=1)
    assert [row.name for row in done.rows][:2] == [cold.MEMORY, cold.OURS]
    assert all(value is not None and value > 0 for row in done.rows for value in row.figures.values())


def test_frameworks() -> None:
    done = frameworks.run(rounds=1, seconds=TINY)
    figures = rows(done)
    assert len(figures) == 10
    assert all(row["requests/s"] and row["CPU µs per request"] for row in figures.values())
    assert [name for name, row in figures.items() if row["of which for the limit"] is None] == ["Django", "Flask"]
    assert len(done.targets) == 2
    assert done.notes == []


def test_a_run_is_held_against_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "kept.json"
    for speed in (100.0, 150.0):
        row = Row("ours", {"checks/s": speed, "p99 ms": None})
        found = Findings([row], [BenchTarget("fast", speed, "at least", 120)])
        done = reported("kept", lambda found=found, **_: found)(at_once=3, uvloop=True, loop=False)
        conclude(done, file)
    assert read(file) == done
    assert done.command == "python -m loadtest.bench kept --at-once 3 --uvloop"
    said = capsys.readouterr().out
    assert "MISSED fast" in said
    assert "+50 %" in said


async def test_a_turn_counts_its_calls() -> None:
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        await asyncio.sleep(0)

    turn = await take_turn(call, seconds=TINY, at_once=3)
    assert turn.calls == made
    assert 0 < turn.p50_us <= turn.p99_us
