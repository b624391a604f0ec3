"""The servers of a group: started, asked for their books, and stopped. They end with the pipe that we hold."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
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

READY_WITHIN: Final = 120.0
BOOKS_WITHIN: Final = 600.0
STOP_WITHIN: Final = 90.0
NEEDED: Final[dict[Group, tuple[str, ...]]] = {
    "checks": ("driver",),
    "middleware": ("bare", "limited"),
    "sidecar": ("bare", "proxy", "decision"),
    "usage": ("limited",),
}
_LAST_WORDS: Final = 2_000


class LoadServer:
    """One of them: `serve` in a process of its own, that the terminal's Ctrl-C does not reach."""

    def __init__(self, name: str, url: str, host: str, upstream: str, log: Path) -> None:
        self.name = name
        self._log = log
        environment = {**os.environ, "NO_PROXY": "*", "no_proxy": "*"}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ratelimit.loadtest.serve", name, url, host, upstream],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True,
            )  # fmt: skip
        self.address = ""

    def wait(self) -> None:
        """Until it is ready. Raises `Trouble`."""
        self.address = str(self._read(READY_WITHIN)["address"])

    def count(self, prefix: str) -> dict[str, Any]:
        """What its store holds; empty where it has none. Raises `Trouble`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"count": prefix}).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._trouble("ended during the run") from None
        return self._read(BOOKS_WITHIN)

    def stop(self) -> None:
        """It closes what it has open; if that takes too long, it is ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(STOP_WITHIN)
        except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _read(self, within: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = time.monotonic() + within
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise self._trouble(f"gave no answer within {within:.0f} s")
            if not (more := os.read(self._process.stdout.fileno(), 1 << 20)):
                raise self._trouble("ended")
            line += more
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _trouble(self, what: str) -> Trouble:
        said = self._log.read_text(errors="replace")[-_LAST_WORDS:].strip()
        return Trouble(f"the server {self.name!r} {what}" + (f":\n{said}" if said else ""), status=3)


@contextmanager
def servers(group: Group, url: str, host: str, scratch: Path) -> Iterator[dict[str, LoadServer]]:
    """Those that a group needs, ready. The one without anything in front is the upstream of the others."""
    with ExitStack() as exits:
        running: dict[str, LoadServer] = {}
        for name in NEEDED[group]:
            upstream = running["bare"].address if "bare" in running else ""
            server = running[name] = LoadServer(name, url, host, upstream, scratch / f"{group}-{name}.log")
            exits.callback(server.stop)
            server.wait()
        yield running


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
