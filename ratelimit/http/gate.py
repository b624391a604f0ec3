"""`Gate`: one policy as a surface applies it. It knows whom a request counts against, what it costs, who is exempt."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from inspect import isawaitable
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from ratelimit.decision import Decision
from ratelimit.errors import ConfigError
from ratelimit.http.identity import Identity
from ratelimit.http.match import Patterns
from ratelimit.limiter import Limiter
from ratelimit.names import Key
from ratelimit.policy import Cost, Exempt, Policy


class Receipt:
    """What was decided for whom, and what it takes to give it back."""

    __slots__ = ("decision", "limiter", "policy", "user")

    def __init__(self, limiter: Limiter, policy: Policy, user: str, decision: Decision) -> None:
        self.limiter = limiter
        self.policy = policy
        self.user = user
        self.decision = decision

    @property
    def spent(self) -> bool:
        """Whether the store holds units of it: not where it was refused, nor where the store was not there to ask."""
        decision = self.decision
        return decision.allowed and decision.reason is None and not decision.shadow_denied and decision.cost > 0

    def counts(self, *, success: bool) -> bool:
        """Whether it counts when the response turned out so."""
        return self.policy.count == "all" or (self.policy.count == "success") == success

    async def give_back(self) -> None:
        """Raises `StoreUnavailable`."""
        await self.limiter.refund(self.decision)


class Gate:
    """Raises `ConfigError` with the path to a bad `match`, `exempt` or `user_from` of the policy."""

    __slots__ = ("_checks", "_exempt", "_is_plain", "identity", "limiter", "match", "policy")

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
        # A limiter of the app's own class may see to its checks itself.
        self._is_plain = identity.is_plain and not self._exempt and type(limiter).check is Limiter.check

    async def check(self, scope: Scope, *, cost: Cost | None = None) -> Receipt:
        """Decide, and spend. A free or exempt request is allowed at a cost of 0, asking nobody.

        Raises what the app's own functions raise, `InvalidUser` and `InvalidCost` for what they should not return;
        never anything for a store that fails.
        """
        policy = self.policy
        units: Any = policy.cost if cost is None else cost
        if self._is_plain and units is policy.cost and type(units) is int:
            user = self.identity.read(scope)
            decision = await self._checks.check(Key(user, policy.name), units)
            return Receipt(self.limiter, policy, user, decision)
        connection = HTTPConnection(scope)
        if self._exempt and await self._exempt.covers(connection):
            return self.free()
        if callable(units):
            answer = units(connection)
            units = await answer if isawaitable(answer) else answer
            if type(units) is int and units == 0:
                return self.free()
        user = await self.identity.user_of(connection)
        decision = await self.limiter.check(user, policy.name, cost=units)
        return Receipt(self.limiter, policy, user, decision)

    def warn(self, root: str) -> None:
        """See `Patterns.warn`."""
        self.match.warn(root)
        self._exempt.warn(root)

    def free(self) -> Receipt:
        """For a request that this policy does not count."""
        decision = Decision(allowed=True, policy=self.policy.name, cost=0, quotas=(), at_us=self.limiter.clock.now())
        return Receipt(self.limiter, self.policy, "", decision)


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
