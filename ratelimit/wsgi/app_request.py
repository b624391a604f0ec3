"""`AppRequest`: one request to an app that is not ASGI's. What is done before its view, and with its answer; and a WSGI
environment as ASGI has it.

Its methods are coroutines, as the checks are. `run` does them where there is no event loop: whatever waits there is a
blocking call, so that they never do.
"""

from __future__ import annotations

import io
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Scope

from ratelimit.decision import Decision, JointDecision
from ratelimit.errors import ConfigError, QuotaExceeded
from ratelimit.http.admission import Admission, MiddlewareState
from ratelimit.http.dependency import Said
from ratelimit.http.headers import Headers
from ratelimit.http.problems import answer_of
from ratelimit.limiter import Spend, limiter
from ratelimit.limiter.slots import Slot
from ratelimit.sync import Limiter, UsageLog

T = TypeVar("T")

ENVIRON_KEY: Final = "ratelimit"
"""Where the middleware leaves its `AppRequest`."""

_UNPREFIXED: Final = ("CONTENT_TYPE", "CONTENT_LENGTH")
_PIECE_BYTES: Final = 65_536


def run(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine does that never has to wait. Raise `ConfigError` where a function of the app does."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    how = "one is async and waits, without an event loop: here it may await the request's body, and nothing else"
    raise ConfigError("cost, quotas, user_from, exempt, on_refused", how)


class AskingLimiter(limiter.Limiter):
    """A limiter for threads as the coroutines of a surface ask it. Each call is over when it returns."""

    def __init__(self, asked: Limiter) -> None:
        if not isinstance(asked, Limiter):
            raise ConfigError("limiter", f"expected a Limiter of ratelimit.sync, not {asked!r}")
        self.asked = asked
        core = asked._core
        self.clock = core.clock
        self.stats = core.stats
        self._resolver = core._resolver
        self._checker = core._checker

    async def check(self, *args: Any, **options: Any) -> Decision:
        return self.asked.check(*args, **options)

    async def _check_all(self, asked: Sequence[Spend]) -> JointDecision:
        return self.asked._run(self.asked._core._check_all(asked))

    def slot(self, *args: Any, **options: Any) -> Any:
        return _AskingHold(self.asked, self.asked._core.slot(*args, **options))

    def reserve(self, *args: Any, **options: Any) -> Any:
        return _AskingHold(self.asked, self.asked._core.reserve(*args, **options))

    async def charge(self, *args: Any, **options: Any) -> Decision:
        return self.asked.charge(*args, **options)

    async def refund(self, *args: Any, **options: Any) -> None:
        self.asked.refund(*args, **options)


class _AskingHold:
    """A slot or a reservation, likewise."""

    def __init__(self, limiter: Limiter, hold: Slot) -> None:
        self._limiter = limiter
        self._hold: Any = hold

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hold, name)

    async def take(self) -> Decision:
        decision: Decision = self._limiter._run(self._hold.take())
        return decision

    async def finish(self) -> bool:
        was_held: bool = self._limiter._run(self._hold.finish())
        return was_held


def state_of(limiter: Limiter, usage: UsageLog | None, **more: Any) -> MiddlewareState:
    """Return what all requests of a surface for threads share; `more` as in `MiddlewareState`. Raises `ConfigError`."""
    if not isinstance(usage, UsageLog | None):
        raise ConfigError("usage", f"expected a UsageLog of ratelimit.sync, not {usage!r}")
    return MiddlewareState(AskingLimiter(limiter), usage, **more)


class AppRequest:
    """One request, its checks and what they took; `request.decisions` are those made so far."""

    __slots__ = ("_reader", "admission", "state")

    def __init__(self, state: MiddlewareState, scope: Scope, outer: object = None) -> None:
        """`outer` is what a surface further out has left of this request."""
        self.state = state
        admission = outer.admission if isinstance(outer, AppRequest) else None
        self.admission: Admission = Admission(state, scope, admission, self.receive)
        self._reader: InputReader | None = None

    @property
    def decisions(self) -> list[Decision]:
        """Return them in the order they were made, refused and shadowed ones included."""
        return self.admission.charges.decisions

    def settle(self, action: str, used: int) -> None:
        """Say how many of the units were used that a policy has reserved for this request; at the end of its answer
        the others go back.

        Raises `InvalidCost` for more than are reserved, and `NotHeld` where none are, or not any more.
        """
        self.admission.charges.settle_held(action, used)

    async def begin(self) -> Response | None:
        """Check it. Return the answer where the app is not to see it."""
        refused = await self.admission.check()
        if refused is None:
            self._hand_over()
            return None
        return await self._refuse(refused)

    async def ask(self, said: Said) -> Decision:
        """Check one policy because a view asks. Raises `QuotaExceeded`, `UnknownAction`, and what functions raise."""
        admission = self.admission
        inline = said.about(admission.connection, self.state.options)
        decision = await admission.ask(said.action, cost=said.cost(), inline=inline)
        self._hand_over()
        return decision

    async def answer_to(self, error: QuotaExceeded | HTTPException) -> Response:
        """Return the answer to what a view has raised because of a check; what it has acted on stays spent."""
        if isinstance(error, HTTPException):
            return await self._refuse(error)
        self.admission.charges.act()
        return await self._refuse(error.decision)

    async def receive(self) -> Message:
        if self._reader is None:
            self._reader = InputReader(self.admission.scope["wsgi.environ"])
        return await self._reader.receive()

    def _hand_over(self) -> None:
        buffered = self.admission.buffered
        if buffered is not None and self._reader is not None:
            read, has_more = buffered.hand_over()
            self.admission.scope["wsgi.environ"]["wsgi.input"] = self._reader.after(read, has_more=has_more)

    async def _refuse(self, refused: Decision | HTTPException) -> Response:
        self.admission.has_begun = True
        response, fields = await self.admission.refuse(refused)
        return await answer_of(partial(self.state.refusals.send, response, fields), self.admission.scope)

    async def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> Headers:
        """Settle, as the answer begins. Return the fields to add to it."""
        admission = self.admission
        admission.has_begun = True
        if returned := admission.answer(status, headers, success=status < 400):
            await admission.give_back(returned)
        return admission.fields(headers)

    async def end(self) -> None:
        """Settle what is not yet, and record it, when the request is over. Harmless when it was."""
        if not self.admission.is_over:
            await self.admission.end()


def encoded(headers: Iterable[tuple[str, str]]) -> Headers:
    """Return fields as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]


def decoded(headers: Headers) -> list[tuple[str, str]]:
    """Return fields as WSGI has them."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def scope_of(environ: Mapping[str, Any]) -> Scope:
    """Return the request's scope (PEP 3333 → ASGI's HTTP connection scope).

    `user` is the server's `REMOTE_USER`, which no client can set. A field that came twice the server has made one of,
    so that nobody behind it can tell either.
    """
    root = _text(environ.get("SCRIPT_NAME", ""))
    scope: Scope = {
        "type": "http",
        "http_version": str(environ.get("SERVER_PROTOCOL", "HTTP/1.1")).partition("/")[2],
        "scheme": environ.get("wsgi.url_scheme", "http"),
        "method": environ["REQUEST_METHOD"],
        "root_path": root,
        "path": root + _text(environ.get("PATH_INFO", "")),
        "query_string": environ.get("QUERY_STRING", "").encode("latin-1"),
        "headers": _headers(environ),
        "client": _client(environ),
        "server": (environ.get("SERVER_NAME", ""), int(environ.get("SERVER_PORT") or 0)),
        "wsgi.environ": environ,
    }
    if (target := environ.get("RAW_URI") or environ.get("REQUEST_URI")) is not None:
        scope["raw_path"] = target.partition("?")[0].encode("latin-1", "replace")
    if user := environ.get("REMOTE_USER"):
        scope["user"] = user
    return scope


def _text(value: str) -> str:
    """Return the text that a server has decoded as Latin-1, byte for byte, as ASGI's decode it."""
    return value.encode("latin-1", "replace").decode("utf-8", "replace")


def _headers(environ: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    found = [
        (field, value.encode("latin-1", "replace"))
        for name, value in environ.items()
        if name.startswith("HTTP_") and (field := _field(name[5:]))
    ]
    found += [(_field(name), environ[name].encode("latin-1", "replace")) for name in _UNPREFIXED if environ.get(name)]
    return found


@lru_cache(maxsize=256)
def _field(name: str) -> bytes:
    return name.replace("_", "-").lower().encode("latin-1", "replace")


def _client(environ: Mapping[str, Any]) -> tuple[str, int] | None:
    address = environ.get("REMOTE_ADDR")
    port = str(environ.get("REMOTE_PORT") or "")
    return (address, int(port) if port.isdecimal() else 0) if address else None


class InputReader:
    """Reads `wsgi.input` as far as the request goes: there a server may wait for ever, or find the next request."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._input = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH") or ""
        self._left: int | None = None if environ.get("wsgi.input_terminated") else 0
        if length.isdecimal():
            self._left = int(length)

    def read(self, most: int) -> bytes:
        """Return up to so many bytes; none at the end."""
        wanted = most if self._left is None else min(most, self._left)
        piece: bytes = self._input.read(wanted) if wanted else b""
        if self._left is not None:
            self._left -= len(piece)
        return piece

    async def receive(self) -> Message:
        piece = self.read(_PIECE_BYTES)
        if not piece and self._left:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": bool(piece) and self._left != 0}

    def after(self, read: bytes, *, has_more: bool) -> io.BufferedIOBase:
        return io.BufferedReader(_Replayed(read, self)) if has_more else io.BytesIO(read)


class _Replayed(io.RawIOBase):
    def __init__(self, read: bytes, rest: InputReader) -> None:
        self._read = io.BytesIO(read)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._read.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)
