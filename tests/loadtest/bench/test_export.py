"""The benchmark of an export's memory, at the size of a test: the real client, another process that answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.bench.report import read
from tests.docs.pages import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--parts", "2", "--format", "csv")])
def test_an_export_stays_within_50_mb(options: tuple[str, ...], tmp_path: Path) -> None:
    """In a process of its own, whose memory is its own."""
    file = tmp_path / "export.json"
    line = [sys.executable, "-m", "loadtest.bench", "--json", str(file), "export", "--events", "10000", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = read(file)
    assert report is not None
    assert [row.figures["events"] for row in report.rows] == [10_000]
    assert all(target.met for target in report.targets), done.stdout
