"""The fast transport on bad days: no hang, no leak, nothing sent twice that may have been executed."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ratelimit import AccessDenied, Policy, StoreUnavailable
from ratelimit.clock import SECOND, SystemClock
from ratelimit.dynamodb import AnswerLost, DynamoDBStore, Settings, StoreUnreachable
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.errors import Place
from ratelimit.dynamodb.expressions import encode
from ratelimit.dynamodb.schema import limit_key, limit_pk
from ratelimit.dynamodb.session import find_endpoint
from ratelimit.dynamodb.store import new_fast_transport
from ratelimit.dynamodb.transport.base import BotoTransport
from ratelimit.dynamodb.transport.connection import Endpoint, open_connection
from ratelimit.dynamodb.transport.fast import FastTransport, RequestBodies
from ratelimit.limiter.compiled_policy import CachedRecord, CompiledPolicy
from ratelimit.names import Key
from ratelimit.store import Add, Drop, Expect, Op, Outcome, Put, Write
from ratelimit.testing import FakeClock
from tests.faults import Behaviour, FaultServer, error, hang_up, held, slow, status
from tests.faults.oddities import checksum, chunked, endless, gzipped, only, punctual, raw, then_close, twice
from tests.profiles import examples

ALICE = Key.of("alice", "hint")
ADD = Write((Add("d1", 1, 5000),), 1_999_999_999)
TEN_MINUTES = 600


@pytest.fixture
async def store(server: FaultServer) -> AsyncIterator[DynamoDBStore]:
    async with new_store(server) as store:
        yield store
        assert not store.stats.retries


def new_store(server: FaultServer, **options: Any) -> DynamoDBStore:
    return DynamoDBStore(table="limits", endpoint=server.endpoint, **{"read_timeout": 10, "attempts": 1} | options)


async def apply(store: DynamoDBStore) -> Outcome:
    return await store.apply(ALICE, ADD, now=0)


async def until(condition: Callable[[], object]) -> None:
    """Returns when it holds; what happens on real sockets takes its moment."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


async def nothing_left(server: FaultServer, before: set[asyncio.Task[Any]]) -> None:
    """Every connection and every task is gone, after the moment that it takes the server to notice."""
    await until(lambda: not server.connections and asyncio.all_tasks() - {asyncio.current_task()} <= before)


def new_transport(client: Client, endpoint: Endpoint, stats: Stats, clock: FakeClock | None = None) -> FastTransport:
    settings = Settings(table="limits", read_timeout=10)
    if clock is not None:
        client.clock.clock = clock
    return new_fast_transport(client, endpoint, BotoTransport(client, settings, stats), settings, stats)


@pytest.mark.parametrize("behaviour", [chunked(), chunked(size=1), checksum(), twice()])
async def test_odd_but_good(server: FaultServer, store: DynamoDBStore, behaviour: Behaviour) -> None:
    server.then(behaviour)
    assert await apply(store) == Outcome(True, {"d1": 1})
    assert await apply(store) == Outcome(True, {"d1": 2})
    assert store.stats.fallbacks == {}


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (gzipped(), "garbage"),
        (checksum(off_by=1), "garbage"),
        (endless(promised=True), "too_large"),
        (endless(promised=False), "too_large"),
        (raw(b"HTTP/1.1 100 Continue\r\n\r\n"), "garbage"),
        (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "garbage"),
        (raw(b"HTTP/1.1 101 -\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"), "garbage"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 9\r\n\r\n"), "garbage"),
        (raw(b"HTTP/1.1 200 OK\r\n"), "timeout"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "timeout"),
        (raw(b""), "timeout"),
        (hang_up(), "closed"),
    ],
)
async def test_an_answer_that_cannot_be_used(server: FaultServer, behaviour: Behaviour, reason: str) -> None:
    """It may have been executed: it is not sent again, and the connection is not used again."""
    server.then(behaviour)
    async with new_store(server, read_timeout=1 if reason == "timeout" else 10) as store:
        with pytest.raises(AnswerLost):
            await apply(store)
        assert server.received["UpdateItem"] == 1
        assert store.stats.dropped == {reason: 1}
        assert (await apply(store)).applied
        assert store.stats.fallbacks == {}


@pytest.mark.parametrize("announced", [True, False])
async def test_a_server_that_closes_after_each_answer(
    server: FaultServer, store: DynamoDBStore, announced: bool
) -> None:
    server.always(then_close(announced=announced))
    for count in range(1, 12):
        assert (await apply(store)).record == {"d1": count}
        await until(lambda count=count: store.stats.dropped == {"closed": count})  # type: ignore[misc]


async def test_connections_that_die_while_idle_are_noticed(server: FaultServer, store: DynamoDBStore) -> None:
    await asyncio.gather(*(apply(store) for _ in range(10)))
    await until(lambda: store.stats.connections == 10)  # those that turned out not to be needed are made all the same
    await server.refuse()
    await server.listen()
    await until(lambda: store.stats.dropped["closed"] >= 10)
    assert (await apply(store)).applied
    assert server.received["UpdateItem"] == 11


async def test_more_callers_than_connections(server: FaultServer) -> None:
    server.always(slow(0.002))
    async with new_store(server, pool=3, connect_timeout=30) as store:
        outcomes = await asyncio.gather(*(apply(store) for _ in range(60)))
        assert sorted(outcome.record["d1"] for outcome in outcomes) == list(range(1, 61))
        assert store.stats.connections == 3


async def test_waiting_for_a_connection_ends(server: FaultServer) -> None:
    """Nothing was sent: it may be tried again."""
    server.always(slow(600))
    async with new_store(server, pool=2, connect_timeout=0.5, read_timeout=20) as store:
        busy = [asyncio.create_task(apply(store)) for _ in range(2)]
        await until(lambda: server.received["UpdateItem"] == 2)
        with pytest.raises(StoreUnreachable, match="one of 2 connections; raise pool"):
            await apply(store)
        assert store.stats.dropped == {"no_connection": 1}
        await store.close()
        assert {type(one) for one in await asyncio.gather(*busy, return_exceptions=True)} == {AnswerLost}


async def test_giving_up_harms_nobody(server: FaultServer, store: DynamoDBStore) -> None:
    """A late answer must not become the next caller's."""
    released = threading.Event()
    server.always(held(released))
    for number in range(3):
        late = asyncio.create_task(apply(store))
        await until(lambda number=number: server.received["UpdateItem"] > number)  # type: ignore[misc]
        late.cancel()
        with pytest.raises(asyncio.CancelledError):
            await late
    server.recover()
    released.set()
    counts = [(await apply(store)).record["d1"] for _ in range(5)]
    assert counts == sorted(set(counts))
    assert store.stats.dropped == {"cancelled": 3}


async def test_a_storm_of_everything_leaks_nothing(server: FaultServer) -> None:
    """Impatience, pauses, closed connections and garbage: in the end every connection and every task is gone, what was
    said to be counted is, and nothing was sent twice."""
    before = asyncio.all_tasks()
    store = new_store(server, pool=8)
    await store.open()
    await apply(store)
    applied = 1  # on a busy machine it may remain the only one

    async def impatient(number: int) -> None:
        nonlocal applied
        try:
            async with asyncio.timeout(0.001 * (number % 9)):
                await apply(store)
                applied += 1
        except (TimeoutError, StoreUnavailable):
            pass

    for behaviour in (slow(0.004), hang_up(), twice(), gzipped(), then_close(announced=False), status(500)):
        server.always(behaviour)
        await asyncio.gather(*(impatient(number) for number in range(40)))
        assert server.connections <= 8 + 1 + 8  # the pool, the slow transport's, and some that are being closed
    await store.close()
    await nothing_left(server, before)
    counted = int(server.table.items[("USR#alice#LIM#hint", "STATE")]["d1"]["N"])
    assert 0 < applied <= counted <= server.received["UpdateItem"] <= store.stats.calls["UpdateItem"]


async def test_closing_with_requests_under_way(server: FaultServer) -> None:
    server.always(slow(600))
    before = asyncio.all_tasks()
    async with new_store(server, connect_timeout=60, read_timeout=600) as store:
        checks = [asyncio.create_task(apply(store)) for _ in range(20)]
        await until(lambda: server.received["UpdateItem"] == 20)
    assert {type(one) for one in await asyncio.gather(*checks, return_exceptions=True)} == {AnswerLost}
    await server.refuse()
    await nothing_left(server, before)


def test_a_loop_that_ends_with_requests_under_way() -> None:
    """Warnings are errors here: an unclosed transport or a task nobody waited for would fail the test."""

    async def leave() -> None:
        async with FaultServer() as server:
            server.always(slow(600))
            async with new_store(server, connect_timeout=60, read_timeout=600) as store:
                tasks = [asyncio.create_task(apply(store)) for _ in range(5)]
                await until(lambda: server.received["UpdateItem"] == 5)
                tasks[0].cancel()
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(leave())


async def test_a_name_that_does_not_resolve() -> None:
    endpoint = Endpoint(url="http://nowhere.invalid", host="nowhere.invalid", port=80, region="x", tls=None)
    with pytest.raises(StoreUnreachable):
        await open_connection(endpoint, Place("limits", "eu-west-1", endpoint.url), 5, lambda connection, ending: None)


async def test_an_unknown_error_is_left_to_aiobotocore(server: FaultServer, store: DynamoDBStore) -> None:
    server.then(error("NeverHeardOfException"))
    assert (await apply(store)).record == {"d1": 1}
    assert store.stats.fallbacks == {"unknown_error": 1}


async def test_credentials_that_expire_under_load(server: FaultServer) -> None:
    """Refused ones are replayed once by aiobotocore; new ones are in use with the next check."""
    async with await connect(Settings(table="limits", endpoint=server.endpoint)) as client:
        stats = Stats()
        transport = new_transport(client, await find_endpoint(client), stats)

        def renew() -> None:
            client.credentials.access_key = "AKNEXT"

        server.always(only("AKIDEXAMPLE"))
        assert (await transport.apply(ALICE, ADD)).applied
        server.always(only("AKNEXT", then=renew))
        answers = await asyncio.gather(*(transport.apply(ALICE, ADD) for _ in range(20)))
        assert all(answer.applied for answer in answers)
        assert 1 <= stats.fallbacks["denied"] <= 20
        assert server.table.items[("USR#alice#LIM#hint", "STATE")]["d1"] == {"N": "21"}
        seen = dict(stats.fallbacks)
        assert (await transport.apply(ALICE, ADD)).applied
        assert stats.fallbacks == seen
        server.always(only("NOBODY"))
        with pytest.raises(AccessDenied, match="expired"):
            await transport.apply(ALICE, ADD)
        await transport.close()


@pytest.mark.parametrize("off", [-TEN_MINUTES, TEN_MINUTES, -7 * 86_400])
async def test_a_clock_that_is_off(server: FaultServer, off: int) -> None:
    """One refusal teaches it, whoever is under way at that moment; not one check fails."""
    now = SystemClock().now() // SECOND
    server.always(punctual(lambda: now))
    async with await connect(Settings(table="limits", endpoint=server.endpoint)) as client:
        stats, clock = Stats(), FakeClock(now + off)
        transport = new_transport(client, await find_endpoint(client), stats, clock=clock)
        answers = await asyncio.gather(*(transport.apply(ALICE, ADD) for _ in range(10)))
        assert all(answer.applied for answer in answers)
        assert set(stats.fallbacks) == {"clock"}
        learned = stats.fallbacks["clock"]
        clock.advance(100)
        assert (await transport.apply(ALICE, ADD)).applied
        assert stats.fallbacks == {"clock": learned}
        clock.advance(-off)
        assert (await transport.apply(ALICE, ADD)).applied
        assert stats.fallbacks == {"clock": learned + 1}
        await transport.close()


# The bodies say exactly what `expressions` says, whatever template they were made from.


CONSTANT = {"TableName": "li%mits"}
numbers = st.integers(-3, 3) | st.integers(-(10**19), 10**19)
bounds = st.none() | numbers
fields = st.sampled_from(["d20758", "h493", "gd", "u2601", "50%d", 'a"b', "ß"])


@st.composite
def writes(draw: st.DrawFn) -> Write:
    changed = draw(st.lists(fields, unique=True, max_size=5))
    ops: list[Op] = []
    for field in changed:
        if draw(st.booleans()):
            ops.append(Expect(field, draw(bounds), draw(bounds), draw(st.booleans())))
        kind = draw(st.sampled_from("apd"))
        if kind == "a":
            ops.append(Add(field, draw(numbers), draw(bounds)))
        else:
            ops.append(Put(field, draw(numbers)) if kind == "p" else Drop(field))
    return Write(tuple(ops), draw(st.integers(0, 10**10)), draw(st.booleans()), recurs=draw(st.booleans()))


def said(body: bytes) -> object:
    return json.loads(body)


@settings(max_examples=examples(150))
@given(st.lists(writes(), min_size=1, max_size=8), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_a_body_is_the_encoded_update(some: list[Write], user: str) -> None:
    bodies = RequestBodies(CONSTANT, limit=3)
    key = Key(user, "hint")
    for write in (*some, *some):
        body, digest = bodies.body(limit_pk(key), write)
        assert said(body) == {**CONSTANT, **encode(write), "Key": limit_key(key)}
        assert digest == sha256(body).hexdigest()


def test_what_never_recurs_takes_the_place_of_nothing_that_does() -> None:
    """A bucket's writes are each another one; a window's are the same for every user."""
    bodies = RequestBodies(CONSTANT, limit=3)
    now, cached = 1_767_614_400_000_000, CachedRecord()
    cached.learn({"gd": now * 1000, "gdl": 9, "d20458": 1}, now)
    window = CompiledPolicy(Policy("hint", "1000/day"))
    bucket = CompiledPolicy(Policy("run", "9/day", algorithm="gcra"))
    kept = window.spend(now, 1, cached)
    assert kept is not None
    bodies.body("USR#a#LIM#hint", kept)
    for later in range(9):
        write = bucket.spend(now + later, 1, cached)
        assert write is not None
        bodies.body("USR#a#LIM#run", write)
    assert list(bodies._known) == [kept]
    assert window.spend(now, 1, cached) is kept


def test_what_is_kept_is_bounded() -> None:
    bodies = RequestBodies(CONSTANT, limit=10)
    for number in range(50):
        bodies.body("USR#a#LIM#b", Write((Add(f"d{number}", 1),), 5, recurs=True))
    assert len(bodies._known) == 10
    assert len(bodies._templates) <= 10
