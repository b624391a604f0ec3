"""The benchmark of the frameworks runs, and every contender answers."""

from __future__ import annotations

import pytest

from loadtest.bench import frameworks

pytestmark = pytest.mark.slow


def test_frameworks() -> None:
    done = frameworks.run(rounds=1, seconds=0.02)
    figures = {row.name: row.figures for row in done.rows}
    assert len(figures) == 10
    assert all(row["requests/s"] and row["CPU µs per request"] for row in figures.values())
    assert [name for name, row in figures.items() if row["of which for the limit"] is None] == ["Django", "Flask"]
    assert len(done.targets) == 2
    assert done.notes == []
