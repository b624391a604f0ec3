"""A name with several addresses: one that nobody answers at is not waited for (RFC 8305)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from ratelimit.dynamodb import DynamoDBStore
from ratelimit.names import Key
from ratelimit.store import Add, Write
from tests.faults import FaultServer

ADD = Write((Add("d1", 1),), 1_999_999_999)
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
