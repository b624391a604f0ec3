"""`AppRequest`: one request to an app that is not ASGI's. What is done before its view, and with its answer.

Its methods are coroutines, as the checks are. `run` does them where there is no event loop: whatever waits there is a
blocking call, so that they never do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Scope

from ratelimit.decision import Decision, JointDecision
from ratelimit.errors import ConfigError, QuotaExceeded
from ratelimit.http.admission import Admission, MiddlewareState
from ratelimit.http.headers import Headers
from ratelimit.http.inline import Said
from ratelimit.http.refusal import rejection
from ratelimit.limiter import Spend, limiter
from ratelimit.limiter.slots import Slot
from ratelimit.sync import Limiter, UsageLog
from ratelimit.usage import log
from ratelimit.wsgi.environ import InputReader

T = TypeVar("T")


class AppAnswer(NamedTuple):
    """An answer of our own, in the place of the app's."""

    status: int
    headers: Headers
    body: bytes


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
        """Check, and block."""
        return self.asked.check(*args, **options)

    async def _check_all(self, asked: Sequence[Spend]) -> JointDecision:
        return self.asked._run(self.asked._core._check_all(asked))

    def slot(self, *args: Any, **options: Any) -> Any:
        """Return a slot that blocks."""
        return _AskingHold(self.asked, self.asked._core.slot(*args, **options))

    def reserve(self, *args: Any, **options: Any) -> Any:
        """Return a reservation that blocks."""
        return _AskingHold(self.asked, self.asked._core.reserve(*args, **options))

    async def charge(self, *args: Any, **options: Any) -> Decision:
        """Charge, and block."""
        return self.asked.charge(*args, **options)

    async def refund(self, *args: Any, **options: Any) -> None:
        """Refund, and block."""
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


class AskingLog(log.UsageLog):
    """A usage log for threads, likewise."""

    def __init__(self, asked: UsageLog) -> None:
        if not isinstance(asked, UsageLog):
            raise ConfigError("usage", f"expected a UsageLog of ratelimit.sync, not {asked!r}")
        self.asked = asked

    def _accept(self, *args: Any, **options: Any) -> Awaitable[bool] | None:
        self.asked._accept(*args, **options)
        return None


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

    async def begin(self) -> AppAnswer | None:
        """Check it. Return the answer where the app is not to see it."""
        refused = await self.admission.check()
        if refused is None:
            self._hand_over()
            return None
        return await (self._reject(refused) if isinstance(refused, HTTPException) else self._refuse(refused))

    async def ask(self, said: Said) -> Decision:
        """Check one policy because a view asks. Raises `QuotaExceeded`, `UnknownAction`, and what functions raise."""
        admission = self.admission
        inline = said.about(admission.connection, self.state.options)
        decision = await admission.ask(said.action, cost=said.cost(), inline=inline)
        self._hand_over()
        return decision

    async def answer_to(self, error: QuotaExceeded | HTTPException) -> AppAnswer:
        """Return the answer to what a view has raised because of a check; what it has acted on stays spent."""
        if not isinstance(error, QuotaExceeded):
            return await self._reject(error)
        self.admission.charges.act()
        return await self._refuse(error.decision)

    async def receive(self) -> Message:
        """Read on in the body, for a function that asks for it."""
        if self._reader is None:
            self._reader = InputReader(self.admission.scope["wsgi.environ"])
        return await self._reader.receive()

    def _hand_over(self) -> None:
        buffered = self.admission.buffered
        if buffered is not None and self._reader is not None:
            read, has_more = buffered.hand_over()
            self.admission.scope["wsgi.environ"]["wsgi.input"] = self._reader.after(read, has_more=has_more)

    async def _refuse(self, decision: Decision) -> AppAnswer:
        self.admission.has_begun = True
        response, fields = await self.admission.refuse(decision)
        return await self._sent(response, fields)

    async def _reject(self, error: HTTPException) -> AppAnswer:
        response = rejection(error)
        fields = await self.start(response.status_code, response.raw_headers)
        await self.admission.record()
        return await self._sent(response, fields)

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

    async def _sent(self, response: Response, fields: Headers) -> AppAnswer:
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await self.state.refusals.send(response, fields, self.admission.scope, _disconnected, send)
        start, *parts = sent
        return AppAnswer(start["status"], list(start["headers"]), b"".join(part.get("body", b"") for part in parts))


async def _disconnected() -> Message:
    return {"type": "http.disconnect"}


def encoded(headers: Iterable[tuple[str, str]]) -> Headers:
    """Return fields as ASGI has them."""
    return [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers]


def decoded(headers: Headers) -> list[tuple[str, str]]:
    """Return fields as WSGI has them."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
