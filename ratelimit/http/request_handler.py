"""`RequestHandler`: one request, which is checked, whose answer gets its headers, and what it spent is settled."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ratelimit.decision import Decision
from ratelimit.errors import QuotaExceeded
from ratelimit.http.charges import Charge, Charges, Recorder, give_back_all
from ratelimit.http.identity import UserResolver
from ratelimit.http.policy_check import Routes, SurfaceOptions, connection_of
from ratelimit.http.refusal import Refusals, closing, rejection
from ratelimit.limiter import Limiter
from ratelimit.tasks import Tasks

SCOPE_KEY: Final = "ratelimit"

_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend", "websocket.http.response.body"})
# Those that tell a client to send the same request again, elsewhere; after 302 and 303 it sends another one.
_SAME_AGAIN: Final = frozenset({301, 307, 308})
_FRAMEWORKS: Final = frozenset({"starlette", "fastapi", "litestar", "django"})


class RateLimitState:
    """What the middleware leaves in `scope["ratelimit"]` for views, and for a middleware further in: the limiter, who
    the request is from, and what has been decided about it so far."""

    __slots__ = ("charges", "exempt", "handler", "limiter", "options")

    def __init__(self, handler: RequestHandler, limiter: Limiter, options: SurfaceOptions, charges: Charges) -> None:
        self.exempt = False
        """Whether no policy is to check this request."""
        self.handler = handler
        self.limiter = limiter
        self.options = options
        self.charges = charges

    @property
    def identity(self) -> UserResolver:
        """Return what finds the user of a request: `user_of(request)`."""
        return self.options.user_resolver

    @property
    def decisions(self) -> list[Decision]:
        """Return them in the order they were made, refused and shadowed ones included."""
        return self.charges.decisions

    async def take(self, charge: Charge) -> None:
        """Take note of a check that a view has asked for, on whose answer it acts. Raises `QuotaExceeded`."""
        decision, charges = charge.decision, self.charges
        if self.handler.has_begun:
            charges.add_late(charge)
            await self.handler.settle_late(charge)
        else:
            charges.add(charge)
            charges.act()
        if not decision.allowed:
            charges.raised = QuotaExceeded(decision)
            raise charges.raised

    @classmethod
    def of(cls, scope: Scope) -> RateLimitState | None:
        """Return what a middleware further out has left."""
        state = scope.get(SCOPE_KEY)
        return state if isinstance(state, cls) else None


class MiddlewareState:
    """What all requests through one middleware share."""

    __slots__ = ("clock", "exemption", "inner", "limiter", "options", "recorder", "refunds", "refusals", "routes")

    def __init__(
        self,
        limiter: Limiter,
        options: SurfaceOptions,
        routes: Routes,
        refunds: Tasks,
        refusals: Refusals,
        recorder: Recorder | None,
        inner: Sequence[MiddlewareState],
    ) -> None:
        self.limiter = limiter
        self.clock = limiter.clock
        self.options = options
        self.exemption = options.exempt if options.exempt else None
        self.routes = routes
        self.refunds = refunds
        self.refusals = refusals
        self.recorder = recorder
        self.inner = inner
        """Those of the middlewares that stand next to it, further in."""


class RequestHandler:
    """Its `send` is what the app is given. Messages other than a start pass through as they are, one by one.

    Within another middleware's it goes on with that one's charges, so that each unit is accounted for once.
    """

    __slots__ = (
        "_charges", "_closed", "_headers", "_outer", "_receive", "_scope", "_send", "_shared", "_since", "_state",
        "_status", "_succeeded", "has_begun",
    )  # fmt: skip

    def __init__(self, shared: MiddlewareState, scope: Scope, receive: Receive, send: Send) -> None:
        outer = RateLimitState.of(scope)
        self._outer: RateLimitState | None = outer
        self._charges = Charges() if outer is None else outer.charges
        if outer is not None and not outer.handler.leads_to(shared):
            self._charges.act()
        self._state = scope[SCOPE_KEY] = RateLimitState(self, shared.limiter, shared.options, self._charges)
        self._shared = shared
        self._since = 0 if shared.recorder is None else shared.clock.now()
        self._status = 500
        self._headers: Any = ()
        self._scope = scope
        self._receive = receive
        self._send = send
        self.has_begun = False
        """Whether the answer has."""
        self._succeeded = False
        self._closed = False

    async def check(self) -> Decision | HTTPException | None:
        """Return the decision of the first policy that refuses, or what a function of the app has raised."""
        scope, shared = self._scope, self._shared
        try:
            if shared.exemption is not None and await shared.exemption.covers(connection_of(scope)):
                self._state.exempt = True
                return None
            policy_checks = shared.routes.find(scope)
            if policy_checks and scope.get("method") == "OPTIONS" and shared.refusals.is_preflight(scope):
                return None
            for policy_check in policy_checks:
                charge = await policy_check.check(scope)
                self._charges.add(charge)
                if not charge.decision.allowed:
                    return charge.decision
        except HTTPException as error:
            return error
        return None

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the app on."""
        kind = message["type"]
        if not self.has_begun and kind in _STARTS:
            if self._charges.raised is not None and message.get("status") == 500 and self._escaped():
                return self._refuse_instead()
            if returned := self._start(message):
                return self._give_back_first(returned, message)
            message = self._with_headers(message)
        elif kind == "websocket.close":
            if not self.has_begun:
                return self._close_handshake(message)
            self._closed = True
        return self._send(message) if self._shared.recorder is None else self._pass(message)

    async def refuse(self, decision: Decision, *, by_app: bool = False) -> bool:
        """Answer with a refusal; first give back what was taken for it. False where the app has begun another answer.

        What the app has acted on, if it was asked already, stays spent.
        """
        if by_app:
            self._charges.act()
        if self.has_begun:
            if self._scope["type"] == "http" or self._closed:
                return self._status >= 400
            self._closed = True
            await self._send(closing(self._scope))
            return True
        self.has_begun = True
        shared = self._shared
        response, fields = await shared.refusals.of(self._scope, decision)
        self._status = response.status_code
        self._headers = [*response.raw_headers, *fields]
        if returned := self._charges.refuse(decision, self._status, self._headers):
            await give_back_all(shared.refunds, returned)
        if shared.recorder is not None:
            await self._record()
        send, self._send = self._send, _drop
        await shared.refusals.send(response, fields, self._scope, self._receive, send)
        return True

    async def reject(self, error: HTTPException) -> None:
        """Answer what a function of the app has raised about the request."""
        await self._shared.refusals.send(rejection(error), [], self._scope, self._receive, self.send)

    def leads_to(self, shared: MiddlewareState) -> bool:
        """Return whether there are but middlewares between this one and that: nothing has been done in between."""
        return any(one is shared for one in self._shared.inner)

    async def settle_late(self, charge: Charge) -> None:
        """See through what was checked after the answer has begun: settle it, and write it down."""
        if charge.spent and not charge.counts(self._succeeded, self._status, self._headers):
            await give_back_all(self._shared.refunds, [charge])
        charge.settle()
        await self.record([charge], None)

    @property
    def is_over(self) -> bool:
        """Return whether nothing is left for `end` to do."""
        return self._shared.recorder is None and self._charges.is_settled

    async def end(self) -> None:
        """Settle when the app is through with the request. One that was not answered is a failure."""
        if returned := self._charges.settle(self._succeeded, self._status, self._headers):
            await give_back_all(self._shared.refunds, returned)
        await self._record()

    async def record(self, charges: Sequence[Charge], duration: float | None) -> None:
        """Write down what was checked, with this middleware's log or that of one further out."""
        recorder = self._shared.recorder
        if recorder is not None:
            await recorder.record(self._scope, charges, status=self._status, duration=duration)
        elif self._outer is not None:
            await self._outer.handler.record(charges, duration)

    def _start(self, message: Message) -> list[Charge]:
        """Note the status, with which it is known what counts. Return what has to be given back first."""
        self.has_begun = True
        kind = message["type"]
        self._status = status = 101 if kind == "websocket.accept" else message["status"]
        self._succeeded = kind == "websocket.accept" or (kind == "http.response.start" and status < 400)
        self._headers = message.get("headers") or ()
        if status in _SAME_AGAIN and not self._charges.is_acted_on and _only_a_slash(self._scope, self._headers):
            return self._charges.cancel()
        return self._charges.settle(self._succeeded, status, self._headers)

    async def _give_back_first(self, returned: Sequence[Charge], message: Message) -> None:
        """Refund, then send: whoever has the answer may ask again at once, and finds the units there."""
        await give_back_all(self._shared.refunds, returned)
        await self._pass(self._with_headers(message))

    async def _close_handshake(self, message: Message) -> None:
        """Pass on that the app closes a handshake that it has not accepted, of which servers make a 403."""
        self.has_begun = self._closed = True
        self._status = 403
        if returned := self._charges.settle(False, 403, ()):
            await give_back_all(self._shared.refunds, returned)
        await self._record()
        await self._send(message)

    def _escaped(self) -> bool:
        """Return whether the refusal that a view was told of got out of it: who answers 500 now does not know it."""
        error = self._charges.raised
        trace: Any = None if error is None else error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _FRAMEWORKS:
                return True
            trace = trace.tb_next
        return False

    async def _refuse_instead(self) -> None:
        raised = self._charges.raised
        assert raised is not None
        await self.refuse(raised.decision, by_app=True)

    async def _pass(self, message: Message) -> None:
        """Send it on; the one that completes the answer only when what it was is kept."""
        kind = message["type"]
        if kind == "websocket.accept" or (kind in _BODIES and not message.get("more_body")):
            await self._record()
        await self._send(message)

    async def _record(self) -> None:
        shared = self._shared
        if shared.recorder is not None and (charges := self._charges.to_record()):
            await self.record(charges, max(0, shared.clock.now() - self._since) / 1000)

    def _with_headers(self, message: Message) -> Message:
        """Add the fields the app has not set itself. Its message is left as it is, in case it sends it again."""
        ours = self._shared.options.writer.fields(self._charges.shown)
        if not ours:
            return message
        theirs: list[Any] = list(message.get("headers") or ())
        taken = {name.lower() for name, _ in theirs}
        return {**message, "headers": [*theirs, *[field for field in ours if field[0] not in taken]]}


async def _drop(message: Message) -> None:
    """Drop a message of an answer in whose place a refusal was sent."""


def _only_a_slash(scope: Scope, headers: Any) -> bool:
    """Return whether an answer asks the same host for the same with a slash more at its end, or one less."""
    asked = {name.lower(): value for name, value in scope["headers"]}
    location = {name.lower(): value for name, value in headers}.get(b"location", b"")
    try:
        target = urlsplit(location.decode("latin-1"))
    except ValueError:
        return False
    if target.netloc and target.netloc.lower().encode("latin-1") != asked.get(b"host", b"").lower():
        return False
    path, there = scope["path"], unquote(target.path)
    paths = (path, scope.get("root_path", "") + path)
    same = there and there.removesuffix("/") in [one.removesuffix("/") for one in paths] and there not in paths
    return bool(same and target.query.encode("latin-1") == scope.get("query_string", b""))
