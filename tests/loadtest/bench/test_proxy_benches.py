"""The proxy's benchmarks run, with few and short turns. No promise of speed."""

from __future__ import annotations

import pytest

from loadtest.bench import proxy, proxy_bodies, proxy_crowd, requester
from loadtest.bench.proxy_server import VARIANTS

pytestmark = pytest.mark.slow


def test_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requester, "has_wrk", lambda: False)  # which counts in whole seconds
    done = proxy.run(rounds=1, seconds=0.1, at_once=2)
    assert len(done.rows) == len(VARIANTS)
    assert all(row.figures["requests/s"] and row.figures["CPU µs per request"] for row in done.rows)
    assert len(done.targets) == 3


def test_proxy_bodies() -> None:
    done = proxy_bodies.run(megabytes=1)
    assert [row.name for row in done.rows] == ["up, with a length", "up, in chunks", "down"]


def test_proxy_crowd() -> None:
    done = proxy_crowd.run(rounds=1, seconds=0.1, at_once=2, uploads=3, sockets=3)
    assert [row.name for row in done.rows] == ["nobody else", "3 slow uploads, 3 websockets"]
    assert all(row.figures["p99 ms"] for row in done.rows)
