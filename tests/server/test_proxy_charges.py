"""What a request has really cost: told to the client as it stands then; and where that one leaves while it is settled,
nothing is given back twice, or left out."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from base64 import b64encode
from hashlib import sha1
from typing import Any

import httpx
import pytest
from starlette.exceptions import HTTPException

from ratelimit import MemoryStore, Policy, StoreUnavailable, UsageLog
from ratelimit.http.headers import HeaderWriter
from ratelimit.names import Key
from ratelimit.server.connection import ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.listener import Service
from ratelimit.server.proxy import Proxy
from ratelimit.server.request import Request
from ratelimit.server.upstream import ProxySettings
from tests.http.apps import limiter_of
from tests.server.running import until
from tests.server.sockets import GET, SOON_S, Script, answering, ask, connected, in_front_of, listening, scripted
from tests.server.test_smuggling import WEBSOCKET


class FarStore(MemoryStore):
    """Once it is `held`, the next call takes until `let_go`: to arrive, or to be answered, if it is."""

    def __init__(self, *, arrives: bool, answers: bool) -> None:
        super().__init__()
        self.held = False
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()
        self._arrives = arrives
        self._answers = answers

    async def apply(self, *args: Any, **options: Any) -> Any:
        if not self.held or self.asked.is_set():
            return await super().apply(*args, **options)
        self.asked.set()
        if not self._arrives:
            await self.let_go.wait()
        outcome = await super().apply(*args, **options)
        await self.let_go.wait()
        if not self._answers:
            raise StoreUnavailable("no answer in time")
        return outcome


def costing(stated: int, store: FarStore | None = None) -> Script:
    """An upstream that says what a request has cost; from then on the store is held."""

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if store is not None:
            store.held = True
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-ratelimit-cost: %d\r\n\r\nok" % stated)

    return script


class WatchedProxy(Service):
    """Tells when the client of a proxy has left, and when all is settled. It stands around it, as one that is compiled
    has no subclasses of Python's."""

    def __init__(self, *args: Any) -> None:
        self._proxy = Proxy(*args)
        self.is_over = asyncio.Event()
        self.exchanges: list[Exchange] = []

    async def start(self) -> None:
        await self._proxy.start()

    async def end(self) -> None:
        await self._proxy.end()

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        self.exchanges.append(self._proxy.exchange(connection, request))
        return self.exchanges[-1]

    def over(self, exchange: Exchange) -> None:
        self.is_over.set()

    def connections(self) -> bool:
        return any(one.connection in one.connection.shared.connections for one in self.exchanges)


@pytest.mark.parametrize(
    ("stated", "count", "arrives", "answers", "used"),
    [
        (3, "success", True, True, 3),
        (3, "success", False, True, 3),
        (3, "success", True, False, 3),
        (3, "failure", True, True, 0),
        (3, "all", True, True, 3),
        (17, "all", False, True, 17),
        (17, "all", True, True, 17),
        (17, "success", True, True, 17),
    ],
)
async def test_a_client_that_leaves_meanwhile(stated: int, count: Any, arrives: bool, answers: bool, used: int) -> None:
    """It never saw the answer, which was one no less: what counts by it counts, once."""
    store = FarStore(arrives=arrives, answers=answers)
    limiter = limiter_of(Policy("api", "1000/day", match="/**", cost=10, count=count), store=store)
    await limiter.charge("alice", "api", 100)

    async with scripted(costing(stated, store)) as upstream:
        proxy = WatchedProxy(f"http://{upstream}", {"limiter": limiter, "user_from": "header:x-api-key"})
        async with listening(proxy) as address, asyncio.timeout(SOON_S):
            async with connected(address) as (_, writer):
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-api-key: alice\r\n\r\n")
                await store.asked.wait()
            await until(lambda: not proxy.connections())
            store.let_go.set()
            await proxy.is_over.wait()
    await limiter.open()
    assert (await limiter.peek("alice", "api")).used == 100 + used


@pytest.mark.parametrize("count", ["all", "success", "failure"])
async def test_who_leaves_before_the_answer_gets_nothing_back(count: Any) -> None:
    """Else whoever hangs up at once has the upstream work for nothing."""
    limiter = limiter_of(Policy("api", "1000/day", match="/**", cost=10, count=count))
    asked = asyncio.Event()

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()

    async with scripted(script) as upstream:
        proxy = WatchedProxy(f"http://{upstream}", {"limiter": limiter, "user_from": "header:x-api-key"})
        async with listening(proxy) as address, asyncio.timeout(SOON_S):
            async with connected(address) as (_, writer):
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx-api-key: alice\r\n\r\n")
                await asked.wait()
            await proxy.is_over.wait()
    await limiter.open()
    assert (await limiter.peek("alice", "api")).used == 10


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "gcra"])
@pytest.mark.parametrize(("stated", "used"), [(0, 0), (3, 3), (10, 10), (17, 17)])
async def test_the_fields_tell_what_was_really_spent(algorithm: Any, stated: int, used: int) -> None:
    """As the next request finds it: a peek."""
    limiter = limiter_of(Policy("api", "50/day", match="/**", cost=10, algorithm=algorithm))

    async with scripted(costing(stated)) as upstream:
        async with (
            in_front_of(upstream, limiter=limiter) as address,
            httpx.AsyncClient() as client,
            asyncio.timeout(SOON_S),
        ):
            answer = await client.get(f"http://{address}/", headers={"x-api-key": "alice"})
    await limiter.open()
    peeked = await limiter.peek("alice", "api")
    assert peeked.used == used
    assert answer.headers["ratelimit"] == HeaderWriter().fields([peeked])[1][1].decode()


async def test_a_request_that_a_function_rejects_is_settled() -> None:
    def reject(request: object) -> int:
        raise HTTPException(400, "pages is no number")

    store = MemoryStore()
    counted = Policy("export", "3/day", match="/**", count="success")
    limiter = limiter_of(counted, Policy("pages", "3/day", match="/**", cost=reject), store=store)
    async with in_front_of("127.0.0.1:1", limiter=limiter, usage=UsageLog(store)) as address:
        answer = await ask(address, GET.replace(b"host", b"x-api-key: alice\r\nhost"))
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b'"export";r=3' in answer
    await limiter.open()
    assert (await limiter.peek("alice", "export")).used == 0
    assert [event.status for event in store.events] == [400]


async def test_what_is_charged_beyond_counts_in_a_share_too() -> None:
    seat = Policy("seat", "50/minute", match="/**", together="org", share=0.2)
    limiter = limiter_of(seat, Policy("org", "25/day", user_from=lambda _: "acme"))

    async def script(reader: StreamReader, writer: StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-ratelimit-cost: 5\r\n\r\nok")

    async with scripted(script) as upstream:
        async with (
            in_front_of(upstream, limiter=limiter) as address,
            httpx.AsyncClient() as client,
            asyncio.timeout(SOON_S),
        ):
            answers = [(await client.get(f"http://{address}/", headers={"x-api-key": "alice"})) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].headers["ratelimit"].startswith('"seat-day";r=0;')


async def test_a_cost_that_does_not_arrive_stays_as_it_was_and_is_counted() -> None:
    store = FarStore(arrives=False, answers=False)
    limiter = limiter_of(Policy("api", "50/day", match="/**", cost=10), store=store)

    async with scripted(costing(3, store)) as upstream:
        async with (
            in_front_of(upstream, limiter=limiter) as address,
            httpx.AsyncClient() as client,
            asyncio.timeout(SOON_S),
        ):
            request = asyncio.create_task(client.get(f"http://{address}/", headers={"x-api-key": "alice"}))
            await store.asked.wait()
            store.let_go.set()
            answer = await request
    assert answer.headers["ratelimit"].startswith('"api";r=40;')
    assert limiter.stats.lost["unreturned"] == 7


async def test_what_takes_long_to_settle_is_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The upstream was in time; what it said is not taken for silence meanwhile."""
    store = FarStore(arrives=False, answers=True)
    limiter = limiter_of(Policy("api", "50/day", match="/**", cost=10), store=store)

    loop = asyncio.get_running_loop()
    now = loop.time
    settings = ProxySettings(first_byte=4, idle=4)
    async with scripted(costing(3, store)) as upstream, in_front_of(upstream, settings, limiter=limiter) as address:
        asked = asyncio.create_task(ask(address, GET.replace(b"host: a", b"host: a\r\nx-api-key: alice")))
        await store.asked.wait()
        monkeypatch.setattr(loop, "time", lambda: now() + 5)
        for _ in range(10):
            await asyncio.sleep(0)
        store.let_go.set()
        answer = await asyncio.wait_for(asked, SOON_S)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert (answer.count(b"HTTP/1.1"), answer.endswith(b"\r\n\r\nok")) == (1, True)


@pytest.mark.parametrize("cost", [b"", b"x-ratelimit-cost: 7\r\n"])
async def test_a_cost_makes_no_handshake_of_another_one(cost: bytes) -> None:
    another = b"HTTP/1.1 101 Up\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: another\r\n"
    limiter = limiter_of(Policy("api", "100/day", match="/**"))
    async with answering(another + cost + b"\r\n") as (upstream, _), in_front_of(upstream, limiter=limiter) as address:
        answer = await ask(address, b"GET / HTTP/1.1\r\nhost: a\r\n" + WEBSOCKET + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 502 ")


# Slots and reservations behind the sidecar: back when the answer has ended, or the client has left.


ONE = Policy("api", "1 concurrent; 100/day", match="/**", cost=10)
TOKENS = Policy("api", "1000/day", match="/**", cost=100, reserve=True)
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
