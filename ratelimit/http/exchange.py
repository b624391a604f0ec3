"""`Exchange`: one request. It is checked, headers are added to the response's start, what it spent is settled."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import Message, Scope, Send

from ratelimit.decision import Decision
from ratelimit.http.recording import Recorder
from ratelimit.http.refunds import Refunds
from ratelimit.http.refusal import POLICY_VIOLATION, Refusal
from ratelimit.http.routes import Routes
from ratelimit.http.state import SCOPE_KEY, RateLimitState, Receipts
from ratelimit.http.surface import Surface
from ratelimit.limiter import Limiter

_STARTS: Final = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})
_BODIES: Final = frozenset({"http.response.body", "http.response.pathsend", "websocket.http.response.body"})
_MOST_HELD: Final = 2


class Site:
    """What all exchanges of one middleware share."""

    __slots__ = ("clock", "exemption", "limiter", "recorder", "refunds", "routes", "surface")

    def __init__(
        self, limiter: Limiter, surface: Surface, routes: Routes, refunds: Refunds, recorder: Recorder | None
    ) -> None:
        self.limiter = limiter
        self.clock = limiter.clock
        self.surface = surface
        self.exemption = surface.exempt if surface.exempt else None
        self.routes = routes
        self.refunds = refunds
        self.recorder = recorder


class Exchange:
    """Its `send` is what the app is given. Messages other than a start pass through as they are, one by one.

    Within another middleware's it goes on with that one's receipts, so that each unit is accounted for once.
    """

    __slots__ = (
        "_closed", "_held", "_receipts", "_scope", "_send", "_since", "_site", "_started", "_state", "_status",
        "_succeeded",
    )  # fmt: skip

    def __init__(self, site: Site, scope: Scope, send: Send) -> None:
        outer = RateLimitState.of(scope)
        self._receipts = Receipts() if outer is None else outer.receipts
        self._state = scope[SCOPE_KEY] = RateLimitState(site.limiter, site.surface, self._receipts)
        self._site = site
        self._since = 0 if site.recorder is None else site.clock.now()
        self._status = 500
        self._scope = scope
        self._send = send
        self._started = False
        self._succeeded = False
        self._closed = False
        self._held: list[Message] | None = None

    async def check(self) -> Decision | None:
        """The decision of the first policy that refuses."""
        exemption = self._site.exemption
        if exemption is not None and await exemption.covers(HTTPConnection(self._scope)):
            self._state.exempt = True
            return None
        for gate in self._site.routes.gates(self._scope):
            receipt = await gate.check(self._scope)
            self._receipts.add(receipt)
            if not receipt.decision.allowed:
                return receipt.decision
        return None

    def send(self, message: Message) -> Awaitable[None]:
        """Pass a message of the app on."""
        kind = message["type"]
        if self._held is not None:
            return self._hold(self._held, message)
        if not self._started and kind in _STARTS:
            if self._receipts.refused is not None and message.get("status", 0) >= 400:
                return self._hold([], message)
            message = self._start(message)
        elif kind == "websocket.close":
            self._closed = True
        return self._send(message) if self._site.recorder is None else self._pass(message)

    async def refuse(self, decision: Decision) -> bool:
        """Answer with a refusal and give back what the request has spent. False where the app has begun to answer."""
        if self._started and (self._scope["type"] == "http" or self._closed):
            return False
        self._held = None
        self._site.refunds.start(self._receipts.void(decision))
        if self._started:
            await self._send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "quota exceeded"})
        else:
            self._started = True
            refusal = Refusal.of(decision, self._site.surface.writer)
            self._status = refusal.status
            await self._record()
            await refusal.send(self._scope, self._send)
        return True

    @property
    def is_over(self) -> bool:
        """Whether nothing is left for `end` to do."""
        return self._held is None and self._site.recorder is None and self._receipts.is_settled

    async def end(self) -> None:
        """The app is through with the request. One that was not answered is a failure."""
        if self._held is not None:
            await self._release(self._held)
        self._settle()
        if self._site.recorder is not None:
            await self._record()

    def _start(self, message: Message) -> Message:
        """The status is known now, and with it what counts."""
        self._started = True
        kind = message["type"]
        self._status = 101 if kind == "websocket.accept" else message["status"]
        self._succeeded = kind == "websocket.accept" or (kind == "http.response.start" and message["status"] < 400)
        self._settle()
        return self._with_headers(message)

    async def _hold(self, held: list[Message], message: Message) -> None:
        """Where the middleware stands outside of a Starlette app, the app answers an exception it has no handler for
        with an error, and then raises it. Held back until it is known whether that exception was a refusal, which takes
        the place of this answer."""
        if not held or (len(held) < _MOST_HELD and not message.get("more_body")):
            self._held = [*held, message]
            return
        await self._release(held)
        await self._pass(message)

    async def _release(self, held: list[Message]) -> None:
        self._held = None
        await self._pass(self._start(held[0]))
        for message in held[1:]:
            await self._pass(message)

    async def _pass(self, message: Message) -> None:
        """Send it on; the one that completes the answer only when what it was is kept."""
        kind = message["type"]
        if kind == "websocket.accept" or (kind in _BODIES and not message.get("more_body")):
            await self._record()
        await self._send(message)

    async def _record(self) -> None:
        site = self._site
        if site.recorder is not None and (receipts := self._receipts.to_record()):
            now = site.clock.now()
            await site.recorder.record(self._scope, receipts, status=self._status, now=now, since=self._since)

    def _settle(self) -> None:
        if returned := self._receipts.settle(success=self._succeeded):
            self._site.refunds.start(returned)

    def _with_headers(self, message: Message) -> Message:
        """The fields the app has not set itself; the app's message is left as it is, in case it sends it again."""
        ours = self._site.surface.writer.fields(self._receipts.shown)
        if not ours:
            return message
        theirs: list[Any] = list(message.get("headers") or ())
        taken = {name.lower() for name, _ in theirs}
        return {**message, "headers": [*theirs, *[field for field in ours if field[0] not in taken]]}
