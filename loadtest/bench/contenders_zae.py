"""zae-limiter as a contender (`pip install zae-limiter`), in the peers' own virtual environment.

Its warm path: the limits are stored and cached, the buckets exist, and each `acquire` is one speculative write.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from zae_limiter import Limit, RateLimiter, RateLimitExceeded, Repository  # type: ignore[import-not-found]
from zae_limiter import repository as zae

from loadtest.bench.contenders_boto import POOL, WRITES, CallCounts, counted
from loadtest.bench.worker import Contender

_USERS = 256
_ROOMY = 1_000_000_000
_STACK = "bench-zae"


@asynccontextmanager
async def on_dynamodb(endpoint: str) -> AsyncIterator[Contender]:
    """A stack of its own, without the infrastructure that only AWS has."""
    async with _opened(endpoint) as (repository, limiter):
        await repository.set_system_defaults(limits=[Limit.per_hour("requests", _ROOMY)])
        users = itertools.cycle([f"user-{number}" for number in range(_USERS)])

        async def call() -> None:
            async with limiter.acquire(entity_id=next(users), resource="hint", consume={"requests": 1}):
                pass

        for _ in range(2 * _USERS):
            await call()

        async def count() -> dict[str, float]:
            return await counted(await repository._get_client(), call)

        yield Contender(call, count)


@asynccontextmanager
async def _opened(endpoint: str) -> AsyncIterator[tuple[Any, Any]]:
    _open_as_many_connections()
    maker = Repository(name=_STACK, region="eu-west-1", endpoint_url=endpoint, _skip_deprecation_warning=True)
    await maker.create_table()
    await maker.close()
    async with _limiter(endpoint) as opened:
        yield opened


@asynccontextmanager
async def _limiter(endpoint: str) -> AsyncIterator[tuple[Any, Any]]:
    builder = Repository.builder().stack(_STACK).region("eu-west-1").endpoint_url(endpoint).auto_update(False)
    repository = await builder.build()
    async with RateLimiter(repository=repository) as limiter:
        yield repository, limiter


async def operations(endpoint: str, times: int) -> dict[str, dict[str, float]]:
    """What each of its operations asks of the store, warm, by the names that `operations.py` has for them."""
    async with _opened(endpoint) as (repository, limiter), _limiter(endpoint) as (_, another):
        await repository.set_system_defaults(limits=[Limit.per_day("requests", _ROOMY)])
        await repository.set_resource_defaults("little", [Limit.per_day("requests", 2)])
        users = [f"user-{number}" for number in range(times)]
        await _make_families(limiter, users)

        async def acquire(user: str, resource: str = "hint", *, by: Any = limiter, settled: int = 0) -> None:
            with suppress(RateLimitExceeded):
                async with by.acquire(user, resource, {"requests": 1 + settled}) as lease:
                    if settled:
                        await lease.adjust(requests=-settled)

        client = await repository._get_client()

        async def count(ask: Callable[[str], Awaitable[None]]) -> dict[str, float]:
            with CallCounts(client) as counts:
                for user in users:
                    await ask(user)
            writes = sum(counts.requests[name] for name in WRITES)
            reads = counts.requests.total() - writes
            return {"writes": writes / times, "reads": reads / times, "write units": counts.write_units / times}

        for user in users:
            for _ in range(2):
                await acquire(user)
                await acquire(f"child-{user}")
                await acquire(f"orphan-{user}")
            await acquire(user, "little")
            await acquire(user, "little", by=another)
            await acquire(f"empty-{user}", by=another)
        return {
            "check": await count(acquire),
            "refused": await count(lambda user: acquire(user, "little")),
            "refused again at once": await count(lambda user: acquire(user, "little")),
            "reserve and settle": await count(lambda user: acquire(user, settled=300)),
            "two keys": await count(lambda user: acquire(f"child-{user}")),
            "two keys, the second refused": await count(lambda user: acquire(f"orphan-{user}")),
        }


async def _make_families(limiter: Any, users: list[str]) -> None:
    """A child of a parent that has room, and one of a parent that soon has not."""
    for user in users:
        for parent, child in ((f"parent-{user}", f"child-{user}"), (f"empty-{user}", f"orphan-{user}")):
            await limiter.create_entity(parent)
            await limiter.create_entity(child, parent_id=parent, cascade=True)
        await limiter.set_limits(f"empty-{user}", [Limit.per_day("requests", 3)])


def _open_as_many_connections() -> None:
    """As the others may. It has no setting for that, and with aiobotocore's ten most of 32 callers starve."""

    def opened() -> AioSession:
        session = get_session()
        session.set_default_client_config(AioConfig(max_pool_connections=POOL, proxies={}))
        return session

    zae.get_session = opened


if __name__ == "__main__":
    print(json.dumps(asyncio.run(operations(sys.argv[1], int(sys.argv[2])))))  # noqa: T201
