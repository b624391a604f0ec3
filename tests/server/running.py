"""A sidecar within the test: its configuration in a file, listening; its admin listener is called without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from ratelimit.factory import load_checked
from ratelimit.server.factory import sidecar
from ratelimit.server.sidecar import ConfigSource, Sidecar
from tests.server.sockets import listening

HINTS = """
admin = "127.0.0.1:0"
user_from = ["header:x-api-key"]
{settings}
[policies.hint]
quotas = "{quotas}"
match = ["POST /hints"]
"""


def write(folder: Path, quotas: str = "2/day", settings: str = "") -> Path:
    """The file, changed or new."""
    path = folder / "ratelimit.toml"
    path.write_text(HINTS.format(quotas=quotas, settings=settings), encoding="utf-8")
    return path


class Service:
    """One worker at work."""

    def __init__(self, one: Sidecar, app: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
        self.sidecar = one
        self.app = app
        self.admin = admin

    async def statuses(self, number: int, user: str = "alice") -> list[int]:
        """Of so many hints, one after the other, as a gateway would ask for them."""
        return [
            (await self.app.post("/v1/authz/hints", headers={"x-api-key": user})).status_code for _ in range(number)
        ]

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels; 0 where there are none."""
        text = (await self.admin.get("/metrics")).text
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
        values = [
            float(value)
            for series, _, value in lines
            if series.partition("{")[0] == name and all(label in series for label in wanted)
        ]
        return sum(values)


@asynccontextmanager
async def running(path: Path, *, source: ConfigSource | None = None, **options: Any) -> AsyncIterator[Service]:
    """Started, and ended afterwards."""
    one = sidecar(source or partial(load_checked, path, env={}), **options)
    assert one.admin is not None
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(listening(one))
        await one.admin.start()
        stack.push_async_callback(one.admin.end)
        app = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://{address}", trust_env=False))
        transport = httpx.ASGITransport(one.admin.app, raise_app_exceptions=False)
        admin = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1"))
        yield Service(one, app, admin)


async def until(condition: Callable[[], bool], *, within: float = 30) -> None:
    """Returns when it holds."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.005)
