"""`docs/metrics.md` is true: the apps show their metrics where the page says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from ratelimit import Policy, configure
from tests.docs.pages import run, titled
from tests.http.apps import client_of
from tests.test_app_metrics import own_registry as own_registry


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("title", ["FastAPI", "Starlette"])
async def test_an_app_shows_its_metrics(title: str) -> None:
    app: Any = (await run(titled("docs/metrics.md", title)))["app"]
    async with client_of(app) as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
        shown = (await client.get("/metrics/")).text
    assert 'ratelimit_decisions_total{outcome="allowed",policy="hint",reason="none"} 5.0' in shown
    assert 'ratelimit_decisions_total{outcome="denied",policy="hint",reason="quota"} 1.0' in shown
    assert 'ratelimit_breaker_state{state="closed"} 1.0' in shown
    assert "ratelimit_check_seconds_count 6.0" in shown


def test_the_multi_process_mode_leaves_collectors_out(own_registry: CollectorRegistry, tmp_path: Path) -> None:
    configure(policies=[Policy("hint", quotas="5/day")], metrics=True)
    every_process = CollectorRegistry()
    MultiProcessCollector(every_process, path=str(tmp_path))
    assert b"ratelimit" in generate_latest(own_registry)
    assert b"ratelimit" not in generate_latest(every_process)
