"""The storages on a table: by URL, under races, after a fork, in front of a table that does not answer."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from limits import RateLimitItemPerMinute, RateLimitItemPerYear
from limits.aio import strategies as aio
from limits.errors import ConfigurationError, StorageError
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES

import ratelimit.limits
from ratelimit.errors import StoreUnavailable
from tests.engines import Engine

LIMIT = 20
AWAITED: dict[str, Any] = {**aio.STRATEGIES}

RACE = """
import asyncio, json, multiprocessing, sys, threading
import ratelimit.limits
from limits import RateLimitItemPerYear, strategies
from limits.aio import strategies as aio
from limits.storage import storage_from_string

url, limit, processes, threads = sys.argv[1:]
item = RateLimitItemPerYear(int(limit))
storage = storage_from_string(url)
storage.check()  # before the processes part: each goes on with connections of its own
storage_from_string("async+" + url)  # which imports what takes long

def by_threads(limiter):
    ready, hits = threading.Barrier(int(threads)), []

    def hit():
        ready.wait(60)
        hits.append(limiter.hit(item, "threads"))

    racers = [threading.Thread(target=hit) for _ in range(int(threads))]
    for one in racers:
        one.start()
    start.wait(60)
    for one in racers:
        one.join(100)
    return hits

async def by_tasks():
    storage, hits = storage_from_string("async+" + url), {}
    for name, strategy in aio.STRATEGIES.items():
        await storage.check()
        start.wait(60)
        limiter = strategy(storage)
        hits[name] = await asyncio.gather(*(limiter.hit(item, "tasks") for _ in range(int(threads))))
    await storage.close()
    return hits

def race(_):
    hits = {name: by_threads(strategy(storage)) for name, strategy in strategies.STRATEGIES.items()}
    return [hits, asyncio.run(by_tasks())]

fork = multiprocessing.get_context("fork")
start = fork.Barrier(int(processes))
with fork.Pool(int(processes)) as pool:
    print(json.dumps(pool.map(race, range(int(processes)), chunksize=1)))
"""


def url_on(engine: Engine, **settings: str) -> str:
    return engine.store_url(f"limits-{uuid4().hex[:8]}", create="true", **settings).replace(
        "endpoint=", "endpoint_url="
    )


@pytest.fixture
def storage(engine: Engine) -> Iterator[Any]:
    storage: Any = storage_from_string(url_on(engine))
    yield storage
    storage.close()


@pytest.mark.parametrize(("processes", "threads"), [(3, 8), pytest.param(8, 16, marks=pytest.mark.slow)])
def test_racing_processes_threads_and_tasks_take_exactly_the_limit(
    engine: Engine, processes: int, threads: int
) -> None:
    command = [sys.executable, "-c", RACE, url_on(engine, read_timeout="30"), *map(str, (LIMIT, processes, threads))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    by_process = json.loads(done.stdout)
    for way in range(2):
        for strategy in STRATEGIES:
            hits = [hit for process in by_process for hit in process[way][strategy]]
            assert (len(hits), sum(hits)) == (processes * threads, LIMIT), (strategy, way)


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_threads_and_event_loops_count_together(engine: Engine, strategy: str) -> None:
    url, item = url_on(engine), RateLimitItemPerYear(5)
    storage: Any = storage_from_string(url)
    ours: Any = storage_from_string(f"async+{url}")
    blocking, awaited = STRATEGIES[strategy](storage), AWAITED[strategy](ours)
    loop = asyncio.get_running_loop()
    hits = []
    for _ in range(3):
        hits += [blocking.hit(item, "alice"), await awaited.hit(item, "alice")]  # slowapi asks in the loop's thread
        assert asyncio.get_running_loop() is loop
    assert hits == [True] * 5 + [False]
    assert await asyncio.to_thread(blocking.get_window_stats, item, "alice") == pytest.approx(
        await awaited.get_window_stats(item, "alice"), abs=1e-3
    )
    await awaited.clear(item, "alice")
    assert blocking.get_window_stats(item, "alice").remaining == 5
    assert await awaited.hit(item, "alice")
    assert (await ours.check(), await ours.reset(), blocking.test(item, "alice", cost=5)) == (True, 1, True)
    storage.close()
    await ours.close()


def test_what_a_hit_costs(storage: Any) -> None:
    item, calls = RateLimitItemPerYear(3), storage._store.stats.calls
    expected = {
        # What is not Amazon's own is asked why it refuses to write, where it answers without an item.
        "fixed-window": ({"UpdateItem": 2, "GetItem": 1}, {"UpdateItem": 1}, {"UpdateItem": 1}),
        "moving-window": ({"GetItem": 1, "UpdateItem": 1},) * 2 + ({"GetItem": 1},),
        "sliding-window-counter": ({"GetItem": 1, "UpdateItem": 1},) * 2 + ({"GetItem": 1},),
    }
    assert storage.check()
    for strategy, costs in expected.items():
        limiter, asked = STRATEGIES[strategy](storage), []
        for cost in (1, 2, 1):
            calls.clear()
            limiter.hit(item, "alice", cost=cost)
            asked.append(dict(calls))
        assert tuple(asked) == costs, strategy


def test_reset_forgets_its_own_prefix_only(engine: Engine) -> None:
    url = url_on(engine)
    one: Any = storage_from_string(url, key_prefix="shop")
    other: Any = storage_from_string(f"{url}&key_prefix=shop2")
    for storage in (one, other):
        for user in range(30):
            assert storage.incr(f"user {user}", 3600) == 1
        assert storage.acquire_entry("alice", 2, 3600)
        assert storage.acquire_sliding_window_entry("alice", 2, 3600)
    assert (one.reset(), one.reset()) == (32, 0)
    assert (one.get("user 1"), other.get("user 1")) == (0, 1)
    one.close()
    other.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("dynamodb://", "storage.table: the URL names no table"),
        ("dynamodb://limits?regoin=eu-west-1", "storage.regoin: unknown parameter; did you mean 'region'"),
        ("dynamodb://limits?region=eu-west-1&region=x", "storage.region: is given twice"),
        ("dynamodb://limits?endpoint_url=here", "storage.endpoint: is not a URL"),
        ("dynamodb://limits?key_prefix=", "storage.key_prefix: the action is empty"),
        ("dynamodb://key:secret@limits", "storage: a store URL holds no credentials"),
        ("async+dynamodb://limits?pool=many", "storage.pool: must be a whole number"),
        ("async+dynamodb://limits/path", "storage: nothing may stand between the table and its parameters"),
    ],
)
def test_a_url_that_is_wrong_says_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{says.replace('+', '.')}"):
        storage_from_string(url)


def test_options_come_in_place_of_what_the_url_says() -> None:
    storage: Any = storage_from_string(
        "dynamodb://limits?region=eu-west-1&attempts=1", attempts=2, endpoint_url="http://localhost:1", fast=False
    )
    settings = storage._store.settings
    assert (settings.region, settings.attempts, settings.endpoint, settings.fast) == (
        *("eu-west-1", 2, "http://localhost:1", False),
    )
    with pytest.raises(ConfigurationError, match="max_keys: unknown parameter"):
        storage_from_string("dynamodb://limits", max_keys=5)


@pytest.mark.parametrize("wraps", [False, True])
async def test_a_table_that_does_not_answer_is_an_error_of_theirs_where_that_is_wanted(wraps: bool) -> None:
    url = f"dynamodb://limits?region=eu-west-1&endpoint_url=http://localhost:1&attempts=1&wrap_exceptions={wraps}"
    item, expected = RateLimitItemPerMinute(5), StorageError if wraps else StoreUnavailable
    storage: Any = storage_from_string(url)
    ours: Any = storage_from_string(f"async+{url}")
    for strategy in STRATEGIES:
        with pytest.raises(expected, match="localhost:1"):
            STRATEGIES[strategy](storage).hit(item, "alice")
    with pytest.raises(expected, match="localhost:1"):
        await AWAITED[strategy](ours).hit(item, "alice")
    assert not storage.check()
    assert not await ours.check()
    storage.close()
    await ours.close()


def test_the_schemes_are_known_by_importing_us() -> None:
    assert isinstance(storage_from_string("dynamodb://limits"), ratelimit.limits.DynamoDBStorage)
    assert isinstance(storage_from_string("async+dynamodb://limits"), ratelimit.limits.AsyncDynamoDBStorage)
