"""What is under way when rules are exchanged is answered by those that it began with, and no count is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from ratelimit.envoy.grpc import Call, GrpcError
from ratelimit.server.envoy import grpc_methods
from ratelimit.server.sidecar import Sidecar
from ratelimit.store import MemoryStore
from ratelimit.store.delegating import DelegatingStore
from tests.envoy import rls
from tests.envoy.test_service import OK, OVER, brief
from tests.server.running import running, until, write

RULES = "domain: edge\ndescriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: LIMIT}}]"
CALL = Call("10.0.0.9:1234", None, [])
PATH = b"/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"


class HeldStore(DelegatingStore):
    """A store that answers when it is let."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.open_gate = asyncio.Event()
        self.open_gate.set()

    async def apply(self, *args: Any, **options: Any) -> Any:
        await self.open_gate.wait()
        return await super().apply(*args, **options)


def rules(folder: Path, limit: int) -> str:
    (folder / "edge.yaml").write_text(RULES.replace("LIMIT", str(limit)))
    return f'envoy_config = "{folder / "edge.yaml"}"'


async def ask(sidecar: Sidecar, user: str) -> Any:
    answer = grpc_methods(sidecar)[PATH](rls.request("edge", {"user": user}), CALL)
    return rls.RateLimitResponse.FromString(await answer if isinstance(answer, Awaitable) else answer)


async def test_a_call_under_way_is_answered_by_the_rules_it_began_with(tmp_path: Path, monkeypatch) -> None:
    store = HeldStore()
    monkeypatch.setattr("ratelimit.server.sidecar.working_store", lambda config: store)
    async with running(write(tmp_path, settings=rules(tmp_path, 5))) as service:
        assert brief(await ask(service.sidecar, "alice")) == [(OK, 4)]
        store.open_gate.clear()
        under_way = asyncio.create_task(ask(service.sidecar, "alice"))
        await until(lambda: service.sidecar.requests == 1)
        rules(tmp_path, 3)
        assert (await service.sidecar.reload()).changed == ["envoy_config"]
        assert await service.metric("ratelimit_configurations") == 2
        store.open_gate.set()
        assert brief(await under_way) == [(OK, 3)]
        await until(lambda: len(service.sidecar._alive) == 1)
        assert [brief(await ask(service.sidecar, "alice")) for _ in range(2)] == [[(OK, 0)], [(OVER, 0)]]
        assert await service.metric("ratelimit_envoy_calls_total", domain="edge", answer="ok") == 3


async def test_rules_that_cannot_be_used_change_nothing(tmp_path: Path) -> None:
    async with running(write(tmp_path, settings=rules(tmp_path, 2))) as service:
        assert brief(await ask(service.sidecar, "alice")) == [(OK, 1)]
        (tmp_path / "edge.yaml").write_text("domain: edge\ndescriptors: [{kye: user}]")
        with pytest.raises(ValueError, match=r"envoy_config: .*edge\.yaml:2: unknown key 'kye'; did you mean key\?"):
            await service.sidecar.reload()
        assert [brief(await ask(service.sidecar, "alice")) for _ in range(2)] == [[(OK, 0)], [(OVER, 0)]]
        assert await service.metric("ratelimit_reload_rejected") == 1


async def test_rules_may_go_and_come_back(tmp_path: Path) -> None:
    settings = rules(tmp_path, 1)
    async with running(write(tmp_path, settings=settings)) as service:
        assert brief(await ask(service.sidecar, "alice")) == [(OK, 0)]
        write(tmp_path)
        await service.sidecar.reload()
        with pytest.raises(GrpcError, match="there are no rules: envoy_config is off"):
            await ask(service.sidecar, "alice")
        write(tmp_path, settings=settings)
        await service.sidecar.reload()
        assert brief(await ask(service.sidecar, "alice")) == [(OVER, 0)]


async def test_json_is_asked_beside_the_decision_endpoint(tmp_path: Path) -> None:
    async with running(write(tmp_path, settings=rules(tmp_path, 1))) as service:
        asked = {"domain": "edge", "descriptors": [{"entries": [{"key": "user", "value": "alice"}]}]}
        assert [(await service.app.post("/json", json=asked)).status_code for _ in range(2)] == [200, 429]
        assert await service.statuses(3) == [200, 200, 429]
        assert (await ask(service.sidecar, "alice")).overall_code == OVER
