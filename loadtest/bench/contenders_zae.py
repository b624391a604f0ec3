"""zae-limiter as a contender (`pip install zae-limiter`), in the peers' own virtual environment.

Its warm path: the limits are stored and cached, the buckets exist, and each `acquire` is one speculative write.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from zae_limiter import Limit, RateLimiter, Repository  # type: ignore[import-not-found]
from zae_limiter import repository as zae

from loadtest.bench.contenders_boto import counted
from loadtest.bench.worker import Contender

_USERS = 256
_ROOMY = 1_000_000_000
_STACK = "bench-zae"


@asynccontextmanager
async def on_dynamodb(endpoint: str, pool: int = 64) -> AsyncIterator[Contender]:
    """A stack of its own, without the infrastructure that only AWS has."""
    _open_as_many_connections(pool)
    builder = Repository.builder().stack(_STACK).region("eu-west-1").endpoint_url(endpoint).auto_update(False)
    maker = Repository(name=_STACK, region="eu-west-1", endpoint_url=endpoint, _skip_deprecation_warning=True)
    await maker.create_table()
    await maker.close()
    repository = await builder.build()
    await repository.set_system_defaults(limits=[Limit.per_hour("requests", _ROOMY)])
    async with RateLimiter(repository=repository) as limiter:
        users = itertools.cycle([f"user-{number}" for number in range(_USERS)])

        async def call() -> None:
            async with limiter.acquire(entity_id=next(users), resource="hint", consume={"requests": 1}):
                pass

        for _ in range(2 * _USERS):
            await call()

        async def count() -> dict[str, float]:
            return await counted(await repository._get_client(), call)

        yield Contender(call, count)


def _open_as_many_connections(pool: int) -> None:
    """As the others may. It has no setting for that, and with aiobotocore's ten most of 32 callers starve."""

    def opened() -> AioSession:
        session = get_session()
        session.set_default_client_config(AioConfig(max_pool_connections=pool, proxies={}))
        return session

    zae.get_session = opened
