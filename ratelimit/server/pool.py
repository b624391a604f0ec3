"""`UpstreamPool`: connections to the upstream. The one used last goes first: those too many fall idle, and end."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

import httptools

from ratelimit.server.headers import AnswerHead, InvalidResponse
from ratelimit.server.request import RawHeader
from ratelimit.server.upstream import ProxySettings, Upstream
from ratelimit.tasks import Tasks

if TYPE_CHECKING:
    from ratelimit.server.proxy import Forward
    from ratelimit.server.tunnel import WebSocketTunnel

logger = logging.getLogger("ratelimit.proxy")

MAX_ANSWER_HEAD: Final = 64 * 1024
"""Bytes of an answer's fields."""

AGAIN_S: float = 0.1
"""A service that restarts refuses connections for a moment: one is tried so much later once more."""
_LOOK_S: Final = 0.001
"""A connection that was idle for less is used without a look."""
_EMPTY: Final = frozenset({204, 304})
_TOO_LARGE: Final = "the fields of the answer are too large"


class UpstreamConnection:
    """One at a time: it asks, reads the answer, and goes back to the pool where it can be used again."""

    __slots__ = (
        "_has_head", "_headers", "_is_empty", "_is_interim", "_is_paused", "_keeps", "_poll", "_pool", "_reason",
        "_surplus", "_unread", "_until_close", "asking", "in_answer", "is_answered", "is_counted", "is_lost", "parser",
        "since", "transport", "tunnel", "write_paused",
    )  # fmt: skip

    def __init__(self, pool: UpstreamPool) -> None:
        self._pool = pool
        self.transport: asyncio.Transport = cast("Any", None)
        self.parser = httptools.HttpResponseParser(self)
        self.asking: Forward | None = None
        self.tunnel: WebSocketTunnel | None = None
        self.since = 0.0
        """When it fell idle, on the loop's clock."""
        self.is_counted = False
        """Whether it has a place of the pool's."""
        self.is_lost = self._is_paused = False
        self.in_answer = False
        """Whether a byte of the answer has come."""
        self.is_answered = False
        """Whether the answer is complete."""
        self.write_paused = False
        self._poll: Callable[[int], list[tuple[int, int]]] | None = None
        self._headers: list[RawHeader] = []
        """Fields of the section that is read: header or trailer."""
        self._reason = b""
        self._unread = 0
        """Bytes of the pieces that its section of fields has come in."""
        self._has_head = self._is_interim = self._is_empty = self._until_close = False
        self._surplus = False
        """Whether something came that nobody has asked for."""
        self._keeps = True

    def ask(self, asking: Forward, request: bytes) -> None:
        """Send the request, or its beginning."""
        self.asking = asking
        self._headers = []
        self._reason = b""
        self._unread = 0
        self._has_head = self.in_answer = self.is_answered = False
        self.transport.write(request)

    def is_alive(self, idle: float) -> bool:
        """Return whether it may take a request after so many seconds; it is looked at, for the loop may not have heard
        yet."""
        if self.transport.is_closing():
            return False
        return idle < _LOOK_S or self._poll is None or not self._poll(0)

    def release(self) -> None:
        """Give it back: the request is sent whole, and the answer is read."""
        self.asking = None
        if self._is_paused:
            self.resume_reading()
        if self._keeps and not self._surplus and not self.transport.is_closing():
            self._pool.put(self)
        else:
            self.abort()

    def pause_reading(self) -> None:
        if not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._is_paused:
            self._is_paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        """Close it at once: what is left of an answer must not be read as the next one."""
        self.asking = None
        self.transport.abort()

    # --- The transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if hasattr(select, "poll"):
            poll = select.poll()
            poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
            self._poll = poll.poll

    def connection_lost(self, exc: Exception | None) -> None:
        self.parser = cast("Any", None)
        self.is_lost = True
        self._pool.forget(self)
        if self.tunnel is not None:
            self.tunnel.upstream_lost()
        elif (asking := self.asking) is not None:
            self.asking = None
            error = exc or ConnectionResetError("the upstream closed the connection")
            asking.on_broken(error, is_answer=False)

    def eof_received(self) -> bool:
        """Complete an answer whose body ends with the connection."""
        if self._until_close and self.asking is not None and self.tunnel is None:
            self._keeps = False
            self._complete()
            asking = self.asking
            if asking is not None:
                asking.on_answer_read()
        return False

    def data_received(self, data: bytes) -> None:
        if self.tunnel is not None:
            self.tunnel.from_upstream(data)
            return
        if self.asking is None or self.is_answered:
            # Something that nobody has asked for.
            self._surplus = True
            self.transport.abort()
            return
        self.in_answer = True
        if not self._has_head or self._headers:
            self._unread += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stopped:
            self.asking.on_upgrade(data[stopped.args[0] :])
            return
        except httptools.HttpParserError as error:
            self._surplus = True
            if not (self._is_empty and self._has_head):
                self._fail(error)
                return
        if self._unread > MAX_ANSWER_HEAD and not self.is_answered:
            self._fail(InvalidResponse(_TOO_LARGE))
            return
        if self._is_empty and self._has_head and not self.is_answered:
            # Whatever its fields say of a body (RFC 9110, 6.4.1), which the parser would wait for.
            self.parser = httptools.HttpResponseParser(self)
            self._complete()
        asking = self.asking
        if asking is not None:
            # It is free for others only when nothing came behind the answer.
            asking.on_answer_read()

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.tunnel is not None:
            self.tunnel.upstream_full()
        elif self.asking is not None:
            self.asking.on_upstream_full()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.tunnel is not None:
            self.tunnel.upstream_drained()
        elif self.asking is not None:
            self.asking.on_upstream_drained()

    # --- The parser tells

    def on_message_begin(self) -> None:
        if self.is_answered:
            self._surplus = True

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        asking, parser = self.asking, self.parser
        if asking is None or self.is_answered:
            return
        if self._unread > MAX_ANSWER_HEAD and _size(self._headers) > MAX_ANSWER_HEAD:
            # They have brought more than the beginning of the body.
            raise InvalidResponse(_TOO_LARGE)
        self._unread = 0
        status = parser.get_status_code()
        if not 200 <= status < 600 and not self._is_upgrade(status, asking):
            return
        self._has_head = True
        headers, self._headers = self._headers, []
        head = AnswerHead(status, self._reason, headers, parser.get_http_version())
        # What follows a 204 is nobody's.
        self._keeps = parser.should_keep_alive() and (head.is_empty or status != 204)
        self._is_empty = asking.head_only or status in _EMPTY
        self._until_close = not (head.has_length or head.is_coded or self._is_empty or status == 101)
        asking.on_answer(head)

    def _is_upgrade(self, status: int, asking: Forward) -> bool:
        """Return whether a status that is none of an answer is one of this. What is interim is passed over."""
        if status == 101 and asking.upgrades:
            return True
        if not 100 <= status < 200 or status == 101:
            raise InvalidResponse(f"the upstream answered with status {status}")
        self._is_interim = True
        if status == 100:
            asking.on_continue()
        return False

    def on_body(self, body: bytes) -> None:
        if self._is_empty or self.is_answered:
            self._surplus = True
        elif self.asking is not None:
            self.asking.on_answer_body(body)

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
            self._headers = []
            self._reason = b""
        elif self.is_answered:
            self._surplus = True
        elif self.asking is not None and not self.parser.should_upgrade():
            self._complete()

    def _complete(self) -> None:
        self.is_answered = True
        asking = self.asking
        if asking is not None:
            asking.on_answer_end(self._headers)

    def _fail(self, error: Exception) -> None:
        asking, self.asking = self.asking, None
        self.transport.abort()
        if isinstance(error, httptools.HttpParserCallbackError):
            cause = error.__context__
            if isinstance(cause, InvalidResponse):
                error = cause
            else:
                logger.error("an answer could not be passed on", exc_info=cause)
        if asking is not None:
            asking.on_broken(error, is_answer=True)


def _size(fields: list[RawHeader]) -> int:
    return sum([len(name) + len(value) for name, value in fields])


class UpstreamPool:
    """At most `settings.max_connections`. Belongs to one event loop."""

    def __init__(self, upstream: Upstream, settings: ProxySettings) -> None:
        self._upstream = upstream
        self._settings = settings
        self._tls = settings.context() if upstream.scheme == "https" else None
        self._idle: list[UpstreamConnection] = []
        self._number = 0
        self._waiting: dict[Forward, None] = {}
        """Who waits for a place, in their order."""
        self._connecting = Tasks("a connection to the upstream")
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def take(self, now: float) -> UpstreamConnection | None:
        """Return the idle connection used last; None where there is none, and `wait` is needed."""
        oldest = now - self._settings.keep_alive
        while self._idle:
            connection = self._idle.pop()
            if connection.since >= oldest and connection.is_alive(now - connection.since):
                return connection
            connection.abort()
        return None

    def wait(self, asking: Forward) -> None:
        """Tell it of a connection as soon as one is made or given back, or why there is none."""
        if self._number < self._settings.max_connections:
            self._number += 1
            self._connecting.start(self._connect(asking))
        else:
            self._waiting[asking] = None

    def leave(self, asking: Forward) -> None:
        self._waiting.pop(asking, None)

    def put(self, connection: UpstreamConnection) -> None:
        if self._waiting and (asking := self._next()) is not None:
            asking.on_connection(connection)
            return
        if self._closed:
            connection.abort()
            return
        loop = asyncio.get_running_loop()
        connection.since = loop.time()
        self._idle.append(connection)
        if self._timer is None:
            self._timer = loop.call_later(self._settings.keep_alive, self._end_idle, loop)

    def forget(self, connection: UpstreamConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.is_counted:
            connection.is_counted = False
            self._freed()

    async def close(self) -> None:
        """Let go of the idle ones; those in use end with what they are used for."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        await self._connecting.cancel()
        for connection in list(self._idle):
            connection.abort()

    def _freed(self) -> None:
        self._number -= 1
        if not self._closed and (asking := self._next()) is not None:
            self.wait(asking)

    def _next(self) -> Forward | None:
        for asking in self._waiting:
            del self._waiting[asking]
            return asking
        return None

    def _end_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        oldest = loop.time() - self._settings.keep_alive
        # The longest idle stand first.
        while self._idle and self._idle[0].since <= oldest:
            self._idle.pop(0).transport.close()
        if self._idle:
            wait = self._idle[0].since - oldest
            self._timer = loop.call_later(wait, self._end_idle, loop)

    async def _connect(self, asking: Forward) -> None:
        try:
            async with asyncio.timeout(self._settings.connect):
                connection = await self._dial()
        except (OSError, ValueError) as error:
            self._freed()
            if asking.is_waiting():
                asking.on_unreachable(error)
            return
        connection.is_counted = True
        if connection.transport.is_closing():
            if connection.is_lost:
                self.forget(connection)
            if asking.is_waiting():
                asking.on_unreachable(ConnectionResetError("the upstream closed the connection"))
        elif asking.is_waiting():
            asking.on_connection(connection)
        else:
            self.put(connection)

    async def _dial(self) -> UpstreamConnection:
        """Connect; once more where that is refused, as nothing was sent."""
        with suppress(ConnectionRefusedError):
            return await self._dial_once()
        await asyncio.sleep(AGAIN_S)
        return await self._dial_once()

    async def _dial_once(self) -> UpstreamConnection:
        loop, upstream = asyncio.get_running_loop(), self._upstream
        if upstream.socket is not None:
            _, made = await loop.create_unix_connection(self._make, upstream.socket)
        else:
            name = upstream.host if self._tls is not None else None
            _, made = await loop.create_connection(
                self._make, upstream.host, upstream.port, ssl=self._tls, server_hostname=name
            )
        connection: UpstreamConnection = made
        return connection

    def _make(self) -> Any:
        # A protocol by its methods: of no class of asyncio's, so that it can be compiled.
        return UpstreamConnection(self)
