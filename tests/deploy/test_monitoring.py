"""The Grafana dashboard and the alert rules: what they ask is there, and a real Prometheus answers."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
import yaml

from ratelimit.deploy import alert_rules, dashboard
from ratelimit.testing.engines import free_port
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.deploy.tools import ROOT, TOOLS, lacking, run, tool
from tests.engines import Engine
from tests.server.processes import LONG_S, served
from tests.test_metrics import as_scraped

RULES: Final = "ratelimit/deploy/alerts.yaml"
GRAFANAS_MODELS: Final = """
import json, sys
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    print(JSONEncoder(sort_keys=True, indent=None).encode(Dashboard.from_json(json.load(file))))
"""

POLICIES: Final = """
[policies.hint]
quotas = "3/day"
[policies.free]
quotas = "unlimited"
"""
ENVOY: Final = "domain: edge\ndescriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 2}}]"


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> dict[str, str]:
    """Of the dashboard, by panel and legend, as Grafana puts them for all jobs, instances and policies."""
    filled = {"$job": ".*", "$instance": ".*", "$policy": ".*", "$__rate_interval": "30s", "$__range": "30s"}
    found = {}
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in filled.items():
                query = query.replace(name, value)
            found[f"{panel['title']} / {target['legendFormat']}"] = query
    return found


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.load(alert_rules(), yaml.CSafeLoader)["groups"][0]["rules"]
    return found


def test_they_are_printed(ratelimit: Command) -> None:
    assert ratelimit("deploy", "render", "grafana").json == dashboard()
    assert ratelimit("deploy", "render", "alerts") == (0, alert_rules(), "")


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    shown = set(re.findall(r"(?:ratelimit|process)_\w+", json.dumps([panel["targets"] for panel in panels()])))
    left_out = {"process_virtual_memory_bytes", "process_start_time_seconds", "process_max_fds"}
    assert {name.removesuffix("_bucket") for name in shown} == as_scraped() - left_out


def test_the_reference_names_every_alert_and_no_other() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert re.findall(r"(?m)^\| `(Ratelimit\w+)` \|", text) == [rule["alert"] for rule in rules()]


def test_alerts_are_about_metrics_that_there_are() -> None:
    for rule in rules():
        named = {name.removesuffix("_bucket") for name in re.findall(r"ratelimit_\w+", rule["expr"])}
        assert named
        assert named <= as_scraped(), rule["alert"]


def test_panels_have_their_places_and_variables() -> None:
    board = dashboard()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        x, y, width, height = (panel["gridPos"][name] for name in "xywh")
        place = {(column, line) for column in range(x, x + width) for line in range(y, y + height)}
        assert x + width <= 24
        assert not place & taken, panel["title"]
        taken |= place
    known = {variable["name"] for variable in board["templating"]["list"]} | {"__rate_interval", "__range"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__all"} == known
    for target in (target for panel in panels() for target in panel["targets"]):
        asked = {name for by in re.findall(r"by \(([\w,]+)\)", target["expr"]) for name in by.split(",")}
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= asked


@pytest.mark.slow
def test_grafanas_own_models_know_every_field(tmp_path: Path) -> None:
    """They are generated from its schema, and drop what that does not have. A Grafana cannot be had by pip or apt."""
    given = tmp_path / "dashboard.json"
    given.write_text(json.dumps(dashboard()), encoding="utf-8")
    if not (TOOLS / "python").exists():
        lacking("grafana-foundation-sdk is not installed: `make test-deploy` does it")
    again = json.loads(run(TOOLS / "python", "-c", GRAFANAS_MODELS, given))
    assert list(_lost(dashboard(), again)) == []


def _lost(given: Any, again: Any, path: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(again, dict):
        for name, value in given.items():
            yield from _lost(value, again.get(name), f"{path}.{name}")
    elif isinstance(given, list) and isinstance(again, list) and len(given) == len(again):
        for number, (one, other) in enumerate(zip(given, again, strict=True)):
            yield from _lost(one, other, f"{path}[{number}]")
    elif given != again:
        yield path


@pytest.mark.process
def test_promtool_raises_each_alert_when_it_should() -> None:
    run(tool("promtool"), "check", "rules", RULES)
    run(tool("promtool"), "test", "rules", "tests/deploy/alerts_test.yaml")
    tested = (ROOT / "tests/deploy/alerts_test.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r'alertname="(\w+)"', tested)) == {rule["alert"] for rule in rules()}


def sidecars(engine: Engine, folder: Path) -> tuple[dict[str, Any], ...]:
    """The environments: with all there is, counting in memory, and with a store out of reach."""
    unreachable = f"dynamodb://lost?region=eu-west-1&endpoint=http://127.0.0.1:{free_port()}"
    return (
        {
            "RATELIMIT_STORE": engine.store_url("monitored", region="eu-west-1", create="true", consumed="true"),
            "RATELIMIT_REGIONS": "mode=home all=eu-west-1",
            "RATELIMIT_MIRROR": "memory://",
            "RATELIMIT_USAGE": f"journal:{folder}/journal",
            "RATELIMIT_DIRECTORY": "true",
            "RATELIMIT_ALERT_WEBHOOK": "http://127.0.0.1:9/",
            "RATELIMIT_ENVOY_CONFIG": f"{folder}/envoy",
        },
        {"RATELIMIT_STORE": "memory://"},
        {"RATELIMIT_STORE": unreachable, "RATELIMIT_REGIONS": "mode=sum all=eu-west-1"},
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_real_prometheus_answers_every_query(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "envoy").mkdir()
    (tmp_path / "envoy" / "edge.yaml").write_text(ENVOY)
    (tmp_path / "ratelimit.toml").write_text(POLICIES)
    whole, *others = sidecars(engine, tmp_path)
    async with AsyncExitStack() as stack:
        urls, admins = [], []
        for env in (whole, *others):
            admins.append(f"127.0.0.1:{free_port()}")
            options = ("--config", str(tmp_path / "ratelimit.toml"), "--admin", admins[-1])
            more = ("--grpc", "127.0.0.1:0") if env is whole else ()
            urls.append((await stack.enter_async_context(served(*options, *more, **env))).url)
        prometheus = await stack.enter_async_context(_prometheus(tmp_path, admins))
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=prometheus, timeout=LONG_S, trust_env=False)
        )
        unanswered, health, raised = queries(), {}, {""}
        async with asyncio.timeout(5 * LONG_S):
            while unanswered.keys() - WELL or raised != {"RatelimitBreakerOpen", "RatelimitStoreUnavailable"}:
                await _work(client, urls)
                for name, query in list(unanswered.items()):
                    answer = (await client.get("/api/v1/query", params={"query": query})).json()
                    assert answer["status"] == "success", (name, answer)
                    if any(series["value"][1] != "NaN" for series in answer["data"]["result"]):
                        del unanswered[name]
                (group,) = (await client.get("/api/v1/rules")).json()["data"]["groups"]
                health = {rule["name"]: rule["health"] for rule in group["rules"]}
                raised = {rule["name"] for rule in group["rules"] if rule["state"] != "inactive"}
        assert health == {rule["alert"]: "ok" for rule in rules()}


WELL: Final = {"Throttled and tried again / slow path: {{reason}}"}
"""What has nothing to tell of services on this machine, where no proxy is used."""


async def _work(client: httpx.AsyncClient, urls: list[str]) -> None:
    for url in urls:
        for user, action in (("alice", "hint"), (uuid4().hex, "hint"), ("alice", "free")):
            await client.post(f"{url}/v1/check", json={"user": user, "action": action})
    descriptor = {"entries": [{"key": "user", "value": "alice"}]}
    await client.post(f"{urls[0]}/json", json={"domain": "edge", "descriptors": [descriptor]})
    await asyncio.sleep(0.3)


@asynccontextmanager
async def _prometheus(folder: Path, targets: list[str]) -> AsyncIterator[str]:
    """One that scrapes these every second, on a loopback port."""
    address = f"127.0.0.1:{free_port()}"
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump({
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "500ms"},
        "rule_files": [str(ROOT / RULES)],
        "scrape_configs": [{"job_name": "ratelimit", "static_configs": [{"targets": targets}]}],
    }))  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}", "--log.level=error", "--scrape.discovery-reload-interval=100ms",
        env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    try:
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(LONG_S):
            while True:
                try:
                    if (await client.get(f"http://{address}/-/ready")).status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                assert process.returncode is None, "Prometheus did not start"
                await asyncio.sleep(0.05)
        yield f"http://{address}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
