"""Programs of ours that talk in lines of JSON: one when they are ready, and one for each that they are sent.

They end with their standard input: when whoever started them is gone, however it went, they end as well. Only the
standard library, since peers run it in a virtual environment of their own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any, Final

READY_S: Final = 120.0
ENDS_S: Final = 90.0
_LAST_WORDS: Final = 2_000


class ProgramFailed(Exception):
    """A program ended, or gave no answer in time; the message ends with its last words."""


class TalkingProgram:
    """One that runs."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self._name = name
        self._process = process
        self._errors = errors
        self.first = self._read(READY_S)
        """What it said when it was ready."""
        self.last_words = ""
        """What it said after its last answer: known once it has ended."""

    @property
    def endpoint(self) -> str:
        """Where it listens, if what it said first is its port."""
        return f"http://127.0.0.1:{int(self.first)}"

    def ask(self, order: object, *, within_s: float) -> Any:
        """Its answer. Raises `ProgramFailed`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended") from None
        return self._read(within_s)

    def _read(self, within_s: float) -> Any:
        assert self._process.stdout is not None
        until = time.monotonic() + within_s
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise self._failed(f"gave no answer within {within_s:.0f} s")
            if not (more := os.read(self._process.stdout.fileno(), 1 << 20)):
                raise self._failed("ended")
            line += more
        return json.loads(line)

    def _failed(self, how: str) -> ProgramFailed:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace")[-_LAST_WORDS:].strip()
        return ProgramFailed(f"{self._name} {how}" + (f":\n{said}" if said else ""))


@contextmanager
def talking(
    command: Sequence[str], *, name: str = "it", env: Mapping[str, str] | None = None
) -> Iterator[TalkingProgram]:
    """Run a program until the block ends; the terminal's Ctrl-C does not reach it. Raises `ProgramFailed`."""
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=env, start_new_session=True
        ) as process,
    ):
        program = None
        try:
            program = TalkingProgram(name, process, errors)
            yield program
        finally:
            try:
                said, _ = process.communicate(timeout=ENDS_S)
            except (OSError, subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
            else:
                if program is not None:
                    program.last_words = said.decode()


async def obey(first: object, answer: Callable[[Any], Awaitable[object]] | None = None) -> None:
    """Be such a program: say that it is ready, and answer until the standard input ends."""
    # As docs/performance.md advises: what starting left behind (botocore's model, above all) is not gone through again.
    gc.collect()
    gc.freeze()
    _say(first)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if answer is not None:
            _say(await answer(json.loads(line)))


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
