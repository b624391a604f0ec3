"""docker-compose.yml: what it promises, and that its commands are ones that the programs take."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import httpx
import pytest
import yaml

from ratelimit.config import SETTINGS
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.deploy.tools import ROOT

SERVICES: Final[dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]


def test_it_pins_the_localstack_that_needs_no_token() -> None:
    assert SERVICES["localstack"]["image"] == "localstack/localstack:4.14.0"


def test_it_publishes_on_loopback_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert sorted(ports) == [f"127.0.0.1:{port}:{port}" for port in (4566, 8000, 8080, 9090)]


def test_each_waits_for_what_it_needs() -> None:
    waits = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    assert waits["table"] == {"localstack": {"condition": "service_healthy"}}
    assert waits["sidecar"]["table"] == {"condition": "service_completed_successfully"}
    assert waits["demo"] == {"table": {"condition": "service_completed_successfully"}}
    assert waits["sidecar"]["app"] == {"condition": "service_healthy"}


def test_the_image_is_built_once() -> None:
    assert [name for name, service in SERVICES.items() if "build" in service] == ["table"]
    assert {service["image"] for name, service in SERVICES.items() if name != "localstack"} == {"ratelimit"}


@pytest.mark.parametrize("name", ["table", "sidecar", "demo"])
def test_its_variables_are_settings(name: str) -> None:
    variables = SERVICES[name]["environment"]
    ours = [variable for variable in variables if variable.startswith("RATELIMIT_")]
    assert ours
    assert [variable for variable in ours if variable.removeprefix("RATELIMIT_").lower() not in SETTINGS] == []


def test_its_commands_are_understood(ratelimit: Command) -> None:
    """As far as they go without their neighbours: an option too much is all that is wrong with them."""
    status, _, err = ratelimit(*SERVICES["sidecar"]["command"], "--access-log", "xml")
    assert status == 2
    assert err.startswith("error: Invalid value for '--access-log'")
    status, out, _ = ratelimit(*SERVICES["table"]["command"], "--help")
    assert (status, "Create the table" in out) == (0, True)


async def test_the_service_behind_it_says_who_asks() -> None:
    source = (ROOT / "deploy" / "demo" / "service.py").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "service"}
    exec(compile(source, "service.py", "exec"), names)
    server = names["ThreadingHTTPServer"](("127.0.0.1", 0), names["Service"])
    running = asyncio.create_task(asyncio.to_thread(server.serve_forever, 0.01))
    try:
        async with httpx.AsyncClient() as client:
            where = f"http://127.0.0.1:{server.server_port}/hints"
            answer = await client.post(where, json={}, headers={"x-ratelimit-user": "alice"})
        assert answer.json()["for"] == "alice"
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        await running
