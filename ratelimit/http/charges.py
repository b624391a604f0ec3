"""`Gate`: one policy as a surface applies it. It knows whom a request counts against, what it costs, who is exempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import isawaitable
from typing import Any, Final, NoReturn

import msgspec
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope

from ratelimit.decision import Decision, QuotaState
from ratelimit.errors import ConfigError, InvalidCost
from ratelimit.http.identity import Identity
from ratelimit.http.routing import Patterns, Target, app_method
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import Cost, Exempt, Policy

_SOON: Final = 1.0


class Receipt:
    """What was decided for whom, and what it takes to give it back."""

    __slots__ = ("_open", "_pending", "decision", "limiter", "policy", "user")

    def __init__(self, limiter: Limiter, policy: Policy, user: str, decision: Decision) -> None:
        self.limiter = limiter
        self.policy = policy
        self.user = user
        self.decision = decision
        self._pending: dict[str, int] | None = None
        self._open = 0

    @property
    def spent(self) -> int:
        """Units that it still holds: none where it was refused, or has been given back."""
        return int(self.decision.spent) - int(self.decision.refunded)

    def counts(self, success: bool, status: int, headers: Any) -> bool:
        """Whether it counts with an answer that begins so."""
        count: Any = self.policy.count
        if count == "all":
            return True
        if not callable(count):
            return bool((count == "success") == success)
        response = Response(status_code=status)
        response.raw_headers = [(name.lower(), value) for name, value in headers]
        return bool(count(response))

    async def give_back(self, units: int) -> None:
        """So many of those that it holds. Raises `StoreUnavailable`."""
        taken = self.decision
        quotas = taken.quotas
        try:
            await self.limiter.refund(taken, cost=units)
            quotas = tuple([self._with_room(state, units) for state in quotas])
        finally:
            self.settled()
            self.decision = msgspec.structs.replace(taken, cost=taken.spent - taken.refunded, quotas=quotas)

    def wait_for_the_answer(self, pending: dict[str, int]) -> None:
        """Until it is `settled`, its units are among those that may still be given back."""
        self._pending = pending
        self._open = self.decision.cost
        pending[self.user] = pending.get(self.user, 0) + self._open

    def settled(self) -> None:
        """It is known now whether it counts."""
        pending, self._pending = self._pending, None
        if pending is not None:
            left = pending[self.user] - self._open
            if left > 0:
                pending[self.user] = left
            else:
                del pending[self.user]

    def _with_room(self, state: QuotaState, units: int) -> QuotaState:
        """As the quota stands with these units given back."""
        quota, algorithm = state.quota, self.policy.algorithm
        used = max(0, state.used - units)
        remaining = max(0, _room(state, units))
        reset_after = state.reset_after
        if algorithm == "gcra":
            reset_after = max(0.0, reset_after - units * quota.window.seconds / max(1, quota.limit))
        elif algorithm == "sliding_window" and not used:
            reset_after = 0.0
        return msgspec.structs.replace(state, used=used, remaining=remaining, reset_after=reset_after)


class Gate:
    """Raises `ConfigError` with the path to a bad `match`, `exempt` or `user_from` of the policy."""

    __slots__ = ("_checks", "_exempt", "_is_plain", "_pending", "identity", "limiter", "match", "policy")

    def __init__(self, limiter: Limiter, policy: Policy, identity: Identity) -> None:
        self.limiter = limiter
        self.policy = policy
        self.identity = identity
        self._checks = limiter.checks
        try:
            self.match = _patterns("match", policy.match)
            self._exempt = Exemption(policy.exempt)
        except ConfigError as error:
            raise error.under(f"policies.{policy.name}") from error
        self._pending: dict[str, int] | None = None if policy.count == "all" else {}
        """Of each user the units of requests that are not answered yet, which may turn out not to count."""
        # A limiter of the app's own class may see to its checks itself.
        own = type(limiter).check is not Limiter.check
        self._is_plain = identity.is_plain and not self._exempt and not own and self._pending is None

    async def check(
        self, scope: Scope, *, cost: Cost | None = None, connection: HTTPConnection | None = None
    ) -> Receipt:
        """Decide, and spend. A free or exempt request is allowed at a cost of 0, asking nobody.

        The app's functions are called with the `connection`, where there is one already. Raises what they raise,
        `InvalidUser` and `InvalidCost` for what they should not return; never anything for a store that fails.
        """
        policy = self.policy
        units: Any = policy.cost if cost is None else cost
        if self._is_plain and units is policy.cost and type(units) is int:
            user = self.identity.read(scope)
            decision = await self._checks.check(Key(user, policy.name), units)
            return Receipt(self.limiter, policy, user, decision)
        if connection is None:
            connection = connection_of(scope)
        if self._exempt and await self._exempt.covers(connection):
            return self.free()
        if callable(units):
            answer = units(connection)
            units = await answer if isawaitable(answer) else answer
            if type(units) is not int or units < 0:
                raise _bad_cost(policy.name, units)
        if type(units) is int and units == 0:
            return self.free()
        user = await self.identity.user_of(connection)
        decision = await self.limiter.check(user, policy.name, cost=units)
        receipt = Receipt(self.limiter, policy, user, decision)
        return receipt if self._pending is None else self._counted_later(receipt, self._pending)

    def warn(self, root: str) -> None:
        """See `Patterns.warn`."""
        self.match.warn(root)
        self._exempt.warn(root)

    def free(self) -> Receipt:
        """For a request that this policy does not count."""
        decision = Decision(allowed=True, policy=self.policy.name, cost=0, quotas=(), at_us=self.limiter.clock.now())
        return Receipt(self.limiter, self.policy, "", decision)

    def _counted_later(self, receipt: Receipt, pending: dict[str, int]) -> Receipt:
        """While units that would have left room may still be given back, a refusal says so: to come back soon."""
        decision = receipt.decision
        if receipt.spent:
            receipt.wait_for_the_answer(pending)
        elif decision.reason == "quota" and _may_fit(decision, pending.get(receipt.user, 0)):
            quotas = tuple([_soon(state) for state in decision.quotas])
            wait = None if decision.retry_after is None else min(decision.retry_after, _SOON)
            receipt.decision = msgspec.structs.replace(decision, quotas=quotas, retry_after=wait)
        return receipt


def _may_fit(refused: Decision, pending: int) -> bool:
    """Whether it would have passed without the units that are pending."""
    return pending > 0 and all(_room(state, pending) >= refused.cost for state in refused.quotas)


def _room(state: QuotaState, returned: int) -> int:
    """Units that are left where so many are given back; below 0 after a charge."""
    return (state.quota.burst or state.quota.limit) - state.used + returned


def _soon(state: QuotaState) -> QuotaState:
    return msgspec.structs.replace(state, retry_after=min(state.retry_after, _SOON)) if state.retry_after else state


def _bad_cost(policy: str, units: object) -> InvalidCost:
    how = "a whole number of at least 0 is expected; raise HTTPException(400) for what the client has sent wrong"
    return InvalidCost(f"policies.{policy}.cost: the function returned {units!r}: {how}")


def connection_of(scope: Scope) -> HTTPConnection:
    """What the app's functions are called with: Starlette's `Request`, whose body cannot be read yet."""
    return Request(scope, _unread) if scope["type"] == "http" else HTTPConnection(scope)


async def _unread() -> NoReturn:
    how = "ask in the view instead, where it can be read: await limited(NAME, cost=FUNCTION)(request)"
    raise ConfigError("cost, user_from, exempt", f"a function has read the request's body before the decision; {how}")


class Exemption:
    """Requests that are never checked: patterns as in `match`, or functions of the request. Raises `ConfigError`."""

    __slots__ = ("_functions", "_patterns")

    def __init__(self, exempt: Exempt | Iterable[Exempt]) -> None:
        listed = [exempt] if isinstance(exempt, str) or callable(exempt) else list(exempt)
        for number, one in enumerate(listed):
            if not isinstance(one, str) and not callable(one):
                raise ConfigError(f"exempt[{number}]", f"expected a pattern or a function, not {one!r}")
        self._patterns = _patterns("exempt", [one for one in listed if isinstance(one, str)])
        self._functions: list[Callable[[HTTPConnection], object]] = [one for one in listed if callable(one)]

    async def covers(self, connection: HTTPConnection) -> bool:
        """Whether one of them fits."""
        scope = connection.scope
        if self._patterns and self._patterns.cover(scope):
            return True
        for function in self._functions:
            answer = function(connection)
            if await answer if isawaitable(answer) else answer:
                return True
        return False

    def warn(self, root: str) -> None:
        """See `Patterns.warn`."""
        self._patterns.warn(root)

    def __bool__(self) -> bool:
        return bool(self._patterns or self._functions)


def _patterns(path: str, texts: Iterable[str]) -> Patterns:
    try:
        return Patterns(texts)
    except ConfigError as error:
        raise error.under(path) from error


# `Routes`: which gates a request has to pass; remembered for the paths of late, since patterns have to be scanned.

_KEPT: Final = 1024
_LONGEST: Final = 256
"""Characters of a request worth remembering, as it came: with `_KEPT`, a bound on memory."""


class Routes:
    """The gates with a `match`, in the limiter's order."""

    __slots__ = ("_gates", "_known")

    def __init__(self, gates: Sequence[Gate]) -> None:
        self._gates = tuple(gate for gate in gates if gate.match)
        self._known: dict[tuple[str, str, str, Any], tuple[Gate, ...]] = {}

    def gates(self, scope: Scope) -> tuple[Gate, ...]:
        """Those that a request has to pass."""
        request = (app_method(scope), scope["path"], scope.get("root_path", ""), scope.get("raw_path"))
        found = self._known.get(request)
        if found is None:
            target = Target(scope)
            found = tuple(gate for gate in self._gates if gate.match.fit(target))
            if len(self._known) >= _KEPT:
                self._known.clear()
            if sum(map(len, filter(None, request))) <= _LONGEST:
                self._known[request] = found
        return found
