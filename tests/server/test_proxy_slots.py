"""Slots and reservations behind the sidecar: back when the answer has ended, or the client has left."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from base64 import b64encode
from hashlib import sha1
from typing import Any

import httpx
import pytest

from ratelimit.names import Key
from ratelimit.policy import Policy
from tests.http.apps import limiter_of
from tests.server.running import until
from tests.server.sockets import answering, ask, connected, in_front_of, scripted
from tests.server.test_connection import WEBSOCKET

ONE = Policy("api", "1 concurrent; 100/day", match="/**", cost=10)
TOKENS = Policy("api", "1000/day", match="/**", cost=100, reserve=True)
GET = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


async def held(limiter: Any, field: str = "c") -> int:
    record = await limiter.store.read(Key("ip:127.0.0.1", "api"))
    return int(record.get(field, 0))


async def test_held_while_the_upstream_answers_and_back_when_the_client_has_all_of_it() -> None:
    limiter = limiter_of(ONE)
    go_on = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"1\r\na\r\n")
        await go_on.wait()
        writer.write(b"0\r\n\r\n")

    async with scripted(script) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with httpx.AsyncClient() as client, asyncio.timeout(30):
            async with client.stream("GET", f"http://{address}/") as first:
                assert first.status_code == 200
                refused = await client.get(f"http://{address}/")
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                go_on.set()
                await first.aread()
            assert await held(limiter) == 0
            assert (await client.get(f"http://{address}/")).status_code == 200
    await limiter.open()
    assert (await limiter.peek("ip:127.0.0.1", "api")).quotas[1].used == 20


@pytest.mark.parametrize("upstream_dies", [False, True])
async def test_a_client_or_an_upstream_that_leaves(upstream_dies: bool) -> None:
    limiter = limiter_of(ONE)

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(HEAD + b"1\r\na\r\n")
        await writer.drain()
        if not upstream_dies:
            await reader.read()

    async with scripted(script) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with asyncio.timeout(30):
            async with connected(address) as (reader, writer):
                writer.write(GET)
                await reader.readuntil(b"1\r\na\r\n")
                if not upstream_dies:
                    assert await held(limiter) == 1
            while await held(limiter):
                await asyncio.sleep(0.01)


async def test_a_tunnel_holds_its_slot_until_it_is_closed() -> None:
    limiter = limiter_of(ONE)

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(
            line.split(b": ", 1)[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")
        )
        accept = b64encode(sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest())
        writer.write(b"HTTP/1.1 101 Up\r\nupgrade: websocket\r\nconnection: upgrade\r\n")
        writer.write(b"sec-websocket-accept: " + accept + b"\r\n\r\nhello")
        await reader.read()

    async with scripted(script) as upstream, in_front_of(upstream, limiter=limiter) as address:
        async with asyncio.timeout(30):
            async with connected(address) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET + b"\r\n")
                await reader.readuntil(b"hello")
                assert await held(limiter) == 1
                assert b" 429 " in await ask(address, GET)
            while await held(limiter):
                await asyncio.sleep(0.01)


async def test_an_upstream_that_is_not_there() -> None:
    limiter = limiter_of(ONE)
    async with in_front_of("127.0.0.1:1", limiter=limiter) as address, asyncio.timeout(30):
        for _ in range(2):
            assert b" 502 " in await ask(address, GET)
        await until(lambda: not limiter._holds._held)
        assert await held(limiter) == 0


@pytest.mark.parametrize(
    ("head", "trailer", "used"),
    [
        (b"", b"", 100),
        (b"x-ratelimit-cost: 30\r\n", b"", 30),
        (b"", b"x-ratelimit-cost: 40\r\n", 40),
        (b"", b"x-ratelimit-cost: 170\r\n", 170),
        (b"", b"x-ratelimit-cost: many\r\n", 100),
    ],
)
async def test_a_cost_that_the_upstream_states_at_the_beginning_or_at_the_end(
    head: bytes, trailer: bytes, used: int
) -> None:
    limiter, answer = limiter_of(TOKENS), HEAD[:-2] + head + b"\r\n1\r\na\r\n0\r\n" + trailer + b"\r\n"
    async with answering(answer) as (upstream, _), in_front_of(upstream, limiter=limiter) as address:
        async with asyncio.timeout(30):
            assert b"x-ratelimit-cost" not in await ask(address, GET)
        assert await held(limiter, "r") == 0
        assert (await limiter.peek("ip:127.0.0.1", "api")).used == used
