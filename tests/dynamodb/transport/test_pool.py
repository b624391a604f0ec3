"""Which connection goes first, which are closed, and who gets one when there are too few."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from ratelimit.dynamodb import StoreUnreachable
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.errors import Place
from ratelimit.dynamodb.transport.connection import Connection, Ending, Endpoint, elapsed, open_connection
from ratelimit.dynamodb.transport.pool import MAX_IDLE_S, Pool
from tests.faults import FaultServer


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
async def pool(server: FaultServer, stats: Stats) -> AsyncIterator[Pool]:
    endpoint = Endpoint(
        url=server.endpoint, host="127.0.0.1", port=int(server.endpoint.split(":")[2]), region="x", tls=None
    )

    async def connect(ended: Callable[[Connection, Ending], None]) -> Connection:
        return await open_connection(endpoint, Place("limits", "x", endpoint.url), 1, ended)

    pool = Pool(connect, stats, size=3, wait_timeout=30, answer_timeout=1000)
    yield pool
    await pool.close()


async def test_the_last_used_goes_first_and_the_others_fall_idle(pool: Pool, stats: Stats) -> None:
    await pool.warm(10)
    assert len(pool) == 3
    began = elapsed()
    for later in range(20):
        connection = pool.take(began + later)
        assert connection is not None
        pool.release(connection, began + later)
    pool.sweep(began + MAX_IDLE_S + 1)
    assert len(pool) == 1
    assert stats.dropped == {"idle": 2}
    assert pool.take(began + MAX_IDLE_S + 1) is connection


async def test_a_connection_that_the_server_has_closed_takes_no_request(pool: Pool, stats: Stats) -> None:
    """From the moment it is known: the transport says so a turn of the loop later, and takes what goes nowhere."""
    await pool.warm(1)
    connection = pool.take(elapsed())
    assert connection is not None
    pool.release(connection, elapsed())
    connection.eof_received()
    assert pool.take(elapsed()) is None
    assert stats.dropped == {"closed": 1}


async def test_an_overdue_answer_ends_the_connection(pool: Pool, server: FaultServer) -> None:
    connection = await pool.wait()
    answer = connection.ask(b"POST / HTTP/1.1\r\n", elapsed())
    assert isinstance(answer, asyncio.Future)
    pool.sweep(elapsed() + 999)
    assert not answer.done()
    pool.sweep(elapsed() + 1001)
    assert answer.exception() is not None
    assert len(pool) == 0


async def test_who_came_first_is_served_first(pool: Pool) -> None:
    connections = [await pool.wait() for _ in range(3)]
    order: list[int] = []

    async def wait(number: int) -> None:
        connection = await pool.wait()
        order.append(number)
        pool.release(connection, elapsed())

    waiting = [asyncio.create_task(wait(number)) for number in range(5)]
    await asyncio.sleep(0)
    pool.release(connections[0], elapsed())
    await asyncio.gather(*waiting)
    assert order == [0, 1, 2, 3, 4]


async def test_who_leaves_the_queue_takes_no_connection_along(pool: Pool) -> None:
    connections = [await pool.wait() for _ in range(3)]
    leaving = asyncio.create_task(pool.wait())
    staying = asyncio.create_task(pool.wait())
    await asyncio.sleep(0)
    pool.release(connections[0], elapsed())
    leaving.cancel()  # its connection is already on the way
    assert await staying is connections[0]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_a_connection_that_ends_makes_room(pool: Pool) -> None:
    connections = [await pool.wait() for _ in range(3)]
    waiting = asyncio.create_task(pool.wait())
    await asyncio.sleep(0)
    connections[1].end("closed")
    assert await waiting not in connections


async def test_a_handshake_outlives_the_impatient(pool: Pool) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await pool.wait()
    await pool.warm(0)
    assert len(pool) == 1


async def test_everybody_hears_that_nothing_is_there(pool: Pool, server: FaultServer, stats: Stats) -> None:
    await server.refuse()
    results = await asyncio.gather(*(pool.wait() for _ in range(10)), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnreachable}
    assert stats.dropped == {"unreachable": 10}
    await server.listen()
    assert (await pool.wait()).usable


async def test_a_closed_pool(pool: Pool, server: FaultServer) -> None:
    for _ in range(3):
        await pool.wait()
    waiting = asyncio.create_task(pool.wait())
    await asyncio.sleep(0)
    await pool.close()
    await pool.close()
    for late in (waiting, pool.wait()):
        with pytest.raises(StoreUnreachable, match="closed"):
            await late
    assert len(pool) == 0
