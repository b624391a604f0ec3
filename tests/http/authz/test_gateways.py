"""5 allowed, then 429 with the fields at the client: through real gateways, by the configurations in the docs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from ratelimit.http.authz import Authz
from ratelimit.policy import Policy
from ratelimit.testing.engines import free_port
from tests.http.apps import hello, limiter_of
from tests.http.authz.gateways import GATEWAYS, running
from tests.http.serving import served

pytestmark = pytest.mark.slow

POLICIES = (
    Policy("hint", "5/day", match="POST /hints", user_from="header:x-api-key"),
    Policy("page", "2/day", match="GET /pages/**"),
    Policy("feed", "1/day", match="WEBSOCKET /feed"),
    Policy("drop", "1/day", match="DELETE /items"),
)
FIELDS_ON_ALLOWED = {"envoy", "nginx", "caddy", "haproxy"}
UNASKED = {"envoy": 200, "nginx": 200, "traefik": 500, "caddy": 502, "haproxy": 200}
HUNG_UP = {"envoy": 200, "nginx": 200, "caddy": 504, "haproxy": 200}


async def service(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads what it is sent: a server may close a connection on which a body is still under way."""
    while (await receive()).get("more_body"):
        pass
    await hello(scope, receive, send)


@pytest.fixture(params=GATEWAYS)
def gateway(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@asynccontextmanager
async def behind(gateway: str, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    authz = Authz(limiter=limiter_of(*POLICIES), trusted_proxies=1)
    async with (
        served(authz) as asked,
        served(service) as upstream,
        running(gateway, folder, authz=asked, upstream=upstream, patient=True) as address,
        httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client,
    ):
        yield client


async def test_five_pass_and_the_sixth_does_not(gateway: str, tmp_path: Path) -> None:
    async with behind(gateway, tmp_path) as client:
        for left in (4, 3, 2, 1, 0):
            answer = await client.post("/hints?a=1", headers={"x-api-key": "alice"}, content=b"{}")
            assert (answer.status_code, answer.text) == (200, "hello")
            if gateway in FIELDS_ON_ALLOWED:
                assert answer.headers.get_list("ratelimit") == [f'"hint";r={left};t=43200']
                assert answer.headers.get_list("ratelimit-policy") == ['"hint";q=5;w=86400']
        answer = await client.post("/hints", headers={"x-api-key": "alice"}, content=b"{}")
        assert (answer.status_code, answer.json()["status"]) == (429, 429)
        assert answer.json()["type"].endswith("#quota-exceeded")
        assert answer.headers.get_list("ratelimit") == ['"hint";r=0;t=43200']
        assert answer.headers.get_list("retry-after") == ["43200"]
        assert answer.headers["content-type"] == "application/problem+json"

        assert (await client.post("/hints", headers={"x-api-key": "bob"})).status_code == 200
        assert (await client.get("/hints", headers={"x-api-key": "alice"})).status_code == 200

        handshake = {"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13"}
        assert [(await client.get("/feed", headers=handshake)).status_code for _ in range(2)] == [200, 429]

        overridden = {"x-http-method-override": "DELETE"}
        assert [(await client.post("/items", headers=overridden)).status_code for _ in range(2)] == [200, 429]

        # What a client says of itself changes neither who it is nor what it asks for.
        codes = [
            (
                await client.get(
                    f"/pages/{number}",
                    headers={
                        "x-forwarded-for": f"198.51.100.{number}",
                        "x-forwarded-uri": "/free",
                        "x-original-uri": "/free",
                        "x-forwarded-method": "PUT",
                        "x-original-method": "PUT",
                    },
                )
            ).status_code
            for number in range(4)
        ]
        assert codes == [200, 200, 429, 429]


@pytest.mark.parametrize("gateway", HUNG_UP)
async def test_an_endpoint_that_hangs(gateway: str, tmp_path: Path) -> None:
    """By the timeouts in the documentation. Traefik has none to set, and waits for 30 s."""
    status, asked = HUNG_UP[gateway], asyncio.Event()

    async def silent(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http", "no lifespan"
        asked.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    async with (
        served(silent) as authz,
        served(service) as upstream,
        running(gateway, tmp_path, authz=authz, upstream=upstream, ready=status) as address,
        httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client,
    ):
        assert (await client.post("/hints", headers={"x-api-key": "alice"})).status_code == status
        assert asked.is_set()


async def test_nobody_answers(gateway: str, tmp_path: Path) -> None:
    """As the table in the documentation says."""
    status, nobody = UNASKED[gateway], f"127.0.0.1:{free_port()}"
    async with (
        served(service) as upstream,
        running(gateway, tmp_path, authz=nobody, upstream=upstream, ready=status) as address,
        httpx.AsyncClient(base_url=f"http://{address}", timeout=60) as client,
    ):
        for _ in range(7):
            assert (await client.post("/hints", headers={"x-api-key": "alice"})).status_code == status
