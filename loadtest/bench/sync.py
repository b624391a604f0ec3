"""What a check costs without an event loop, beside what it could have been (a loop for each thread, a loop in a thread
of its own), botocore's client, which is boto3's, and the least that any client could do."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from unittest.mock import patch
from urllib.parse import urlsplit

from loadtest.bench.ours import ACTION, ROOMY, TWO, USERS
from loadtest.bench.report import BenchTarget, Findings, Rounds, Row, Seconds
from loadtest.bench.runner import Entry, Measured, contest, ratio
from loadtest.bench.stub import stub_server
from loadtest.bench.worker import Contender, Turn, at
from ratelimit.limiter import Limiter
from ratelimit.policy import AlgorithmName, Policy
from ratelimit.store import MemoryStore

if TYPE_CHECKING:
    from ratelimit import sync

MEMORY = "sync check, memory"
DYNAMODB = "sync check, DynamoDB (stub)"
BARE = "boto3's client, a bare update_item"
FLOOR = "a check's bytes on a bare socket"

_HERE = "loadtest.bench.sync"
_MEMORY_US, _DYNAMODB_US, _TIMES = 8, 45, 10


def run(rounds: Rounds = 7, seconds: Seconds = 0.5) -> Findings:
    """The limiter without an event loop, in memory and on a stub: one check after the other, but where threads are
    named."""
    with stub_server() as endpoint:
        measured, notes = contest(_entries(endpoint), rounds=rounds, seconds=seconds)
    rows = [Row(name, _figures(one, measured.get(BARE), measured.get(FLOOR))) for name, one in measured.items()]
    return Findings(rows, _targets(measured), notes)


def _entries(endpoint: str) -> list[Entry]:
    on_stub = {"endpoint": endpoint}
    return [
        Entry(MEMORY, f"{_HERE}:in_memory"),
        Entry("sync check, memory, gcra", f"{_HERE}:in_memory", {"algorithm": "gcra"}),
        Entry(DYNAMODB, f"{_HERE}:on_dynamodb", on_stub),
        Entry("sync check, DynamoDB (stub), gcra", f"{_HERE}:on_dynamodb", {**on_stub, "algorithm": "gcra"}),
        Entry("sync check, DynamoDB (stub), 16 threads", f"{_HERE}:on_dynamodb", {**on_stub, "threads": 16}),
        Entry("instead: an event loop in each thread", f"{_HERE}:loop_of_its_own", on_stub),
        Entry("instead: one event loop, in a thread", f"{_HERE}:loop_in_a_thread", on_stub),
        Entry(BARE, f"{_HERE}:bare", on_stub),
        Entry(FLOOR, f"{_HERE}:floor", on_stub),
        Entry("sync check, memory, compiled", f"{_HERE}:in_memory", build="compiled"),
        Entry("sync check, DynamoDB (stub), compiled", f"{_HERE}:on_dynamodb", on_stub, "compiled"),
    ]


def _figures(one: Measured, bare: Measured | None, floor: Measured | None) -> dict[str, float | None]:
    return {
        "CPU µs per check": one.median("cpu_us"),
        "p50 µs": one.median("p50_us"),
        "p99 µs": one.median("p99_us"),
        "checks/s": one.median("per_second"),
        "times less CPU than boto3": None if bare is None else ratio(bare, one, "cpu_us"),
        "times the bare socket": None if floor is None else ratio(one, floor, "cpu_us"),
    }


def _targets(measured: dict[str, Measured]) -> list[BenchTarget]:
    targets = []
    for name, most in ((MEMORY, _MEMORY_US), (DYNAMODB, _DYNAMODB_US)):
        if name in measured:
            targets.append(BenchTarget(f"{name}, µs", measured[name].median("cpu_us"), "at most", most))
    if DYNAMODB in measured and BARE in measured:
        less = ratio(measured[BARE], measured[DYNAMODB], "cpu_us")
        targets.append(BenchTarget(f"CPU of {BARE}, times that of: {DYNAMODB}", less, "at least", _TIMES))
    return targets


# The contenders.

_NEVER_LATE = 30.0
_READ_BYTES = 1 << 16

Check = Callable[[str], object]


@asynccontextmanager
async def in_memory(algorithm: AlgorithmName = "fixed_window") -> AsyncIterator[Contender]:
    from ratelimit import sync

    limiter = sync.Limiter(MemoryStore(), [Policy(ACTION, ROOMY, algorithm=algorithm)])
    yield contender(lambda user: limiter.check(user, ACTION))


@asynccontextmanager
async def on_dynamodb(
    endpoint: str, threads: int = 1, algorithm: AlgorithmName = "fixed_window"
) -> AsyncIterator[Contender]:
    limiter = await asyncio.to_thread(_opened_for_threads, endpoint, algorithm)

    def check(user: str) -> None:
        decision = limiter.check(user, ACTION)
        if not decision.allowed or decision.reason is not None:
            raise AssertionError(decision)

    yield contender(check, threads=threads)
    await asyncio.to_thread(limiter.close)


@asynccontextmanager
async def loop_of_its_own(endpoint: str) -> AsyncIterator[Contender]:
    """The thread that asks has an event loop, and runs it until it has its answer."""
    loop = asyncio.new_event_loop()
    limiter = await asyncio.to_thread(lambda: loop.run_until_complete(_opened(endpoint)))
    yield contender(lambda user: loop.run_until_complete(limiter.check(user, ACTION)))
    await asyncio.to_thread(lambda: loop.run_until_complete(limiter.close()))
    loop.close()


@asynccontextmanager
async def loop_in_a_thread(endpoint: str) -> AsyncIterator[Contender]:
    """One thread has an event loop, and answers what the others ask."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    limiter = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_opened(endpoint), loop))
    yield contender(lambda user: asyncio.run_coroutine_threadsafe(limiter.check(user, ACTION), loop).result())
    await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(limiter.close(), loop))


@asynccontextmanager
async def bare(endpoint: str) -> AsyncIterator[Contender]:
    """One conditional `UpdateItem`, of the size that a check sends, and no limiter."""
    from botocore.config import Config
    from botocore.session import get_session

    from loadtest.bench.contenders_boto import check_of

    client = get_session().create_client("dynamodb", endpoint_url=endpoint, config=Config(proxies={}))

    yield contender(lambda user: client.update_item(**check_of(user)))
    client.close()


@asynccontextmanager
async def floor(endpoint: str) -> AsyncIterator[Contender]:
    """The bytes of a check, sent and answered on a bare socket."""
    request = await asyncio.to_thread(_request_of_a_check, endpoint)
    server = urlsplit(endpoint)
    with socket.create_connection((server.hostname, server.port)) as connected:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def exchange(user: str) -> None:
            connected.sendall(request)
            connected.recv(_READ_BYTES)

        yield contender(exchange)


def _request_of_a_check(endpoint: str) -> bytes:
    """As it is sent once the record is known."""
    sent: list[bytes] = []
    send = socket.socket.send

    def noted(connected: socket.socket, data: bytes) -> int:
        sent.append(data)
        return send(connected, data)

    with _opened_for_threads(endpoint) as limiter, patch.object(socket.socket, "send", noted):
        for _ in range(2):
            limiter.check("user-0", ACTION)
    return sent[-1]


def _opened_for_threads(endpoint: str, algorithm: AlgorithmName = "fixed_window") -> sync.Limiter:
    from ratelimit import sync

    store = sync.open_store(f"dynamodb://bench?endpoint={endpoint}")
    return sync.Limiter(store, [Policy(ACTION, TWO, algorithm=algorithm)], deadline=_NEVER_LATE)


async def _opened(endpoint: str) -> Limiter:
    from ratelimit.dynamodb import DynamoDBStore

    limiter = Limiter(DynamoDBStore(table="bench", endpoint=endpoint), [Policy(ACTION, TWO)], deadline=_NEVER_LATE)
    await limiter.open()
    return limiter


def contender(check: Check, *, threads: int = 1) -> Contender:
    """Its turns are taken by so many threads, in which no event loop runs."""
    users = itertools.cycle([f"user-{number}" for number in range(USERS)])

    async def one() -> None:
        await asyncio.to_thread(check, next(users))

    async def turn(*, seconds: float, at_once: int) -> Turn:
        return await asyncio.to_thread(_take_turn, check, seconds, threads)

    return Contender(one, turn=turn)


def _take_turn(check: Check, seconds: float, threads: int) -> Turn:
    clock = time.perf_counter
    cpu, began = time.process_time(), clock()
    until = began + seconds

    def loop(number: int) -> list[float]:
        users = itertools.cycle([f"user-{one}" for one in range(number, USERS, threads)])
        times: list[float] = []
        now = clock()
        while now < until:
            sent = now
            check(next(users))
            now = clock()
            times.append(now - sent)
        return times

    if threads == 1:
        times = loop(0)
    else:
        with ThreadPoolExecutor(threads) as pool:
            times = [taken for some in pool.map(loop, range(threads)) for taken in some]
    ended, cpu = clock(), time.process_time() - cpu
    times.sort()
    return Turn(len(times), ended - began, cpu, at(times, 0.50), at(times, 0.99))
