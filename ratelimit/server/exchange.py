"""`Exchange`: who answers one request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ratelimit.http.problems import Problem
from ratelimit.server.problems import PHRASES
from ratelimit.server.request import RawHeader, Request

if TYPE_CHECKING:
    from ratelimit.decision import Decision
    from ratelimit.http.admission import Admission
    from ratelimit.server.connection import ClientConnection


class Exchange:
    """Answers one request, through the connection that it came by. This one has nothing to say.

    It is told of the request's body from its head on, and may answer from `begin` on, when those before it are through.
    """

    is_begun: bool = False
    is_complete: bool = False
    """Whether the request has arrived to its end."""
    is_cut: bool = False
    """Whether it never will."""
    started: bool = False
    """Whether the head of the answer is written."""
    is_over: bool = False
    status: int = 0
    """Of the answer; 0 where the client left, or was cut off, before there was one."""
    version: Any = None
    """Of the configuration that it is answered by."""
    sent: int = 0
    """Bytes of the answer's body."""
    _admission: Admission | None = None
    """What has checked it, where it is to be checked."""
    _is_lost: bool = False
    """Whether there is nobody to answer."""
    _task: asyncio.Task[None] | None = None
    """What answers, where that waits."""

    def __init__(self, connection: ClientConnection, request: Request) -> None:
        self.connection = connection
        self.request = request

    def begin(self) -> None:
        """Answer, from now on. `connection.start`, `send` and `finish` are for it alone until it has finished."""

    def on_body(self, data: bytes) -> None:
        """Take a piece of the request's body."""

    def on_complete(self, trailers: list[RawHeader]) -> None:
        """Take note that the request is complete."""
        self.is_complete = True

    def on_lost(self) -> None:
        """Give up: the client has left, or was sent away."""

    def cancel(self) -> None:
        """End at once, whatever that breaks off: the process leaves."""
        if self._task is not None:
            self._task.cancel()

    def on_full(self) -> None:
        """Write nothing more if that can wait: the client does not take it."""

    def on_drained(self) -> None:
        """Go on writing."""

    def on_due(self) -> None:
        """Come to an end: the connection's `due`, which this one has set, has come."""

    def flush(self) -> None:
        """Send on what was read by now."""

    def decisions(self) -> list[Decision]:
        """Return what was decided about the request, for the log."""
        return [] if self._admission is None else self._admission.charges.decisions

    def problem(self, problem: Problem) -> None:
        self.write(problem.status, problem.fields(), problem.encode(), close=problem.status == 408)

    def write(self, status: int, headers: list[RawHeader], body: bytes, *, close: bool = False) -> None:
        """Answer with this, where there is somebody, and be over."""
        if not self._is_lost:
            connection = self.connection
            connection.start(status, PHRASES.get(status, b""), headers, close=close)
            connection.send(body)
            connection.finish()
        self.over()

    def over(self) -> None:
        """Take note that all is done, refunds and all. To be called once."""
        if not self.is_over:
            self.is_over = True
            shared = self.connection.shared
            shared.exchanges.discard(self)
            shared.over(self)
