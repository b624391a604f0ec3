"""How a server is run: a line of JSON when it is ready, one for each line that it is sent, and it ends with its input.

The pipe is what keeps it alive: when whoever started it is gone, however it went, the server ends as well.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine
from importlib.util import find_spec
from typing import Any, TypeAlias

Count: TypeAlias = Callable[[str], Awaitable[dict[str, Any]]]


def run(main: Coroutine[Any, Any, None]) -> None:
    """On uvloop where there is one."""
    factory = None
    if find_spec("uvloop"):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


async def obey(address: str, count: Count | None) -> None:
    """Say where it listens, and answer until the standard input ends. The one order there is asks for the books."""
    # As docs/performance.md advises: what starting left behind is not gone through again and again.
    gc.collect()
    gc.freeze()
    _say({"address": address})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        _say({} if count is None else await count(json.loads(line)["count"]))


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
