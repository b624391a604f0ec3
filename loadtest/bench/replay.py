"""A store server that answers at once and with a real engine's own bytes, in a process of its own: what is left is the
client's own cost, whichever client it is.

`python -m loadtest.bench.replay --engine URL` prints its port and serves until its standard input ends; then it prints,
by operation, how many requests it answered from memory and how many it handed on to the engine.

An `UpdateItem` that succeeded is remembered, and the engine's answer, head and body, is the answer to the same question
from then on. The same question has the same body (table, key, expressions, names, values), but for the moments among
the values: numbers of ten digits and more, since a limiter that sends the time never asks the same thing twice. Once is
often enough: of a record that is not there yet, ours asks something else, and zae-limiter is refused. So a condition
that once held holds for ever, which is right where no quota is in reach. All else goes to the engine every time:
set-up, reads, transactions, and whatever was refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from collections import Counter
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

import httptools
import uvloop

from loadtest.bench.stub import TARGET, Asked, running, serve
from loadtest.talking import TalkingProgram

_UPDATE: Final = "UpdateItem"
_VALUES: Final = b'"ExpressionAttributeValues"'
_MOMENT: Final = re.compile(rb"\d{10,}")
_AT_MOST: Final = 65_536


def replay_server(engine: str) -> AbstractContextManager[TalkingProgram]:
    """A running one, before the engine at this endpoint. Once it has ended, `tally` tells what it was asked."""
    return running("loadtest.bench.replay", "--engine", engine)


@dataclass
class ReplayTally:
    """How many requests it answered from memory, and how many the engine did, by operation."""

    replayed: Counter[str] = field(default_factory=Counter)
    handed_on: Counter[str] = field(default_factory=Counter)


def tally(ended: TalkingProgram) -> ReplayTally:
    counts: dict[str, dict[str, int]] = json.loads(ended.last_words)
    return ReplayTally(**{name: Counter(numbers) for name, numbers in counts.items()})


class _Replay(Asked):
    """One request at a time on each connection, as all these clients do it."""

    def __init__(self, engine: str, answers: dict[bytes, bytes], tally: ReplayTally) -> None:
        super().__init__()
        self._engine = engine
        self._answers = answers
        self._tally = tally
        self._handing_on: asyncio.Task[None] | None = None

    def asked(self, head: bytes, request: bytes) -> None:
        operation = _operation(head, request)
        question = _question(request[len(head) + 4 :]) if operation == _UPDATE else b""
        if answer := self._answers.get(question):
            self._tally.replayed[operation] += 1
            self.transport.write(answer)
        else:
            assert self._handing_on is None or self._handing_on.done()
            self._tally.handed_on[operation] += 1
            self._handing_on = asyncio.ensure_future(self._hand_on(request, question))

    async def _hand_on(self, request: bytes, question: bytes) -> None:
        try:
            answer = await _ask(self._engine, request)
        except OSError:
            self.transport.abort()
            return
        if question and answer.startswith(b"HTTP/1.1 200 "):
            self._answers[question] = answer
        self.transport.write(answer)


def _operation(head: bytes, request: bytes) -> str:
    """Its name; empty if this is no request of DynamoDB's (zae-limiter asks other services as well)."""
    start = head.find(TARGET) + len(TARGET)
    if start < len(TARGET):
        return ""
    end = head.find(b"\r", start)
    return request[start : end if end > 0 else len(head)].decode()


def _question(body: bytes) -> bytes:
    """What remains the same where the same is asked again; the body itself where it has no values."""
    start = body.find(_VALUES)
    end = body.find(b"}}", start)
    return body[:start] + _MOMENT.sub(b"", body[start:end]) + body[end:]


async def _ask(engine: str, request: bytes) -> bytes:
    """The engine's whole answer, as it came. On a connection of its own: this is not what is measured."""
    where = urlsplit(engine)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(request)
        end, answer = _End(), b""
        parser = httptools.HttpResponseParser(end)
        while not end.reached:
            data = await reader.read(_AT_MOST)
            if not data:
                raise ConnectionResetError(f"{engine} closed the connection without a whole answer")
            parser.feed_data(data)
            answer += data
        return answer
    finally:
        writer.close()


class _End:
    reached = False

    def on_message_complete(self) -> None:
        self.reached = True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, metavar="URL")
    options = parser.parse_args()
    counted = ReplayTally()
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        kept: dict[bytes, bytes] = {}
        runner.run(serve(lambda: _Replay(options.engine, kept, counted)))
    print(json.dumps(vars(counted)))  # noqa: T201
