"""`WorkerBus`: how the workers of one service ask one another."""

from __future__ import annotations

import asyncio
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Final

from ratelimit.tasks import Tasks

_MAX_QUESTION: Final = 64
_QUESTION_TIMEOUT_S: Final = 5.0
_MODE: Final = 0o600
_END: Final = b"\n"
_GONE: Final = b"gone"


class WorkerBus:
    """One worker's place among those of a service, who answer one another's questions over unix sockets in a folder of
    theirs. `answers`: what it says to which question.

    A question is a line, and the answer too: one without an end was cut short, and counts for none. A worker takes the
    lowest free number and holds it by a lock that ends with the process, however that ends: so a restart brings no new
    numbers, and metrics no new labels.
    """

    def __init__(self, folder: Path, answers: Mapping[str, Callable[[], Awaitable[bytes]]]) -> None:
        self.number = ""
        """Its own, once it has started."""
        self._folder = folder
        self._answers = answers
        self._lock: int | None = None
        self._server: asyncio.AbstractServer | None = None
        self._conversations = Tasks("answering another worker")

    async def start(self) -> None:
        """Take a number and listen. Raises `OSError`."""
        self.number, self._lock = self._take_number()
        # Takes the place of a socket that a former holder of the number, whose lock has ended, left behind.
        path = self._socket(self.number)
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_MAX_QUESTION)

    async def end(self) -> None:
        """Give the number back; harmless where there is none."""
        server, self._server = self._server, None
        lock, self._lock = self._lock, None
        if server is not None:
            server.close()
            self._socket(self.number).unlink(missing_ok=True)
            await self._conversations.cancel()
        if lock is not None:
            os.close(lock)

    async def ask(self, question: str, *, within: float) -> dict[str, bytes | None]:
        """Return the others' answers, by their numbers; None of one that is there and gave none in so many seconds."""
        numbers = sorted(path.stem for path in self._folder.glob("*.sock") if path.stem != self.number)
        answers = await asyncio.gather(*(self._ask(number, question, within) for number in numbers))
        return {number: answer for number, answer in zip(numbers, answers, strict=True) if answer != _GONE}

    async def _ask(self, number: str, question: str, within: float) -> bytes | None:
        try:
            async with asyncio.timeout(within):
                reader, writer = await asyncio.open_unix_connection(self._socket(number))
                try:
                    writer.write(f"{question}\n".encode())
                    answer = await reader.read()
                    return answer.removesuffix(_END) if answer.endswith(_END) else None
                finally:
                    writer.close()
        except (ConnectionRefusedError, FileNotFoundError):
            return _GONE
        except (OSError, TimeoutError):
            return None

    def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self._server is None:  # taken on just before the end
            writer.close()
            return
        answering = self._conversations.start(self._answer(reader, writer))
        # Not by `_answer` itself: cancelled before its first step, it would never begin.
        answering.add_done_callback(lambda _: writer.close())

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            async with asyncio.timeout(_QUESTION_TIMEOUT_S):
                question = (await reader.readuntil()).decode("ascii").strip()
            if question in self._answers:
                writer.write(await self._answers[question]() + _END)
                await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass

    def _take_number(self) -> tuple[str, int]:
        import fcntl  # only where there are several workers: Windows has neither

        for number in count():
            lock = os.open(self._folder / f"{number}.lock", os.O_RDWR | os.O_CREAT, _MODE)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                continue
            return str(number), lock
        raise AssertionError("there is always a next number")

    def _socket(self, number: str) -> Path:
        return self._folder / f"{number}.sock"
