"""One request to the upstream and its answer back, both in pieces, as fast as the slower side takes them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeAlias

import aiohttp
from multidict import CIMultiDict
from starlette.types import Receive, Scope, Send
from yarl import URL

from ratelimit.server.headers import InvalidResponse, RawHeader, expects_continue, has_body, response_headers
from ratelimit.server.http_protocol import DISCONNECT_KEY
from ratelimit.server.problems import BROKEN, LATE, NO_CONNECTION, SLOW, UNREACHED, UNREADABLE, ServerProblem
from ratelimit.server.upstream import ProxySettings

logger = logging.getLogger("ratelimit.proxy")

_ERRORS: Final = (aiohttp.ClientError, OSError, ValueError)
_AGAIN_S: Final = 0.1
# An upstream that knows `Expect` says so by then; one that does not is waiting for the body.
_CONTINUE_S: Final = 1.0
# A quick answer is through before anybody needs to look whether the client is still there.
_SLOW_S: Final = 0.05

Phase: TypeAlias = Literal["connection", "first byte", "upstream", "client", "gone"]
"""What is waited for. `gone`: the client has left."""
Timeouts: TypeAlias = Mapping[Phase, float]
OnAnswer: TypeAlias = "Callable[[list[RawHeader], int], Awaitable[None]]"


class Exchange:
    """Serve one request. `on_answer` is awaited with the answer's own headers and status before anything is sent."""

    __slots__ = (
        "_body", "_headers", "_on_answer", "_receive", "_scope", "_send", "_session", "_started", "_timeout", "_url",
        "_watch",
    )  # fmt: skip

    def __init__(
        self, session: aiohttp.ClientSession, timeouts: Timeouts, url: URL, headers: CIMultiDict[str],
        scope: Scope, receive: Receive, send: Send, on_answer: OnAnswer,
    ) -> None:  # fmt: skip
        self._session = session
        self._url = url
        self._headers = headers
        self._scope = scope
        self._receive = receive
        self._send = send
        self._on_answer = on_answer
        self._watch: asyncio.Task[None] | None = None
        self._timeout = ExchangeTimeout(timeouts, self._start_watch)
        self._body = RequestBody(receive, self._timeout) if has_body(scope) else None
        self._started = False

    async def run(self) -> None:
        """Leave an answer that breaks off incomplete: the server then closes the connection, and the client knows."""
        try:
            async with self._timeout:
                await self._exchange()
        except _ERRORS as error:
            if self._timeout.phase != "gone":
                await self._fail(error, upstream_problem(error, self._timeout.phase))
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _exchange(self) -> None:
        answer = await self._ask()
        try:
            if not 100 <= answer.status < 600 or answer.status == 101:
                raise InvalidResponse(f"the upstream answered with status {answer.status}")
            await self._pass_on(answer)
        except BaseException:
            # Closed, not kept: what is left of this answer must not be read as the next one. And not when what is left
            # of the request has been read, which may be never.
            if answer.connection is not None and answer.connection.transport is not None:
                answer.connection.transport.abort()
            answer.close()
            raise
        finally:
            answer.release()

    async def _ask(self) -> aiohttp.ClientResponse:
        """Try once more where the connection is refused, as nothing was sent. Beyond that aiohttp repeats idempotent
        requests, of which no part of a body was sent, where a kept connection was lost before the answer."""
        try:
            return await self._request()
        except aiohttp.ClientConnectorError as error:
            if not isinstance(error.os_error, ConnectionRefusedError):
                raise
        await asyncio.sleep(_AGAIN_S)
        return await self._request()

    async def _request(self) -> aiohttp.ClientResponse:
        if self._body is None:
            self._timeout.wait_for("first byte")
        return await self._session.request(
            self._scope["method"],
            self._url,
            headers=self._headers,
            data=self._body,
            allow_redirects=False,
            expect100=self._body is not None and expects_continue(self._scope),
        )

    async def _pass_on(self, answer: aiohttp.ClientResponse) -> None:
        version = f"{answer.version.major}.{answer.version.minor}" if answer.version else "1.1"
        headers = response_headers(answer.raw_headers, answer.status, version)
        self._timeout.wait_for("client")
        await self._on_answer(list(answer.raw_headers), answer.status)
        self._started = True
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        content, more = answer.content, True
        while more:
            self._timeout.wait_for("upstream")
            piece = await content.readany()
            more = not content.at_eof()
            self._timeout.wait_for("client")
            if piece or not more:
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _fail(self, error: Exception, problem: ServerProblem) -> None:
        if self._started:
            logger.warning("an answer broke off: %s", describe(error))
            return
        logger.warning("%d %s: %s", problem.status, problem.title, describe(error))
        await problem.send(self._scope, self._receive, self._send)

    def _start_watch(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._watch_client())

    async def _watch_client(self) -> None:
        """End the exchange when the client leaves while something else is waited for."""
        if self._body is not None:
            # An upstream may answer and never read the rest of the request; meanwhile nobody else may `receive`.
            lost = self._scope.get(DISCONNECT_KEY, self._body.finished)
            await asyncio.wait({self._body.finished, lost}, return_when=asyncio.FIRST_COMPLETED)
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._timeout.wait_for("gone")


class RequestBody:
    """What aiohttp iterates over, once: as soon as some of it was asked for it repeats nothing."""

    __slots__ = ("_more", "_receive", "_timeout", "finished")

    def __init__(self, receive: Receive, timeout: ExchangeTimeout) -> None:
        self._receive = receive
        self._timeout = timeout
        self._more = True
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Raises `ConnectionResetError`. The server has seen to it that there is no more than the headers say."""
        while self._more:
            self._timeout.wait_for("client")
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._timeout.wait_for("gone")
                raise ConnectionResetError("the client has left before its request was complete")
            self._more = message.get("more_body", False)
            if body := message.get("body", b""):
                self._timeout.wait_for("upstream")
                return bytes(body)
        self._timeout.wait_for("first byte")
        if not self.finished.done():
            self.finished.set_result(None)
        raise StopAsyncIteration


class UpstreamRequest(aiohttp.ClientRequest):
    """Does not wait for ever for the `100 Continue` of a server that sends none (RFC 9110, 10.1.1)."""

    def update_expect_continue(self, expect: bool = False) -> None:
        super().update_expect_continue(expect)
        waiting: asyncio.Future[Any] | None = self._continue
        if waiting is not None:
            self.loop.call_later(_CONTINUE_S, _go_on, waiting)


def _go_on(waiting: asyncio.Future[Any]) -> None:
    if not waiting.done():
        waiting.set_result(True)


def timeouts(settings: ProxySettings) -> Timeouts:
    """Return how long each phase may take, in seconds."""
    return {
        "connection": settings.connect + settings.first_byte,
        "first byte": settings.first_byte,
        "upstream": settings.idle,
        "client": settings.idle,
        "gone": 0.0,
    }


class ExchangeTimeout:
    """`async with ExchangeTimeout(…) as timeout:` raises `TimeoutError`; `timeout.phase` says who was too slow.

    `on_slow` is called once, if the exchange takes longer than most. To begin another phase costs two assignments:
    the timer, when it goes off too soon, is set anew.
    """

    __slots__ = ("_due", "_loop", "_on_slow", "_timeout", "_timeouts", "_timer", "phase")

    def __init__(self, timeouts: Timeouts, on_slow: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._timer: asyncio.TimerHandle | None = None
        self._on_slow = on_slow
        self._timeouts = timeouts
        self._due = 0.0
        self.phase: Phase = "connection"

    def wait_for(self, phase: Phase) -> None:
        """Begin a phase, with its whole time. After `gone` there is no other."""
        if self.phase == "gone":
            return
        self.phase = phase
        self._due = self._loop.time() + self._timeouts[phase]
        timer = self._timer
        if timer is not None and self._due < timer.when():
            timer.cancel()
            self._look()

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._timer = self._loop.call_later(_SLOW_S, self._slow)
        self.wait_for("connection")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._timeout.__aexit__(kind, error, trace)

    def _slow(self) -> None:
        self._on_slow()
        self._look()

    def _look(self) -> None:
        if self._due <= self._loop.time():
            self._timer = None
            self._timeout.reschedule(self._due)
        else:
            self._timer = self._loop.call_at(self._due, self._look)


def upstream_problem(error: Exception, phase: Phase) -> ServerProblem:
    """Return what to say of an error that ended this phase."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return UNREACHED
    if isinstance(error, aiohttp.ClientConnectorError):
        return NO_CONNECTION
    if isinstance(error, TimeoutError):
        if phase == "client":
            return SLOW
        return UNREACHED if phase == "connection" else LATE
    if isinstance(error, aiohttp.ClientResponseError | ValueError):
        return UNREADABLE
    return BROKEN


def describe(error: Exception) -> str:
    """Return what kind of error it is and where it happened, for the log. What aiohttp adds may be the URL with its
    query, or a piece of the answer."""
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError | InvalidResponse):
        return f"{name}: {error}"
    reason = error.strerror if isinstance(error, OSError) else None
    if isinstance(error, aiohttp.ClientResponseError):
        reason = re.split(r"[:'\"(]", error.message, maxsplit=1)[0].strip()
    return f"{name}: {reason}" if reason else name
