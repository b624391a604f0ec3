"""The table that a run counts in: on an engine started for it, or the user's own, which is looked through first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from ratelimit.config.secrets import masked
from ratelimit.dynamodb import schema
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.settings import Settings
from ratelimit.errors import ConfigError, StoreMisconfigured, StoreUnavailable
from ratelimit.factory import table_settings
from ratelimit.opening import open_store
from ratelimit.testing.engines import EngineError, start

from loadtest.plan import MARK
from loadtest.run.options import Options, Trouble

TABLE: Final = "ratelimit-loadtest"
POOL: Final = "64"
_OURS: Final = f"USR#{MARK}"


@contextmanager
def place(options: Options) -> Iterator[str]:
    """The URL of its store. Raises `Trouble`."""
    if options.store is not None:
        asyncio.run(_check_own(options.store, foreign=options.foreign))
        yield options.store
    elif options.engine == "memory":
        yield "memory://"
    else:
        try:
            with start(options.engine) as engine:
                url = engine.store_url(TABLE, create="true", pool=POOL)
                asyncio.run(_open(url))
                yield url
        except EngineError as error:
            raise Trouble(f"{options.engine}: {error}", status=3) from error


async def _check_own(url: str, *, foreign: bool) -> None:
    settings = _settings(url)
    await _open(url)
    if foreign:
        return
    stranger = await _stranger(settings)
    if stranger is not None:
        raise Trouble(
            f"table {settings.table!r} holds what no load test has written ({stranger!r}): take a table of its own, or "
            "add --foreign if it may be written to all the same"
        )


def _settings(url: str) -> Settings:
    try:
        return table_settings(url)
    except ConfigError as error:
        raise Trouble(f"{error}; for the embedded store: --engine memory") from error


async def _open(url: str) -> None:
    try:
        async with open_store(url):
            return
    except (StoreUnavailable, StoreMisconfigured, ConfigError) as error:
        raise Trouble(f"{masked(url)}: {error}", status=3) from error


async def _stranger(settings: Settings) -> str | None:
    """The key of an item that is not a load test's; the whole table is read, unless there is one."""
    request: dict[str, Any] = {"TableName": settings.table, "ProjectionExpression": schema.PK}
    async with await connect(replace(settings, read_timeout=15.0)) as connection:
        while True:
            answer = await connection.api.scan(**request)
            for item in answer["Items"]:
                key = next(iter(item[schema.PK].values()))
                if not str(key).startswith(_OURS):
                    return str(key)
            if "LastEvaluatedKey" not in answer:
                return None
            request["ExclusiveStartKey"] = answer["LastEvaluatedKey"]
