"""`ratelimit serve` as a process of its own, from its start-up line to its exit status."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

LONG_S = 120.0
COMMAND = (sys.executable, "-m", "ratelimit", "serve")
QUICK = ("--action", "api", "--quota", "1000000/day", "--user-from", "header:x-api-key")


class Served:
    """What runs. `banner` is its start-up line, `out` and `err` what it has written besides, so far."""

    def __init__(self, process: Process, banner: dict[str, Any]) -> None:
        self.process = process
        self.banner = banner
        self.out: list[str] = []
        self.err: list[str] = []

    @property
    def url(self) -> str:
        return str(self.banner["listening"])

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self) -> int:
        """Its exit status."""
        return await asyncio.wait_for(self.process.wait(), LONG_S)

    async def told(self, text: str) -> None:
        """Wait until this is in the log."""
        await until(lambda: any(text in line for line in self.err))

    def workers(self) -> set[int]:
        """The process ids of several workers; not that of the helper which `multiprocessing` keeps beside them."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text(encoding="ascii")
        return {int(child) for child in children.split() if b"spawn_main" in command_of(int(child))}


@asynccontextmanager
async def served(*options: str, for_people: bool = False, **env: str) -> AsyncIterator[Served]:
    """On any port that is free, with no admin listener unless the options say so."""
    where = () if "--uds" in options else ("--port", "0")
    admin = () if "--admin" in options else ("--admin", "off")
    line = (*COMMAND, *where, *admin, *options, *(() if for_people else ("--json",)))
    process = await asyncio.create_subprocess_exec(
        *line, stdout=PIPE, stderr=PIPE, env={**os.environ, "RATELIMIT_DEADLINE": "30", **env}
    )
    assert process.stdout is not None
    assert process.stderr is not None
    one = Served(process, {})
    readers = [asyncio.create_task(_collect(process.stderr, one.err))]
    try:
        if for_people:
            await one.told("ratelimit serves ")
            one.banner = {"listening": one.err[0].split()[2]}
        elif first := await asyncio.wait_for(process.stdout.readline(), LONG_S):
            one.banner = json.loads(first)
        else:
            await asyncio.gather(*readers)
            raise AssertionError("".join(one.err))
        readers.append(asyncio.create_task(_collect(process.stdout, one.out)))
        yield one
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.gather(*readers)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG_S):
        while not condition():
            await asyncio.sleep(0.01)


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode())
