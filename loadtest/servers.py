"""The servers of a group, which run `serve`, and the table that they count in."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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

from .options import Options
from .plan import MARK, Group, Trouble
from .talking import ProgramFailed, TalkingProgram, talking

BOOKS_WITHIN: Final = 600.0
NEEDED: Final[dict[Group, tuple[str, ...]]] = {
    "checks": ("driver",),
    "middleware": ("bare", "limited"),
    "sidecar": ("bare", "proxy", "decision"),
    "usage": ("limited",),
}


@contextmanager
def servers(group: Group, url: str, host: str) -> Iterator[dict[str, TalkingProgram]]:
    """Those that a group needs: each says its address, and is asked what its store holds of some users.

    Raises `Trouble`, also where one ends meanwhile.
    """
    environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
    running: dict[str, TalkingProgram] = {}
    try:
        with ExitStack() as exits:
            for name in NEEDED[group]:
                # The one without anything in front is the upstream of the others.
                upstream = running["bare"].first if "bare" in running else ""
                command = [sys.executable, "-m", "ratelimit.loadtest.serve", name, url, host, upstream]
                running[name] = exits.enter_context(talking(command, name=f"the server {name!r}", env=environment))
            yield running
    except ProgramFailed as error:
        raise Trouble(str(error), status=3) from None


# The table that a run counts in: on an engine started for it, or the user's own, which is looked through first.

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
