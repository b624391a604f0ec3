"""`Proxy`: the service in front of one upstream; `Forward`: one request that is checked, sent on to it, and answered
with what comes back, in pieces, no faster than the slower side takes them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Final, Literal, TypeAlias

import msgspec
from starlette.responses import Response

from ratelimit.decision import Decision
from ratelimit.factory import MiddlewareArgs
from ratelimit.http.admission import Admission, Answer
from ratelimit.http.charges import Charge, Charges, give_back
from ratelimit.http.lifespan import no_lifespan
from ratelimit.http.middleware import RateLimitMiddleware
from ratelimit.http.problems import Problem
from ratelimit.quota import MAX_LIMIT
from ratelimit.server.connection import NEVER, ClientConnection
from ratelimit.server.exchange import Exchange
from ratelimit.server.headers import COST, AnswerHead, InvalidResponse, RequestHeaders, response_trailers
from ratelimit.server.listener import Service
from ratelimit.server.pool import UpstreamConnection, UpstreamPool
from ratelimit.server.problems import BROKEN, FAULT, LATE, NO_CONNECTION, SLOW, UNREACHED, UNREADABLE, problem
from ratelimit.server.request import REQUEST_ID, RawHeader, Request
from ratelimit.server.tunnel import WebSocketTunnel, accepts
from ratelimit.server.upstream import ProxySettings, Upstream
from ratelimit.store.memory import MemoryStore
from ratelimit.tasks import start_now

logger = logging.getLogger("ratelimit.proxy")

CONTINUE_S: float = 1.0
"""An upstream that knows `Expect` says so by then; one that does not is waiting for the body."""
_MAX_HELD: Final = 64 * 1024
"""Bytes of a body that wait for a connection to the upstream."""
_MAX_COST_DIGITS: Final = len(str(MAX_LIMIT))
_UNCHECKED: Final = "a request could not be checked"
_IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})

Phase: TypeAlias = Literal["connection", "continue", "first byte", "upstream", "client"]
"""What is waited for."""
_TOO_LATE: Final[dict[Phase, Problem]] = {
    "connection": UNREACHED, "first byte": LATE, "upstream": LATE, "client": SLOW,
}  # fmt: skip


class Proxy(Service):
    """`args` are those of `RateLimitMiddleware`. Raises `ConfigError`.

    It tells the upstream who the user is, and charges what that states. Its connections open with the first request and
    close with `end`.
    """

    def __init__(self, upstream: Upstream | str, args: MiddlewareArgs, settings: ProxySettings | None = None) -> None:
        self.upstream = Upstream.parse(upstream) if isinstance(upstream, str) else upstream
        self.settings = settings or ProxySettings()
        middleware = RateLimitMiddleware(no_lifespan, **args)
        self.state = middleware._state
        self.lifespan = middleware._lifespan
        self.records = self.state.recorder is not None
        """Whether answers are complete only when a usage event is kept."""
        self.is_local = isinstance(args["limiter"].store, MemoryStore)
        """Whether checks are answered without waiting."""
        identifying = self.state.options.identifying
        self.headers = RequestHeaders(self.settings, self.upstream, args.get("trusted_proxies", 0), identifying)
        self.pool = UpstreamPool(self.upstream, self.settings)
        self.timeouts: dict[Phase, float] = {
            "connection": self.settings.connect,
            "continue": CONTINUE_S,
            "first byte": self.settings.first_byte,
            "upstream": self.settings.idle,
            "client": self.settings.idle,
        }

    async def start(self) -> None:
        """Open the limiter. Raises `StoreMisconfigured`; a store that cannot be reached is tried again later."""
        await self.lifespan.open()

    async def end(self) -> None:
        """Close the connections to the upstream, and the limiter when refunds under way have arrived."""
        await self.pool.close()
        await self.lifespan.close()

    def exchange(self, connection: ClientConnection, request: Request) -> Exchange:
        return Forward(connection, request, self)


class Forward(Exchange):
    """One request through the proxy, from its head to the last byte of its answer.

    Repeated, once, is only what can do no harm: an idempotent request without a body of whose answer no byte has come.
    """

    _upstream: UpstreamConnection | None = None
    _phase: Phase = "connection"
    _head: list[bytes] | None = None
    _held_size: int = 0
    _answer: AnswerHead | None = None
    _held: list[bytes] | None = None
    """Pieces of the answer, until what it counts is settled."""
    _trailers: list[RawHeader] | None = None
    _late_cost: bytes | None = None
    """The cost that the upstream states when the answer is complete."""
    _early: bytes | None = None
    """What came behind a 101."""
    _is_ended: bool = False
    """Whether the answer has come to its end."""
    _is_done: bool = False
    """Whether it is written."""
    _is_repeated: bool = False

    def __init__(self, connection: ClientConnection, request: Request, proxy: Proxy) -> None:
        self.connection = connection
        self.request = request
        self._proxy = proxy
        self._out: list[bytes] = []
        """What goes to the upstream with the next write."""
        self.head_only = request.method == b"HEAD"
        """Whether the answer has no body."""
        self.upgrades = request.scope["type"] == "websocket"
        """Whether it may be a 101."""
        if self.upgrades:
            # Where it is refused, what the client may have sent ahead is no request.
            request.keep_alive = False

    # --- The connection tells

    def begin(self) -> None:
        request = self.request
        if request.connection_options:
            self._proxy.headers.clean(request)
        if request.id is None:
            request.identify()
        # The check has a deadline of its own.
        self.connection.due = NEVER
        if request.ambiguity is not None:
            self._reply(problem(400, f"The path {request.ambiguity}."))
        elif self._proxy.lifespan.ready:
            self._check()
        else:
            self._run(self._open())

    def on_body(self, data: bytes) -> None:
        if self._is_done or self._is_lost:
            return
        if self.request.is_chunked:
            self._out += (b"%x\r\n" % len(data), data, b"\r\n")
        else:
            self._out.append(data)
        if self._upstream is None or self._phase == "continue":
            self._held_size += len(data)
            if self._held_size > _MAX_HELD:
                self.connection.hold(True)

    def on_complete(self, trailers: list[RawHeader]) -> None:
        self.is_complete = True
        if self.request.is_chunked:
            self._out.append(b"0\r\n")
            for name, value in self._proxy.headers.trailers(trailers):
                self._out += (name, b": ", value, b"\r\n")
            self._out.append(b"\r\n")
        if self._phase == "client" and not self.started:
            self._wait("first byte")

    def flush(self) -> None:
        upstream = self._upstream
        if self._out and upstream is not None and self._phase != "continue":
            upstream.transport.write(b"".join(self._out))
            self._out.clear()
            if self._phase == "client":
                self._wait("client")

    def on_full(self) -> None:
        if self._upstream is not None:
            self._upstream.pause_reading()
        if self.started:
            self._wait("client")

    def on_drained(self) -> None:
        if self._upstream is not None and self._held is None:
            self._upstream.resume_reading()
        if self.started:
            self._wait("upstream")

    def on_due(self) -> None:
        if self._phase == "continue":
            self.on_continue()
        elif self.started:
            self._break_off(TimeoutError(f"{self._phase} idle for too long"))
        else:
            self._fail(_TOO_LATE[self._phase], TimeoutError())

    def on_lost(self) -> None:
        if self._is_lost or self.is_over:
            return
        self._is_lost = True
        self._let_go()
        if self._task is None or self._task.done():
            self._see_to(self._end())

    # --- The check

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run it, in a task only where it waits or may ask for one."""
        task = start_now(work) if self._proxy.is_local else self.connection.loop.create_task(work)
        if task is not None:
            self._task = task

    def _see_to(self, work: Coroutine[Any, Any, None]) -> None:
        """Run what comes after the check; where it fails, nobody waits for the rest of the answer."""
        self._run(self._seen_to(work))

    async def _seen_to(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            logger.exception("a request could not be finished")
            self._let_go()
            self.connection.abort()
            self.over()

    def _check(self) -> None:
        """Check, and go on at once where nobody has to be waited for."""
        self._admission = admission = Admission(self._proxy.state, self.request.scope)
        admission.request_id = self.request.id
        try:
            answer = admission.begin()
        except Exception:
            logger.exception(_UNCHECKED)
            self._reply(FAULT)
            return
        user = self._user(admission) if answer is None else None
        if user is None:
            self._run(self._decide(admission, answer))
        else:
            self._ask(user)

    def _user(self, admission: Admission) -> str | None:
        """Return whom the upstream is told of, or "" where it is not told; None where that has to be asked."""
        return admission.user if self._proxy.settings.identify_as else ""

    async def _open(self) -> None:
        try:
            await self._proxy.lifespan.before_request()
            self._admission = admission = Admission(self._proxy.state, self.request.scope)
            admission.request_id = self.request.id
            await self._decide(admission, admission.begin())
        except Exception:
            logger.exception(_UNCHECKED)
            self._reply(FAULT)

    async def _decide(self, admission: Admission, answer: Answer) -> None:
        try:
            refused = answer if answer is None or isinstance(answer, Decision) else await answer
            if self._is_lost:
                await self._end()
            elif refused is None:
                user = self._user(admission)
                self._ask(await admission.find_user() if user is None else user)
            else:
                self._respond(*await admission.refuse(refused))
        except Exception:
            logger.exception(_UNCHECKED)
            self._reply(FAULT)

    def _respond(self, response: Response, fields: list[RawHeader]) -> None:
        self._write(response.status_code, [*response.raw_headers, *fields], bytes(response.body))

    def _reply(self, problem: Problem, fields: Sequence[RawHeader] = ()) -> None:
        self._write(problem.status, [*problem.fields(), *fields], problem.encode(), close=problem.status == 408)

    def _write(self, status: int, headers: list[RawHeader], body: bytes, *, close: bool = False) -> None:
        self._is_done = True
        headers.append((REQUEST_ID, self.request.id or self.request.identify()))
        self.write(status, headers, body, close=close)

    # --- To the upstream

    def _ask(self, user: str) -> None:
        self._head = self._proxy.headers.write(self.request, user)
        upstream = self._proxy.pool.take(self.connection.loop.time())
        if upstream is None:
            self._wait("connection")
            self._proxy.pool.wait(self)
        else:
            self.on_connection(upstream)

    def is_waiting(self) -> bool:
        return self._upstream is None and not self._is_lost and not self._is_done

    def on_connection(self, connection: UpstreamConnection) -> None:
        self._upstream = connection
        head = self._head
        assert head is not None
        if self.request.expects_continue:
            connection.ask(self, b"".join(head))
            self._wait("continue")
            return
        if self._out:
            connection.ask(self, b"".join([*head, *self._out]))
            self._out.clear()
        else:
            connection.ask(self, b"".join(head))
        if self._held_size:
            self.connection.hold(False)
        self._wait("first byte" if self.is_complete else "client")

    def on_continue(self) -> None:
        """Let the body come: the upstream wants it, or knows of no such question."""
        if self._phase == "continue":
            self.request.expects_continue = False
            self.connection.go_on()
            self._wait("first byte" if self.is_complete else "client")
            self.connection.hold(False)
            self.flush()

    def on_unreachable(self, error: Exception) -> None:
        self._fail(UNREACHED if isinstance(error, TimeoutError) else NO_CONNECTION, error)

    def on_upstream_full(self) -> None:
        self.connection.hold(True)
        if not self.started:
            self._wait("upstream")

    def on_upstream_drained(self) -> None:
        self.connection.hold(False)
        if not self.started:
            self._wait("first byte" if self.is_complete else "client")

    # --- Back from it

    def on_answer(self, head: AnswerHead) -> None:
        """Begin the answer as soon as what it counts is settled. Raises `InvalidResponse`."""
        self._answer = head
        if head.status == 101 and not self._fits(head):
            raise InvalidResponse("the upstream took up another handshake than this one")
        if head.cost is not None and self._owes(head, head.cost):
            return
        if returned := self._settled(head.status, head.raw):
            self._hold()
            self._see_to(self._give_back(returned))
        elif head.status == 101 and self._proxy.records:
            self._hold()
            self._see_to(self._give_back([]))
        else:
            self._start(head)

    def _owes(self, head: AnswerHead, cost: bytes) -> bool:
        """Return whether the answer waits until the cost that it states is charged."""
        assert self._admission is not None
        stated = _read_cost(cost)
        owing = [] if stated is None else _owing(self._admission.charges, stated, head.status, head.raw)
        if owing:
            self._hold()
            self._see_to(self._settle(head, owing, stated or 0))
        return bool(owing)

    def _fits(self, head: AnswerHead) -> bool:
        """Return whether a 101 takes up this very handshake."""
        upstream = self._upstream
        return upstream is not None and upstream.parser.should_upgrade() and accepts(self.request.headers, head.raw)

    def on_answer_body(self, data: bytes) -> None:
        if self._held is None:
            self.connection.send(data)
        else:
            self._held.append(data)

    def on_answer_end(self, trailers: list[RawHeader]) -> None:
        self._is_ended = True
        if trailers:
            self._late_cost = next((value for name, value in trailers if name.lower() == COST), None)
            self._trailers = response_trailers(trailers)
        if self._held is None:
            self._finish()

    def on_answer_read(self) -> None:
        """Pass on what was read; let go of the connection when all of it is."""
        upstream = self._upstream
        if upstream is None:
            return
        if upstream.is_answered:
            self._upstream = None
            if self.is_complete and not self._out:
                upstream.release()
            else:
                upstream.abort()
            return
        if self.started:
            self._wait("client" if self.connection.write_paused else "upstream")
        self.connection.flush()

    def on_upgrade(self, rest: bytes) -> None:
        self._early = rest
        if self.started:
            self._open_tunnel(rest)

    def on_broken(self, error: Exception, *, is_answer: bool) -> None:
        upstream, self._upstream = self._upstream, None
        if self._is_done or self._is_ended or self._is_lost:
            return
        if self.started or self._held is not None:
            self._break_off(error)
        elif not is_answer and upstream is not None and not upstream.in_answer and self._may_repeat():
            self._is_repeated = True
            self._wait("connection")
            self._proxy.pool.wait(self)
        else:
            self._fail(UNREADABLE if is_answer else BROKEN, error)

    def _may_repeat(self) -> bool:
        request = self.request
        return not self._is_repeated and not request.has_body and request.method in _IDEMPOTENT

    def _settled(self, status: int, headers: list[RawHeader]) -> list[Charge]:
        assert self._admission is not None
        return self._admission.answer(status, headers, success=status == 101 or (status < 400 and not self.upgrades))

    def _hold(self) -> None:
        """Keep back what comes, for whoever has the answer may ask again at once, and has to find the units there."""
        self._held = []
        # Settling has a deadline of its own.
        self.connection.due = NEVER
        if self._upstream is not None:
            self._upstream.pause_reading()

    async def _settle(self, head: AnswerHead, owing: list[Charge], stated: int) -> None:
        assert self._admission is not None
        await _settle_cost(owing, stated)
        await self._give_back(self._settled(head.status, head.raw))

    async def _give_back(self, returned: list[Charge]) -> None:
        assert self._admission is not None
        if returned:
            await self._admission.give_back(returned)
        if self.upgrades:
            await self._admission.record()
        if self._is_lost:
            await self._end()
            return
        held, self._held = self._held, None
        assert self._answer is not None
        self._start(self._answer)
        self._wait("upstream")
        if self._upstream is not None and not self.connection.write_paused:
            self._upstream.resume_reading()
        for piece in held or ():
            self.connection.send(piece)
        if self._early is not None:
            self._open_tunnel(self._early)
        elif self._is_ended:
            self._finish()
        self.connection.flush()

    def _start(self, head: AnswerHead) -> None:
        assert self._admission is not None
        lines = head.lines
        for name, value in self._admission.fields(head.limits):
            lines += (name, b": ", value, b"\r\n")
        if not head.has_id:
            lines += (REQUEST_ID, b": ", self.request.id or self.request.identify(), b"\r\n")
        self.connection.write_head(
            head.status,
            head.reason,
            lines,
            has_length=head.has_length,
            has_date=head.has_date,
            upgrade=b"websocket" if head.status == 101 else b"",
        )

    def _finish(self) -> None:
        """Complete the answer when what it was is kept, and what it held is back."""
        assert self._admission is not None
        if self._admission.charges.held:
            self.connection.corked = True
            self.connection.due = NEVER
            self._see_to(self._finish_held(self._admission))
        elif self._proxy.records and (waiting := self._record()):
            self.connection.corked = True
            self.connection.due = NEVER
            self._see_to(self._finish_recorded(waiting))
        else:
            self._complete()

    def _record(self) -> Sequence[Awaitable[bool]]:
        assert self._admission is not None
        try:
            return self._admission.write()
        except Exception:
            # The answer is the upstream's, and good.
            logger.exception("a usage event could not be kept")
            return ()

    async def _finish_held(self, admission: Admission) -> None:
        if self._late_cost is not None and (stated := _read_cost(self._late_cost)) is not None:
            await _settle_reserved(admission.charges, stated)
        await admission.release()
        await self._finish_recorded(self._record() if self._proxy.records else ())

    async def _finish_recorded(self, waiting: Sequence[Awaitable[bool]]) -> None:
        for pending in waiting:
            await pending
        self.connection.corked = False
        if self._is_lost:
            self.over()
        else:
            self._complete()

    def over(self) -> None:
        """Give back what the request still holds, however it has ended."""
        if self._admission is not None:
            self._admission.leave()
        super().over()

    def _complete(self) -> None:
        self._is_done = True
        self.connection.finish(self._trailers or ())
        self.over()

    def _open_tunnel(self, rest: bytes) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            self._is_done = True
            WebSocketTunnel(self.connection, upstream, self._proxy.settings, self.over).begin(rest)

    # --- How it ends otherwise

    def _fail(self, problem: Problem, error: Exception) -> None:
        """Answer with a problem of ours, which counts as one of the upstream would."""
        logger.warning("%d %s: %s", problem.status, problem.title, _describe(error, self._proxy))
        self._let_go()
        self._phase = "upstream"
        self.connection.due = NEVER
        self._see_to(self._end_with(problem))

    async def _end_with(self, problem: Problem) -> None:
        admission = self._admission
        assert admission is not None
        try:
            if returned := self._settled(problem.status, problem.fields()):
                await admission.give_back(returned)
            await admission.record()
        except Exception:
            logger.exception("what a request has taken could not be settled")
        self._reply(problem, admission.fields(()))
        self.connection.flush()

    def _break_off(self, error: Exception) -> None:
        """Leave the answer incomplete, so that the client knows."""
        logger.warning("an answer broke off: %s", _describe(error, self._proxy))
        self._let_go()
        self.connection.close()

    async def _end(self) -> None:
        """Settle what was checked for a client that is gone."""
        if self._admission is not None:
            self._admission.charges.keep()
            await self._admission.end()
        self.over()

    def _let_go(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort()
        elif self._phase == "connection":
            self._proxy.pool.leave(self)

    def _wait(self, phase: Phase) -> None:
        self._phase = phase
        self.connection.due = self.connection.loop.time() + self._proxy.timeouts[phase]


def _describe(error: Exception, proxy: Proxy) -> str:
    """Return what kind of error it is and where it happened, for the log; no piece of the answer."""
    name = type(error).__name__
    reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return f"{name} at {proxy.upstream}: {reason}" if reason else f"{name} at {proxy.upstream}"


# What the upstream says that a request has really cost: `X-RateLimit-Cost: 17`.


def _read_cost(stated: bytes) -> int | None:
    """Return the cost that is stated. What is no whole number is logged, and charged as taken."""
    text = stated.strip()
    if text.isascii() and text.isdigit() and len(text) <= _MAX_COST_DIGITS and int(text) <= MAX_LIMIT:
        return int(text)
    logger.warning("the upstream states a cost of %r, which is not a whole number up to %d", text[:40], MAX_LIMIT)
    return None


def _owing(charges: Charges, stated: int, status: int, headers: list[RawHeader]) -> list[Charge]:
    """Return the charges that took something else. What the policy does not count with this answer stays as it is, and
    is given back as ever."""
    return [one for one in charges.spent if stated != one.decision.cost and one.counts(status < 400, status, headers)]


async def _settle_cost(owing: list[Charge], stated: int) -> None:
    """Charge what is stated beyond what was taken, or give back what is less. It may exceed the quota.

    Never raises for a store.
    """
    for charge in owing:
        if not await _charge_beyond(charge, stated):
            await give_back(charge, charge.decision.cost - stated)


async def _settle_reserved(charges: Charges, stated: int) -> None:
    """Settle what is reserved at what is stated behind the answer: what goes back is given back with the reservation.

    Never raises for a store.
    """
    for charge in charges.held:
        if not charge.is_reserved or await _charge_beyond(charge, stated):
            continue
        if charge.hold.used is None and charge.hold.is_held:
            charge.hold.settle(stated)


async def _charge_beyond(charge: Charge, stated: int) -> bool:
    """Charge what is stated beyond what was taken. Return False where that is nothing."""
    name, owed = charge.policy.name, stated - charge.decision.cost
    if owed <= 0:
        return False
    charged = await charge.charge(owed)
    if charged.reason == "unavailable":
        logger.warning("%d units of %r were not charged: the store cannot be asked", owed, name)
    else:
        at_us = charge.decision.at_us
        charge.decision = msgspec.structs.replace(charged, cost=stated, spent=stated, refunded=0, at_us=at_us)
    return True
