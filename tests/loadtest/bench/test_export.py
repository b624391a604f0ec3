"""The benchmark of an export's memory, at the size of a test: the real client, another process that answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.docs.pages import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--parts", "2", "--format", "csv")])
def test_an_export_stays_within_50_mb(options: tuple[str, ...]) -> None:
    line = [sys.executable, "-m", "loadtest.bench", "export", "--events", "10000", *options]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("10,000 events, ")
