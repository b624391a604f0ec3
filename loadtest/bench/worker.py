"""A contender in a process of its own, that takes a turn whenever it is told to.

`python -m loadtest.bench.worker MODULE:FUNCTION OPTIONS` opens `FUNCTION(**OPTIONS)`, an async context manager that
gives a `Contender`, says `"ready"`, and then answers each line of JSON on its standard input with one. Only the
standard library, as `turns`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from loadtest.bench.turns import Call, Turn, take_turn


@dataclass(frozen=True)
class Contender:
    """Something to be measured. `count` gives figures that are counted and not timed, as in write units per check."""

    call: Call
    count: Callable[[], Awaitable[dict[str, float]]] | None = None
    turn: Callable[..., Awaitable[Turn]] | None = None
    """Takes its turn in a way of its own, as what blocks has to."""


Open = Callable[..., AbstractAsyncContextManager[Contender]]


def main(target: str, options: str) -> None:
    """Until the standard input ends."""
    given: dict[str, Any] = json.loads(options)
    factory = None
    if given.pop("uvloop", False):
        factory = import_module("uvloop").new_event_loop
    module, _, name = target.partition(":")
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(getattr(import_module(module), name), given))


async def _serve(open_: Open, options: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    async with open_(**options) as contender:
        # For all alike: what start-up left (botocore's model, above all) is not gone through again and again.
        gc.collect()
        gc.freeze()
        _say("ready")
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            order = json.loads(line)
            if order == "count":
                _say({} if contender.count is None else await contender.count())
            else:
                _say(await (contender.turn or partial(take_turn, contender.call))(**order))


def _say(answer: object) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
