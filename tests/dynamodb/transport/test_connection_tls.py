"""TLS with full verification, by the certificates that the AWS set-up names."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import trustme

from ratelimit.dynamodb import DynamoDBStore, Settings, StoreUnreachable
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.errors import Place
from ratelimit.dynamodb.session import find_endpoint
from ratelimit.dynamodb.transport.connection import Endpoint, open_connection
from ratelimit.names import Key
from ratelimit.store import Add, Write
from tests.faults import FaultServer

ADD = Write((Add("d1", 1),), 1_999_999_999)


def secure_server(authority: trustme.CA, *names: str) -> FaultServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return FaultServer(context)


@pytest.fixture
async def server(authority: trustme.CA) -> AsyncIterator[FaultServer]:
    async with secure_server(authority, "localhost") as server:
        yield server


@pytest.mark.usefixtures("trusted")
async def test_over_tls(server: FaultServer) -> None:
    async with DynamoDBStore(table="limits", endpoint=server.endpoint) as store:
        for count in range(1, 4):
            assert (await store.apply(Key("a", "b"), ADD, now=0)).record == {"d1": count}
        assert store.stats.fallbacks == {}
        assert store.stats.connections == 4
    assert server.received["UpdateItem"] == 3


async def refused(endpoint: Endpoint) -> str:
    with pytest.raises(StoreUnreachable, match="no trusted connection") as caught:
        await open_connection(endpoint, Place("limits", "eu-west-1", endpoint.url), 5, lambda connection, ending: None)
    return str(caught.value)


@pytest.mark.usefixtures("trusted")
async def test_a_certificate_for_another_name(authority: trustme.CA) -> None:
    async with (
        secure_server(authority, "elsewhere.test") as server,
        await connect(Settings(table="limits", endpoint=server.endpoint)) as connection,
    ):
        assert "AWS_CA_BUNDLE" in await refused(await find_endpoint(connection))


async def test_an_authority_that_nobody_trusts(server: FaultServer) -> None:
    async with await connect(Settings(table="limits", endpoint=server.endpoint)) as connection:
        assert "AWS_CA_BUNDLE" in await refused(await find_endpoint(connection))


@pytest.mark.usefixtures("trusted")
async def test_tls_where_there_is_none() -> None:
    async with FaultServer() as server:
        endpoint = server.endpoint.replace("http://127.0.0.1", "https://localhost")
        async with await connect(Settings(table="limits", endpoint=endpoint)) as client:
            with pytest.raises(StoreUnreachable):
                await open_connection(await find_endpoint(client), client.place, 0.2, lambda connection, ending: None)


# A name with several addresses: one that nobody answers at is not waited for (RFC 8305).


DEAD = "127.0.0.2"


@contextmanager
def nobody_answers(port: int) -> Iterator[None]:
    """At `DEAD`: a queue that is full, so that whoever knocks is not even told to go away."""
    with ExitStack() as exits:
        full = exits.enter_context(closing(socket.socket()))
        full.bind((DEAD, port))
        full.listen(0)
        for _ in range(4):
            waiting = exits.enter_context(closing(socket.socket()))
            waiting.setblocking(False)
            waiting.connect_ex((DEAD, port))
        yield


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every name: `DEAD` and the one that is right."""
    resolve = socket.getaddrinfo

    def both(host: str, port: int, *args: Any, **options: Any) -> list[Any]:
        (answer, *_) = resolve("127.0.0.1", port, *args, **options)
        return [(*answer[:4], (address, port)) for address in (DEAD, "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", both)


@pytest.mark.usefixtures("two_addresses")
async def test_the_next_address_is_tried_where_the_first_does_not_answer() -> None:
    async with FaultServer() as server:
        port = int(server.endpoint.rpartition(":")[2])
        with nobody_answers(port):
            endpoint = f"http://dynamodb.test:{port}"
            async with DynamoDBStore(table="limits", endpoint=endpoint, connect_timeout=10, attempts=1) as store:
                assert (await store.apply(Key("a", "b"), ADD, now=0)).applied
                assert store.stats.connections > 0
                assert store.stats.fallbacks == {}
