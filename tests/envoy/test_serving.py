"""`ratelimit serve --grpc`: the program, asked by grpcio; reloaded, in several processes, and ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGHUP, SIGTERM
from typing import Any

import grpc
import httpx
import pytest

from ratelimit.testing.engines import Engine
from tests.envoy import rls
from tests.server.processes import LONG_S, Served, served, until

OK, OVER = 1, 2
RULES = """
domain: edge
descriptors:
  - key: user
    rate_limit: {unit: day, requests_per_unit: LIMIT}
"""
METHOD = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
HEALTH = "/grpc.health.v1.Health/Check"

pytestmark = pytest.mark.process


def write(folder: Path, limit: object) -> Path:
    (folder / "edge.yaml").write_text(RULES.replace("LIMIT", str(limit)))
    return folder


class GrpcClient:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ask = channel.unary_unary(METHOD)
        self._health = channel.unary_unary(HEALTH)

    async def ask(self, user: str, timeout: float = LONG_S) -> Any:
        answer = await self._ask(rls.request("edge", {"user": user}), timeout=timeout, wait_for_ready=True)
        return rls.RateLimitResponse.FromString(answer)

    async def codes(self, user: str, number: int) -> list[int]:
        return [(await self.ask(user)).overall_code for _ in range(number)]

    async def healthy(self) -> bool:
        answer: bytes = await self._health(b"", timeout=LONG_S)
        return answer == b"\x08\x01"


@asynccontextmanager
async def client_of(service: Served) -> AsyncIterator[GrpcClient]:
    async with grpc.aio.insecure_channel(str(service.banner["grpc"])) as channel:
        yield GrpcClient(channel)


def place(rules: Path) -> tuple[str, ...]:
    return "--grpc", "127.0.0.1:0", "--envoy-config", str(rules)


async def test_limits_of_the_directory_hold_and_change_with_it(tmp_path: Path) -> None:
    async with served(*place(write(tmp_path, 5)), "--linger", "0") as service, client_of(service) as client:
        assert await client.healthy()
        assert await client.codes("alice", 6) == [OK] * 5 + [OVER]

        write(tmp_path, 7)
        await service.told("the configuration was reloaded: envoy_config")
        assert await client.codes("alice", 3) == [OK, OK, OVER]

        write(tmp_path, "many")
        await service.told("edge.yaml:5: expected a whole number from 0 to 4294967295, not 'many'")
        assert await client.codes("alice", 1) == [OVER]
        assert await client.codes("bob", 1) == [OK]

        (tmp_path / "more.yaml").write_text(RULES.replace("edge", "more").replace("LIMIT", "1"))
        write(tmp_path, 8)
        service.send(SIGHUP)
        await until(lambda: sum("was reloaded: envoy_config" in line for line in service.err) == 2)
        assert await client.codes("alice", 2) == [OK, OVER]
        service.send(SIGTERM)
        assert await service.ended() == 0


async def test_it_stands_beside_the_decision_endpoint_and_the_api(tmp_path: Path) -> None:
    options = ("--action", "hint", "--quota", "1/day", "--user-from", "header:x-api-key", *place(write(tmp_path, 1)))
    async with served(*options) as service, client_of(service) as client:
        assert await client.codes("alice", 2) == [OK, OVER]
        async with httpx.AsyncClient(base_url=service.url, headers={"x-api-key": "alice"}) as http:
            assert [(await http.post("/v1/authz/a")).status_code for _ in range(2)] == [200, 429]
            asked = {"user": "alice", "action": "edge.user"}
            assert (await http.post("/v1/check", json=asked)).json()["allowed"] is False


async def test_at_the_end_it_is_not_healthy_and_answers_while_clients_leave(tmp_path: Path) -> None:
    options = (*place(write(tmp_path, 1000)), "--linger", "300", "--grace", "600")
    async with served(*options) as service, client_of(service) as client:
        assert await client.healthy()
        service.send(SIGTERM)
        async with asyncio.timeout(LONG_S):
            while await client.healthy():
                assert await client.codes("alice", 1) == [OK]
        assert await client.codes("alice", 1) == [OK]


async def test_at_a_unix_socket_which_goes_with_it(tmp_path: Path) -> None:
    socket = tmp_path / "rls.sock"
    options = ("--grpc", f"unix:{socket}", "--envoy-config", str(write(tmp_path, 1)), "--linger", "0")
    async with served(*options) as service, client_of(service) as client:
        assert service.banner["grpc"] == f"unix:{socket}"
        assert await client.codes("alice", 2) == [OK, OVER]
        service.send(SIGTERM)
        assert await service.ended() == 0
    assert not socket.exists()


@pytest.mark.engine
async def test_several_workers_count_together_and_all_reload(tmp_path: Path, engine: Engine) -> None:
    store = engine.store_url("envoy-workers", create="true")
    options = (*place(write(tmp_path, 5)), "--workers", "2", "--store", store, "--linger", "0")
    async with served(*options) as service:
        assert len(service.workers()) == 2
        async with client_of(service) as one, client_of(service) as other:
            answers = await asyncio.gather(*(client.codes("alice", 4) for client in (one, other)))
            assert sorted(answers[0] + answers[1]) == [OK] * 5 + [OVER] * 3
        write(tmp_path, 6)
        await until(lambda: sum("was reloaded: envoy_config" in line for line in service.err) == 2)
        async with client_of(service) as client:
            assert sorted(await client.codes("alice", 2)) == [OK, OVER]
        service.send(SIGTERM)
        assert await service.ended() == 0
