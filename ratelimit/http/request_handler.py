"""`Exchange`: one request. It is checked, headers are added to the response's start, what it spent is settled."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ratelimit.decision import Decision
from ratelimit.errors import QuotaExceeded
from ratelimit.http.charges import Receipt, Routes, connection_of
from ratelimit.http.identity import Identity
from ratelimit.http.options import Surface
from ratelimit.http.recording import Recorder, Refunds
from ratelimit.http.refusal import Refusals, closing, rejection
from ratelimit.limiter import Limiter

if TYPE_CHECKING:
    from ratelimit.http.options import Surface


# `RateLimitState`: what the middleware leaves in `scope["ratelimit"]` for views, and for a middleware further in.

SCOPE_KEY: Final = "ratelimit"


class Receipts:
    """Everything that one request was checked for before it was answered. What does not count in the end is handed out
    once, to be given back: by `settle` when the answer is known, by `refuse` when the request is refused after all."""

    __slots__ = ("_all", "_asked", "_later", "_recorded", "_settled", "_void", "raised", "refused")

    def __init__(self) -> None:
        self.refused: Decision | None = None
        self.raised: QuotaExceeded | None = None
        """What a view was last told of a refusal."""
        self._void = False
        self._all: list[Receipt] = []
        self._asked = 0
        """So many of them, from the first, the app has acted on; are not to be given back any more; are recorded."""
        self._settled = 0
        self._recorded = 0
        self._later: dict[str, Decision] = {}

    @property
    def decisions(self) -> list[Decision]:
        """In the order they were made; of those made after the answer began, each policy's last."""
        return [*[receipt.decision for receipt in self._all], *self._later.values()]

    @property
    def shown(self) -> list[Decision]:
        """Those that the response's headers speak of: a shadow policy is not to be seen."""
        if self._void and self.refused is not None:
            return [self.refused]
        return [receipt.decision for receipt in self._all if receipt.policy.mode == "enforce"]

    @property
    def spent(self) -> list[Receipt]:
        """Those that took units and are not settled yet."""
        return [receipt for receipt in self._all[self._settled :] if receipt.spent]

    @property
    def is_settled(self) -> bool:
        """Whether nothing was added since."""
        return self._settled == len(self._all)

    @property
    def asked(self) -> bool:
        """Whether the app has asked by itself."""
        return self._asked > 0

    def add(self, receipt: Receipt) -> None:
        """Take note of a check."""
        self._all.append(receipt)
        if not receipt.decision.allowed:
            self.refused = receipt.decision

    def act(self) -> None:
        """What was admitted so far the app acts on: a later refusal does not give it back."""
        self._asked = len(self._all)

    def later(self, receipt: Receipt) -> None:
        """Take note of a check after the answer has begun: there may be any number of them."""
        self._later[receipt.policy.name] = receipt.decision
        if not receipt.decision.allowed:
            self.refused = receipt.decision

    def settle(self, success: bool, status: int, headers: Any) -> list[Receipt]:
        """The answer is known. What does not count with it has to be given back."""
        returned = uncounted(self._all[self._settled :], success, status, headers)
        self._settled = len(self._all)
        return returned

    def withdraw(self) -> list[Receipt]:
        """It was no request of its own after all: whatever counts, all that it spent has to be given back."""
        spent = self.spent
        self._settled = len(self._all)
        return spent

    def keep(self) -> None:
        """How it ends will not be known: what is spent stays spent."""
        for receipt in self.spent:
            receipt.settled()
        self._settled = len(self._all)

    def refuse(self, refused: Decision, status: int, headers: Any) -> list[Receipt]:
        """The request is refused. What was taken for that same decision has to be given back; what the app has acted on
        counts as it does with such an answer. Its headers speak of the refusal only."""
        self.refused = refused
        self._void = True
        taken = [receipt for receipt in self._all[max(self._settled, self._asked) :] if receipt.spent]
        if self._settled < self._asked:
            taken += uncounted(self._all[self._settled : self._asked], False, status, headers)
        self._settled = len(self._all)
        return taken

    def to_record(self) -> list[Receipt]:
        """What has not been recorded yet, each once."""
        receipts = self._all[self._recorded :]
        self._recorded = len(self._all)
        return receipts


def uncounted(receipts: Iterable[Receipt], success: bool, status: int, headers: Any) -> list[Receipt]:
    """Those that spent what does not count with such an answer."""
    returned: list[Receipt] = []
    for receipt in receipts:
        if receipt.policy.count == "all" or not receipt.spent:
            continue
        if receipt.counts(success, status, headers):
            receipt.settled()
        else:
            returned.append(receipt)
    return returned


class Started(Protocol):
    """The exchange that a state belongs to."""

    @property
    def has_begun(self) -> bool:
        """Whether the answer has."""
        ...

    def leads_to(self, site: object) -> bool:
        """Whether there are but middlewares between this one and that of a site: nothing has been done in between."""
        ...

    async def settle_later(self, receipt: Receipt) -> None:
        """See through what was checked after that: settle it, and write it down."""
        ...

    async def record(self, receipts: Sequence[Receipt], duration: float | None) -> None:
        """Write down what was checked."""
        ...


class RateLimitState:
    """The limiter, who the request is from, and what has been decided about it so far."""

    __slots__ = ("exchange", "exempt", "limiter", "receipts", "surface")

    def __init__(self, limiter: Limiter, surface: Surface, receipts: Receipts, exchange: Started) -> None:
        self.exempt = False
        """Whether no policy is to check this request."""
        self.limiter = limiter
        self.surface = surface
        self.receipts = receipts
        self.exchange = exchange

    @property
    def identity(self) -> Identity:
        """Asks `user_of(request)` where the surface finds a user."""
        return self.surface.identity

    @property
    def decisions(self) -> list[Decision]:
        """In the order they were made, refused and shadowed ones included."""
        return self.receipts.decisions

    async def take(self, receipt: Receipt) -> None:
        """A view has asked, and acts on the answer. Raises `QuotaExceeded`."""
        decision, receipts = receipt.decision, self.receipts
        if self.exchange.has_begun:
            receipts.later(receipt)
            await self.exchange.settle_later(receipt)
        else:
            receipts.add(receipt)
            receipts.act()
        if not decision.allowed:
            receipts.raised = QuotaExceeded(decision)
            raise receipts.raised

    @classmethod
    def of(cls, scope: Scope) -> RateLimitState | None:
        """What a middleware further out has left."""
        state = scope.get(SCOPE_KEY)
        return state if isinstance(state, cls) else None


_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend", "websocket.http.response.body"})
# Those that tell a client to send the same request again, elsewhere; after 302 and 303 it sends another one.
_SAME_AGAIN: Final = frozenset({301, 307, 308})
_FRAMEWORKS: Final = frozenset({"starlette", "fastapi", "litestar", "django"})


class Site:
    """What all exchanges of one middleware share."""

    __slots__ = ("clock", "exemption", "inner", "limiter", "recorder", "refunds", "refusals", "routes", "surface")

    def __init__(
        self,
        limiter: Limiter,
        surface: Surface,
        routes: Routes,
        refunds: Refunds,
        refusals: Refusals,
        recorder: Recorder | None,
        inner: Sequence[Site],
    ) -> None:
        self.limiter = limiter
        self.clock = limiter.clock
        self.surface = surface
        self.exemption = surface.exempt if surface.exempt else None
        self.routes = routes
        self.refunds = refunds
        self.refusals = refusals
        self.recorder = recorder
        self.inner = inner
        """Those that stand next to it, further in."""


class Exchange:
    """Its `send` is what the app is given. Messages other than a start pass through as they are, one by one.

    Within another middleware's it goes on with that one's receipts, so that each unit is accounted for once.
    """

    __slots__ = (
        "_closed", "_headers", "_outer", "_receipts", "_receive", "_scope", "_send", "_since", "_site", "_started",
        "_state", "_status", "_succeeded",
    )  # fmt: skip

    def __init__(self, site: Site, scope: Scope, receive: Receive, send: Send) -> None:
        outer = RateLimitState.of(scope)
        self._outer: RateLimitState | None = outer
        self._receipts = Receipts() if outer is None else outer.receipts
        if outer is not None and not outer.exchange.leads_to(site):
            self._receipts.act()
        self._state = scope[SCOPE_KEY] = RateLimitState(site.limiter, site.surface, self._receipts, self)
        self._site = site
        self._since = 0 if site.recorder is None else site.clock.now()
        self._status = 500
        self._headers: Any = ()
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = False
        self._succeeded = False
        self._closed = False

    async def check(self) -> Decision | HTTPException | None:
        """The decision of the first policy that refuses, or what a function of the app has raised about the request."""
        scope, site = self._scope, self._site
        try:
            if site.exemption is not None and await site.exemption.covers(connection_of(scope)):
                self._state.exempt = True
                return None
            gates = site.routes.gates(scope)
            if gates and scope.get("method") == "OPTIONS" and site.refusals.is_preflight(scope):
                return None
            for gate in gates:
                receipt = await gate.check(scope)
                self._receipts.add(receipt)
                if not receipt.decision.allowed:
                    return receipt.decision
        except HTTPException as error:
            return error
        return None

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the app on."""
        kind = message["type"]
        if not self._started and kind in _STARTS:
            if self._receipts.raised is not None and message.get("status") == 500 and self._escaped():
                return self._refuse_instead()
            if returned := self._start(message):
                return self._give_back_first(returned, message)
            message = self._with_headers(message)
        elif kind == "websocket.close":
            if not self._started:
                return self._turn_away(message)
            self._closed = True
        return self._send(message) if self._site.recorder is None else self._pass(message)

    async def refuse(self, decision: Decision, *, by_app: bool = False) -> bool:
        """Answer with a refusal; first give back what was taken for it. False where the app has begun another answer.

        What the app has acted on, if it was asked already, stays spent.
        """
        if by_app:
            self._receipts.act()
        if self._started:
            if self._scope["type"] == "http" or self._closed:
                return self._status >= 400
            self._closed = True
            await self._send(closing(self._scope))
            return True
        self._started = True
        refusals = self._site.refusals
        response, fields = await refusals.of(self._scope, decision)
        self._status = response.status_code
        self._headers = [*response.raw_headers, *fields]
        if returned := self._receipts.refuse(decision, self._status, self._headers):
            await self._site.refunds.give_back(returned)
        await self._record()
        send, self._send = self._send, _drop
        await refusals.send(response, fields, self._scope, self._receive, send)
        return True

    async def reject(self, error: HTTPException) -> None:
        """Answer what a function of the app has raised about the request."""
        await self._site.refusals.send(rejection(error), [], self._scope, self._receive, self.send)

    @property
    def has_begun(self) -> bool:
        """See `Started`."""
        return self._started

    def leads_to(self, site: object) -> bool:
        """See `Started`."""
        return any(one is site for one in self._site.inner)

    async def settle_later(self, receipt: Receipt) -> None:
        """See `Started`."""
        if receipt.spent and not receipt.counts(self._succeeded, self._status, self._headers):
            await self._site.refunds.give_back([receipt])
        receipt.settled()
        await self.record([receipt], None)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left for `end` to do."""
        return self._site.recorder is None and self._receipts.is_settled

    async def end(self) -> None:
        """The app is through with the request. One that was not answered is a failure."""
        if returned := self._receipts.settle(self._succeeded, self._status, self._headers):
            await self._site.refunds.give_back(returned)
        await self._record()

    async def record(self, receipts: Sequence[Receipt], duration: float | None) -> None:
        """Write down what was checked, with this middleware's log or that of one further out."""
        recorder = self._site.recorder
        if recorder is not None:
            await recorder.record(self._scope, receipts, status=self._status, duration=duration)
        elif self._outer is not None:
            await self._outer.exchange.record(receipts, duration)

    def _start(self, message: Message) -> list[Receipt]:
        """The status is known now, and with it what counts. What has to be given back first."""
        self._started = True
        kind = message["type"]
        self._status = status = 101 if kind == "websocket.accept" else message["status"]
        self._succeeded = kind == "websocket.accept" or (kind == "http.response.start" and status < 400)
        self._headers = message.get("headers") or ()
        if status in _SAME_AGAIN and not self._receipts.asked and _only_a_slash(self._scope, self._headers):
            return self._receipts.withdraw()
        return self._receipts.settle(self._succeeded, status, self._headers)

    async def _give_back_first(self, returned: Sequence[Receipt], message: Message) -> None:
        """Whoever has the answer may ask again at once, and finds the units there."""
        await self._site.refunds.give_back(returned)
        await self._pass(self._with_headers(message))

    async def _turn_away(self, message: Message) -> None:
        """The app closes a handshake that it has not accepted, of which servers make a 403."""
        self._started = self._closed = True
        self._status = 403
        if returned := self._receipts.settle(False, 403, ()):
            await self._site.refunds.give_back(returned)
        await self._record()
        await self._send(message)

    def _escaped(self) -> bool:
        """Whether the refusal that a view was told of has got out of it: whoever answers 500 now does not know it."""
        error = self._receipts.raised
        trace: Any = None if error is None else error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _FRAMEWORKS:
                return True
            trace = trace.tb_next
        return False

    async def _refuse_instead(self) -> None:
        raised = self._receipts.raised
        assert raised is not None
        await self.refuse(raised.decision, by_app=True)

    async def _pass(self, message: Message) -> None:
        """Send it on; the one that completes the answer only when what it was is kept."""
        kind = message["type"]
        if kind == "websocket.accept" or (kind in _BODIES and not message.get("more_body")):
            await self._record()
        await self._send(message)

    async def _record(self) -> None:
        site = self._site
        if site.recorder is not None and (receipts := self._receipts.to_record()):
            await self.record(receipts, max(0, site.clock.now() - self._since) / 1000)

    def _with_headers(self, message: Message) -> Message:
        """The fields the app has not set itself; the app's message is left as it is, in case it sends it again."""
        ours = self._site.surface.writer.fields(self._receipts.shown)
        if not ours:
            return message
        theirs: list[Any] = list(message.get("headers") or ())
        taken = {name.lower() for name, _ in theirs}
        return {**message, "headers": [*theirs, *[field for field in ours if field[0] not in taken]]}


async def _drop(message: Message) -> None:
    """Of an answer in the place of which a refusal was sent."""


def _only_a_slash(scope: Scope, headers: Any) -> bool:
    """Whether an answer asks for the same request with a slash more at its end, or one less: of the same host."""
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
