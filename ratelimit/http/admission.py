"""`Admission`: one request's checks, and what becomes of the units they took when its answer is known.

It does not know how requests and answers travel: that is for ASGI's `RequestHandler`, and the sidecar's connections.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope

from ratelimit.blocking import is_blocking
from ratelimit.decision import Decision
from ratelimit.errors import QuotaExceeded, RateLimitError
from ratelimit.http.body import BufferedRequest
from ratelimit.http.charges import Charge, Charges, give_back, record
from ratelimit.http.headers import LIMIT_FIELDS, Headers, retry_after, unsaid
from ratelimit.http.policy_check import Exemption, PolicyCheck, Routes, SurfaceOptions
from ratelimit.http.refusal import Refusals, rejection
from ratelimit.limiter import Limiter
from ratelimit.policy import Cost
from ratelimit.tasks import Tasks

if TYPE_CHECKING:
    from ratelimit.http.dependency import Inline

Refusal: TypeAlias = Decision | HTTPException | None
"""The decision of the first policy that refuses, or what a function of the app has raised; None where all is well."""
Answer: TypeAlias = Decision | Coroutine[Any, Any, Refusal] | None
"""A refusal, or what has to be awaited for it."""

# Those that tell a client to send the same request again, elsewhere; after 302 and 303 it sends another one.
_SAME_AGAIN: Final = frozenset({301, 307, 308})
_ADDED: Final = LIMIT_FIELDS | {b"retry-after"}
logger = logging.getLogger("ratelimit")

_RAISED: Final = (
    "raised by a function of the limits (cost, user_from, exempt) before the request reached the app, and nothing was "
    "spent: have it raise HTTPException(400) for what the client has sent wrong"
)


class MiddlewareState:
    """What all requests through one middleware share."""

    __slots__ = ("clock", "exemption", "inner", "limiter", "options", "recorder", "refunds", "refusals", "routes")

    def __init__(
        self,
        limiter: Any,
        usage: Any = None,
        *,
        app: Any = None,
        on_refused: Any = None,
        inner: Sequence[MiddlewareState] = (),
        options: Any,
    ) -> None:
        """`options` are `SurfaceArgs`. Raises `ConfigError` with the path to a bad one."""
        self.options = SurfaceOptions(**options)
        self.routes = Routes([self.options.policy_check(limiter, action) for action in limiter.policies])
        self.limiter: Limiter = limiter
        self.clock: Any = limiter.clock
        self.exemption = self.options.exempt if self.options.exempt else None
        self.refunds = Tasks("a refund")
        self.refusals = Refusals(self.options.writer, app, on_refused, limiter.policies.values())
        self.recorder = None if usage is None else partial(record, usage)
        self.inner = inner
        """Those of the middlewares that stand next to it, further in."""


class Admission:
    """Checks a request, adds the fields to its answer, settles and records what it spent.

    Within another one's (`outer`) it goes on with that one's charges, so that each unit is accounted for once.
    """

    exempt: bool = False
    """Whether no policy is to check this request."""
    has_begun: bool = False
    """Whether the answer has."""
    status: int = 500
    headers: Any = ()
    """The answer's own fields."""
    succeeded: bool = False
    request_id: bytes | None = None
    """The request's id, where the surface knows it: visible ASCII."""
    _connection: Any = None

    def __init__(
        self, shared: MiddlewareState, scope: Scope, outer: Admission | None = None, receive: Receive | None = None
    ) -> None:
        """`receive` is what the body comes from, where functions of the app may read it."""
        if outer is not None and all(one is not shared for one in outer._shared.inner):
            outer.charges.act()  # something stands in between, and may have acted on what was admitted
        self._outer = outer
        self._shared: MiddlewareState = shared
        self._since = 0 if shared.recorder is None else shared.clock.now()
        self.scope = scope
        self._receive: Any = receive
        self.charges: Charges = Charges() if outer is None else outer.charges

    async def check(self) -> Refusal:
        """Check by all policies that the request meets, until one refuses."""
        answer = self.begin()
        return answer if answer is None or isinstance(answer, Decision) else await answer

    def begin(self) -> Answer:
        """Check as `check` does, where nobody has to be waited for at once."""
        if self._shared.exemption is not None:
            return self._check_unless_exempt(self._shared.exemption)
        return self._check_all()

    async def _check_unless_exempt(self, exemption: Exemption) -> Refusal:
        try:
            self.exempt = await exemption.covers(self.connection)
        except HTTPException as error:
            return error
        except Exception as error:
            error.add_note(_RAISED)
            raise
        answer = None if self.exempt else self._check_all()
        return answer if answer is None or isinstance(answer, Decision) else await answer

    def _check_all(self) -> Answer:
        scope, shared = self.scope, self._shared
        policy_checks = shared.routes.find(scope)
        if policy_checks and scope.get("method") == "OPTIONS" and shared.refusals.is_preflight(scope):
            return None
        for number, policy_check in enumerate(policy_checks):
            charge = policy_check.begin(scope) if policy_check.is_plain else policy_check.check(self.connection)
            if not isinstance(charge, Charge):
                return self._check_on(charge, policy_checks, number)
            self.charges.add(charge)
            if not charge.decision.allowed:
                return charge.decision
        return None

    async def _check_on(self, first: Awaitable[Charge], policy_checks: Sequence[PolicyCheck], number: int) -> Refusal:
        """Go on with the check of this number. What a function of the app raises that is no answer is raised here, when
        what was taken for the request is back."""
        begun = len(self.charges.all) - number
        failure: Exception
        try:
            charge = await first
            self.charges.add(charge)
            for policy_check in policy_checks[number + 1 :]:
                if not charge.decision.allowed:
                    break
                if any(one.policy is policy_check.policy for one in self.charges.all[begun:]):
                    continue
                plain = policy_check.is_plain
                answer = policy_check.begin(self.scope) if plain else policy_check.check(self.connection)
                charge = answer if isinstance(answer, Charge) else await answer
                self.charges.add(charge)
            return None if charge.decision.allowed else charge.decision
        except HTTPException as error:
            return error
        except Exception as error:  # noqa: BLE001 (raised below, as nothing may be awaited here)
            failure = error
        if taken := [charge for charge in self.charges.all[begun:] if charge.spent]:
            await self.give_back(taken)
        await self.release()
        if not isinstance(failure, RateLimitError):
            failure.add_note(_RAISED)
        raise failure

    @property
    def connection(self) -> HTTPConnection:
        """Return what functions of the app are called with, the same for all."""
        found: HTTPConnection | None = self._connection
        if found is None:
            if self.scope["type"] == "http":
                found = BufferedRequest(self.scope, self._receive, self._shared.options.max_body_bytes)
            else:
                found = HTTPConnection(self.scope)
            self._connection = found
        return found

    @property
    def buffered(self) -> BufferedRequest | None:
        """Return from where the app has to get its body, as some of it was read; None for where it would anyway."""
        found = self._connection
        return found if isinstance(found, BufferedRequest) and found.is_read else None

    async def ask(
        self,
        action: str,
        *,
        cost: Cost | None = None,
        limiter: Limiter | None = None,
        connection: HTTPConnection | None = None,
        inline: Inline | None = None,
    ) -> Decision:
        """Check one policy because a view asks, which acts on the decision that is returned. Raises `QuotaExceeded`,
        and as `check` of `PolicyCheck` does."""
        shared, is_inline = self._shared, inline is not None and inline.has_quotas
        policy_check = shared.options.policy_check(limiter or shared.limiter, action, is_inline=is_inline)
        if self.exempt:
            charge = policy_check.free()
        else:
            charge = await policy_check.check(connection or self.connection, cost=cost, inline=inline)
        decision, charges = charge.decision, self.charges
        if self.has_begun:
            charges.add_late(charge)
            await self._settle_late(charge)
        else:
            charges.add(charge)
            charges.act()
        if not decision.allowed:
            charges.raised = QuotaExceeded(decision)
            raise charges.raised
        return decision

    async def _settle_late(self, charge: Charge) -> None:
        charges = (charge, *charge.others)
        for one in charges:
            if one.spent and not one.counts(self.succeeded, self.status, self.headers):
                await self.give_back([one])
            one.settle()
        for pending in self._write_late(charges):
            await pending

    @property
    def user(self) -> str | None:
        """Return who the request is from, by the surface's `user_from`; None where a function has to be asked."""
        for charge in self.charges.all:
            if charge.user and not charge.policy.user_from:
                return charge.user
        resolver = self._shared.options.user_resolver
        return resolver.read(self.scope) if resolver.is_plain else None

    async def find_user(self) -> str:
        return await self._shared.options.user_resolver.user_of(self.connection)

    def answer(self, status: int, headers: Any, *, success: bool) -> list[Charge]:
        """Note how the answer begins, with which it is known what counts. Return what has to be given back first."""
        self.status = status
        self.succeeded = success
        self.headers = headers
        if status in _SAME_AGAIN and not self.charges.is_acted_on and _only_a_slash(self.scope, headers):
            return self.charges.cancel()
        return self.charges.settle(success, status, headers)

    async def give_back(self, charges: Sequence[Charge]) -> None:
        """Return when all that they hold is back, or lost. It goes on where the one who waits is cancelled.

        The answer waits for it: whoever has it may ask again at once. What cannot be given back within the limiter's
        deadline stays spent: usage reads too high, never too low.
        """
        await self._all([give_back(charge, charge.spent) for charge in charges])

    async def refuse(self, refused: Decision | HTTPException) -> tuple[Response, Headers]:
        """Return the answer to a refusal, and fields to add to it, when what was taken for it is back and recorded."""
        shared = self._shared
        if isinstance(refused, HTTPException):
            response = rejection(refused)
            status = response.status_code
            if returned := self.answer(status, response.raw_headers, success=status < 400):
                await self.give_back(returned)
            fields = self.fields(response.raw_headers)
        else:
            response, fields = await shared.refusals.of(refused, self)
            self.status = response.status_code
            self.headers = [*response.raw_headers, *fields]
            if returned := self.charges.refuse(refused, self.status, self.headers):
                await self.give_back(returned)
        await self.release()
        if shared.recorder is not None:
            await self.record()
        return response, fields

    def fields(self, theirs: Any) -> Headers:
        """Return the RateLimit fields, and a refusal's `Retry-After`, that an answer with these has not set itself."""
        ours = self._shared.options.writer.fields(self.charges.shown)
        raised = self.charges.raised
        if raised is not None and self.status >= 400:
            ours = ours + retry_after(raised.decision)
        if not ours or not theirs:
            return ours
        taken = [lower for name, _ in theirs if (lower := name.lower()) in _ADDED]
        return unsaid(ours, taken) if taken else ours

    @property
    def is_over(self) -> bool:
        return self._shared.recorder is None and self.charges.is_settled and not self.charges.held

    async def end(self) -> None:
        """Settle when the request is over. One that was not answered is a failure.

        It goes on where the one who waits is cancelled, at each wait even, as anyio has it.
        """
        returned = self.charges.settle(self.succeeded, self.status, self.headers)
        if not returned and not self.charges.held:
            await self.record()
        else:
            await self._all([self._end(returned)])

    async def _end(self, returned: Sequence[Charge]) -> None:
        if returned:
            await self.give_back(returned)
        await self.release()
        await self.record()

    async def release(self) -> None:
        """Return when what is held until the answer has ended is back. It goes on where who waits is cancelled."""
        held, self.charges.held = self.charges.held, ()
        if held:
            await self._all([charge.release() for charge in held])

    async def _all(self, works: Iterable[Coroutine[Any, Any, None]]) -> None:
        if not is_blocking():
            await asyncio.wait([self._shared.refunds.start(work) for work in works])
            return
        for work in works:
            try:
                await work
            except Exception:
                logger.exception("a refund failed")

    def leave(self) -> None:
        """Do so behind an answer that has ended, wherever it did: what is held still goes back."""
        if self.charges.held:
            self._shared.refunds.start(self.release())

    async def record(self) -> None:
        for pending in self.write():
            await pending

    def write(self) -> Sequence[Awaitable[bool]]:
        """Write down what was checked and is not yet. Return what is to be awaited, if anything, until it is kept."""
        shared = self._shared
        recorder = shared.recorder
        if recorder is None or not (charges := self.charges.to_record()):
            return ()
        duration = max(0, shared.clock.now() - self._since) / 1000
        return recorder(self.scope, charges, status=self.status, duration=duration, request_id=self.request_id)

    def _write_late(self, charges: Sequence[Charge]) -> Sequence[Awaitable[bool]]:
        recorder = self._shared.recorder
        if recorder is not None:
            return recorder(self.scope, charges, status=self.status, duration=None, request_id=self.request_id)
        return () if self._outer is None else self._outer._write_late(charges)


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
