"""The contenders of a benchmark, each in its own process, and the order in which they take turns."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final, NamedTuple, TypeVar

from loadtest.bench.builds import Build, absent, interpreter
from loadtest.bench.worker import Turn
from loadtest.talking import ProgramFailed, TalkingProgram, talking

T = TypeVar("T")

_LAST_WORDS: Final = 300
_ANSWER_TIMEOUT_S: Final = 600.0
CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Entry:
    """One contender: what to open (`module:function`), with what, in which build."""

    name: str
    target: str
    options: Mapping[str, Any] = field(default_factory=dict)
    build: Build = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Measured:
    """What the turns of one contender came to."""

    turns: list[Turn] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)

    def median(self, figure: str) -> float:
        """Return the middle one of the turns' figures (`per_second`, `cpu_us`, ...)."""
        return float(median(getattr(turn, figure) for turn in self.turns))

    def milliseconds(self) -> dict[str, float | None]:
        """Return the latencies, by columns of a table."""
        return {"p50 ms": self.median("p50_us") / 1000, "p99 ms": self.median("p99_us") / 1000}


def ratio(one: Measured, other: Measured, figure: str) -> float:
    """Return how many times the other's figure this one's is: the median of the rounds, so that a noisy moment hits
    both."""
    pairs = zip(one.turns, other.turns, strict=True)
    return float(median(getattr(mine, figure) / getattr(theirs, figure) for mine, theirs in pairs))


def difference(one: Measured, other: Measured, figure: str) -> float:
    """Return by how much this one's figure is above the other's, in the same way."""
    pairs = zip(one.turns, other.turns, strict=True)
    return float(median(getattr(mine, figure) - getattr(theirs, figure) for mine, theirs in pairs))


def in_turns(names: Collection[T], rounds: int) -> Iterator[T]:
    """Yield the names that are there by then, in an order that is turned round every round."""
    for number in range(rounds):
        yield from list(names)[:: -1 if number % 2 else 1]


class Contest(NamedTuple):
    """What was measured, by name; and notes of what was not, with the reasons."""

    measured: dict[str, Measured]
    notes: list[str]


def contest(entries: Sequence[Entry], *, rounds: int, seconds: float, at_once: int = 1) -> Contest:
    """Measure those whose build is there, each in a process of its own."""
    lacking = absent(entry.build for entry in entries)
    measured: dict[str, Measured] = {}
    failed: dict[str, str] = {}
    with ExitStack() as exits:
        workers: dict[str, TalkingProgram] = {}
        for entry in entries:
            if entry.build in lacking:
                continue
            try:
                worker = exits.enter_context(_running(entry))
                _turn(worker, seconds=seconds / 2, at_once=at_once)
            except ProgramFailed as error:
                failed[entry.name] = str(error).splitlines()[-1][:_LAST_WORDS]
                continue
            workers[entry.name], measured[entry.name] = worker, Measured()
        for name in in_turns(workers, rounds):
            try:
                measured[name].turns.append(_turn(workers[name], seconds=seconds, at_once=at_once))
            except ProgramFailed as error:
                failed[name] = str(error).splitlines()[-1][:_LAST_WORDS]
                del workers[name], measured[name]
        for name, worker in workers.items():
            measured[name].counts = worker.ask("count", within_s=_ANSWER_TIMEOUT_S)
    return Contest(measured, [*lacking.values(), *(f"not measured: {name}: {why}" for name, why in failed.items())])


def _running(entry: Entry) -> AbstractContextManager[TalkingProgram]:
    python, where = interpreter(entry.build)
    command = [python, "-m", "loadtest.bench.worker", entry.target, json.dumps(dict(entry.options))]
    return talking(command, env={**os.environ, **CREDENTIALS, **where, **entry.environment})


def _turn(worker: TalkingProgram, *, seconds: float, at_once: int) -> Turn:
    return Turn(*worker.ask({"seconds": seconds, "at_once": at_once}, within_s=seconds + _ANSWER_TIMEOUT_S))
