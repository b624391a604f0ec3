"""The benchmarks of the blocking limiter run, and name all that they compare."""

from __future__ import annotations

import pytest

from loadtest.bench import builds, cold, sync

pytestmark = pytest.mark.slow


def test_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "compiled", lambda: "not in a test")
    done = sync.run(rounds=1, seconds=0.02)
    figures = {row.name: row.figures for row in done.rows}
    assert {sync.MEMORY, sync.DYNAMODB, sync.BARE} < set(figures)
    assert len(figures) == 8
    assert all(row["checks/s"] and row["p50 µs"] for row in figures.values())
    assert len(done.targets) == 3
    assert done.notes == ["not measured: the compiled build: not in a test"]


def test_cold() -> None:
    done = cold.run(rounds=1)
    assert [row.name for row in done.rows][:2] == [cold.MEMORY, cold.OURS]
    assert all(value is not None and value > 0 for row in done.rows for value in row.figures.values())
