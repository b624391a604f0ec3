"""Which way requests go: as botocore would send them, or not by the fast transport at all, and then it is counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from ratelimit.dynamodb import DynamoDBStore, Settings, parse_url
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.session import NoFastTransport, find_endpoint
from ratelimit.dynamodb.store import SWITCH, open_transport
from ratelimit.dynamodb.transport.base import BotoTransport
from ratelimit.dynamodb.transport.connection import Endpoint
from ratelimit.dynamodb.transport.fast import FastTransport
from ratelimit.names import Key
from ratelimit.store import Add, Write
from tests.faults import FaultServer

ADD = Write((Add("d1", 1),), 1_999_999_999)


@pytest.fixture(autouse=True)
def amazon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent there: finding the way asks nobody."""
    monkeypatch.delenv("AWS_ENDPOINT_URL")


async def resolved(**options: str) -> Endpoint:
    async with await connect(Settings(table="limits", **options)) as connection:  # type: ignore[arg-type]
        return await find_endpoint(connection)


async def test_amazon_itself() -> None:
    found = await resolved(region="eu-west-1")
    assert (found.host, found.port, found.region) == ("dynamodb.eu-west-1.amazonaws.com", 443, "eu-west-1")
    assert found.host_header == "dynamodb.eu-west-1.amazonaws.com"
    assert found.tls is not None
    assert found.tls.check_hostname


async def test_the_accounts_own_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCOUNT_ID", "123456789012")
    assert (await resolved(region="eu-west-1")).host == "123456789012.ddb.eu-west-1.amazonaws.com"


@pytest.mark.parametrize(
    ("endpoint", "header"),
    [
        ("http://localhost:4566", "localhost:4566"),
        ("http://localhost:80/", "localhost"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("https://LocalHost", "localhost"),
    ],
)
async def test_an_endpoint_of_ones_own(endpoint: str, header: str) -> None:
    found = await resolved(region="eu-west-1", endpoint=endpoint)
    assert found.host_header == header
    assert (found.tls is not None) is endpoint.startswith("https")


async def test_the_region_called_local_signs_as_botocore_does() -> None:
    assert (await resolved(region="local")).region == "us-east-1"
    assert (await resolved(region="local", endpoint="http://localhost:8000")).region == "local"


@pytest.mark.parametrize("endpoint", ["http://localhost:8000/dynamodb", "http://localhost:8000/a/b/"])
async def test_an_endpoint_with_a_path_is_not_for_us(endpoint: str) -> None:
    with pytest.raises(NoFastTransport, match="endpoint"):
        await resolved(region="eu-west-1", endpoint=endpoint)


async def test_a_proxy_is_not_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    with pytest.raises(NoFastTransport, match="proxy"):
        await resolved(region="eu-west-1")
    assert await resolved(region="eu-west-1", endpoint="https://localhost:8000")
    assert await resolved(region="eu-west-1", endpoint="http://10.0.0.1:8000")
    monkeypatch.setenv("NO_PROXY", ".amazonaws.com")
    assert await resolved(region="eu-west-1")


async def test_a_client_certificate_is_not_for_us() -> None:
    async with await connect(Settings(table="limits", region="eu-west-1")) as plain:
        config = AioConfig(client_cert="/some/certificate.pem")
        async with get_session().create_client("dynamodb", region_name="eu-west-1", config=config) as client:
            plain.api, ours = client, plain.api
            with pytest.raises(NoFastTransport, match="client_certificate"):
                await find_endpoint(plain)
            plain.api = ours


@pytest.mark.parametrize("value", ["off", "OFF", "0", "false"])
async def test_the_switches(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    async with FaultServer() as server, await connect(Settings(table="limits", endpoint=server.endpoint)) as connection:

        async def chosen(*, fast: bool) -> object:
            settings = Settings(table="limits", endpoint=server.endpoint, fast=fast)
            opened = await open_transport(connection, settings, Stats())
            await opened.close()
            return type(opened)

        assert await chosen(fast=True) is FastTransport
        assert await chosen(fast=False) is BotoTransport
        assert await chosen(fast=parse_url("dynamodb://limits?fast=off").fast) is BotoTransport
        monkeypatch.setenv(SWITCH, value)
        assert await chosen(fast=True) is BotoTransport
        monkeypatch.setenv(SWITCH, "on")
        assert await chosen(fast=True) is FastTransport


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_opening_may_be_cancelled_at_any_moment(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(open_and_cancel())


async def open_and_cancel() -> None:
    async with FaultServer() as server, await connect(Settings(table="limits", endpoint=server.endpoint)) as connection:
        before = asyncio.all_tasks()
        for moments in range(40):
            opening = asyncio.create_task(open_transport(connection, Settings(table="limits"), stats := Stats()))
            for _ in range(moments):
                await asyncio.sleep(0)
            if opening.cancel():
                await asyncio.wait([opening])
            else:
                await opening.result().close()
            for _ in range(500):
                if not server.connections and asyncio.all_tasks() == before:
                    break
                await asyncio.sleep(0.002)
            else:
                raise AssertionError(f"after {moments}: {server.connections} connections, {stats}")


async def test_what_takes_the_slow_lane_is_counted() -> None:
    async with FaultServer() as server, DynamoDBStore(table="limits", endpoint=f"{server.endpoint}/path") as store:
        for _ in range(3):
            assert (await store.apply(Key("a", "b"), ADD, now=0)).applied
        assert store.stats.fallbacks == {"endpoint": 3}
        assert store.stats.connections == 0
