"""`RequestHandler`: one request to an ASGI app, which is checked, and whose answer gets its headers."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ratelimit.decision import Decision
from ratelimit.http.admission import Admission, MiddlewareState
from ratelimit.http.body import no_body
from ratelimit.http.charges import Charge, Charges
from ratelimit.http.identity import UserResolver
from ratelimit.http.policy_check import SurfaceOptions
from ratelimit.http.refusal import closing
from ratelimit.limiter import Limiter

SCOPE_KEY: Final = "ratelimit"

_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend", "websocket.http.response.body"})
_FRAMEWORKS: Final = frozenset({"starlette", "fastapi", "litestar", "django"})


class RateLimitState:
    """What the middleware leaves in `scope["ratelimit"]` for views, and for a middleware further in: the limiter, who
    the request is from, and what has been decided about it so far."""

    __slots__ = ("charges", "handler", "limiter", "options")

    def __init__(self, handler: RequestHandler, limiter: Limiter, options: SurfaceOptions, charges: Charges) -> None:
        self.handler = handler
        self.limiter = limiter
        self.options = options
        self.charges = charges

    @property
    def exempt(self) -> bool:
        """Return whether no policy is to check this request."""
        return self.handler.exempt

    @property
    def identity(self) -> UserResolver:
        """Return what finds the user of a request: `user_of(request)`."""
        return self.options.user_resolver

    @property
    def decisions(self) -> list[Decision]:
        """Return them in the order they were made, refused and shadowed ones included."""
        return self.charges.decisions

    def settle(self, action: str, used: int) -> None:
        """Say how many of the units were used that a policy has reserved for this request; at the end of its answer
        the others go back.

        Raises `InvalidCost` for more than are reserved, and `NotHeld` where none are, or not any more.
        """
        self.charges.settle_held(action, used)

    @classmethod
    def of(cls, scope: Scope) -> RateLimitState | None:
        state = scope.get(SCOPE_KEY)
        return state if isinstance(state, cls) else None


class RequestHandler(Admission):
    """Its `send` is what the app is given. Messages other than a start pass through as they are, one by one."""

    __slots__ = ("_closed", "_send")

    def __init__(self, shared: MiddlewareState, scope: Scope, receive: Receive, send: Send) -> None:
        outer = RateLimitState.of(scope)
        super().__init__(shared, scope, None if outer is None else outer.handler, receive)
        scope[SCOPE_KEY] = RateLimitState(self, shared.limiter, shared.options, self.charges)
        self._send = send
        self._closed = False

    @property
    def receive(self) -> Receive:
        """Return what the app is given: where a function has read the body, with what it has read."""
        buffered = self.buffered
        receive: Receive = self._receive if buffered is None else buffered.replay
        return receive

    def send(self, message: Message) -> Awaitable[None]:
        kind = message["type"]
        if not self.has_begun and kind in _STARTS:
            if self.charges.raised is not None and message.get("status") == 500 and self._escaped():
                return self._refuse_instead()
            if returned := self._start(message):
                return self._give_back_first(returned, message)
            message = self._with_headers(message)
        elif kind == "websocket.close":
            if not self.has_begun:
                return self._close_handshake(message)
            self._closed = True
        if self._shared.recorder is None and not self.charges.held:
            return self._send(message)
        return self._pass(message)

    async def send_refusal(self, refused: Decision | HTTPException, *, by_app: bool = False) -> bool:
        """Answer with a refusal; first give back what was taken for it. False where the app has begun another answer.

        What the app has acted on, if it was asked already, stays spent.
        """
        if by_app:
            self.charges.act()
        if self.has_begun:
            if self.scope["type"] == "http" or self._closed:
                return self.status >= 400
            self._closed = True
            await self._send(closing(self.scope))
            return True
        self.has_begun = True
        response, fields = await self.refuse(refused)
        send, self._send = self._send, _drop
        await self._shared.refusals.send(response, fields, self.scope, self._receive, send)
        return True

    def let_go(self) -> None:
        """Let go of the connection, whose scope leads back here: so nothing is left for the garbage collector to find.
        What a task checks that outlives the request is settled and written down all the same."""
        self.scope = dict(self.scope)
        self.scope.pop(SCOPE_KEY, None)
        self._connection = None
        self._receive, self._send = no_body, _drop

    def _start(self, message: Message) -> list[Charge]:
        self.has_begun = True
        kind = message["type"]
        accepted = kind == "websocket.accept"
        status = 101 if accepted else message["status"]
        success = accepted or (kind == "http.response.start" and status < 400)
        return self.answer(status, message.get("headers") or (), success=success)

    async def _give_back_first(self, returned: Sequence[Charge], message: Message) -> None:
        """Refund, then send: whoever has the answer may ask again at once, and finds the units there."""
        await self.give_back(returned)
        await self._pass(self._with_headers(message))

    async def _close_handshake(self, message: Message) -> None:
        """Pass on that the app closes a handshake that it has not accepted, of which servers make a 403."""
        self.has_begun = self._closed = True
        self.status = 403
        if returned := self.charges.settle(False, 403, ()):
            await self.give_back(returned)
        await self.record()
        await self._send(message)

    def _escaped(self) -> bool:
        """Return whether the refusal that a view was told of got out of it: who answers 500 now does not know it."""
        error = self.charges.raised
        trace: Any = None if error is None else error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _FRAMEWORKS:
                return True
            trace = trace.tb_next
        return False

    async def _refuse_instead(self) -> None:
        raised = self.charges.raised
        assert raised is not None
        await self.send_refusal(raised.decision, by_app=True)

    async def _pass(self, message: Message) -> None:
        """Send it on; the one that completes the answer only when what it was is kept, and what it held is back."""
        kind = message["type"]
        if kind in _BODIES and not message.get("more_body"):
            if self.charges.held:
                await self.release()
            await self.record()
        elif kind == "websocket.accept":
            await self.record()
        await self._send(message)

    def _with_headers(self, message: Message) -> Message:
        """Add the fields the app has not set itself. Its message is left as it is, in case it sends it again."""
        theirs: list[Any] = list(message.get("headers") or ())
        ours = self.fields(theirs)
        return {**message, "headers": [*theirs, *ours]} if ours else message


async def _drop(message: Message) -> None:
    """Drop a message of an answer in whose place a refusal was sent."""
