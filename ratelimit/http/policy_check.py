"""`PolicyCheck`: one policy as requests meet it: whom one counts against, what it costs, who is exempt.

`SurfaceOptions` makes them from what all policies share, and `Routes` says which of them a request meets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.types import Scope

from ratelimit.config.settings import DEFAULT_MAX_BODY_BYTES, check_max_body_bytes
from ratelimit.decision import Decision, JointDecision, QuotaState
from ratelimit.errors import ConfigError, InvalidCost, SlotNeeded, UnknownAction, no_policy, within
from ratelimit.http.addresses import DEFAULT_IPV6_PREFIX, Addresses, TrustedProxies, warn_once
from ratelimit.http.charges import Charge, Pending, room
from ratelimit.http.headers import HeaderStyle, HeaderWriter
from ratelimit.http.identity import DEFAULT_USER_FROM, UserResolver
from ratelimit.http.routing import Patterns, RequestTarget, overriding_methods
from ratelimit.limiter import Limiter, Spend
from ratelimit.names import Key
from ratelimit.policy import Cost, Exempt, Policy, UserFrom, members_of
from ratelimit.quota import UNLIMITED

if TYPE_CHECKING:
    from ratelimit.http.dependency import Inline

MAX_REMEMBERED: Final = 1024
"""Requests whose policies are remembered, and actions that no policy names."""
_MAX_REMEMBERED_LENGTH: Final = 256
"""Characters of a request worth remembering, as it came: with `MAX_REMEMBERED`, a bound on memory."""
_SOON_S: Final = 1.0
_NOT_TOGETHER: Final = (
    "the plan limits how many requests go on at the same time, which is not decided together with other policies: the"
    " plan has to leave that quota out"
)


class PolicyCheck:
    """Raises `ConfigError` with the path to a bad `match`, `exempt` or `user_from` of the policy."""

    __slots__ = ("_checker", "_pending", "exempt", "holds", "is_plain", "limiter", "match", "policy", "user_resolver")

    def __init__(self, limiter: Limiter, policy: Policy, user_resolver: UserResolver) -> None:
        self.limiter = limiter
        self.policy = policy
        self.user_resolver = user_resolver
        with within(f"policies.{policy.name}"):
            self.match = _patterns("match", policy.match, any_case=True)
            self.exempt = Exemption(policy.exempt)
        self._pending: Pending | None = None if policy.count == "all" else {}
        # What is asked once it is known that the user is well-formed; but a limiter of the app's own class, or one that
        # the app has wrapped, sees to its checks itself.
        self._checker = limiter._checker
        own = type(limiter).check is not Limiter.check or "check" in vars(limiter)
        self.holds = policy.holds
        """Whether what it takes is given back when the answer has ended, a slot or a reservation."""
        asks = self.holds or bool(self.exempt) or callable(policy.cost) or not user_resolver.is_plain
        self.is_plain = not asks and not own and self._pending is None
        """Whether the scope is all that it takes to decide, as `begin` does."""

    def begin(self, scope: Scope) -> Charge | Coroutine[Any, Any, Charge]:
        """Decide as `check` does, where this `is_plain`: return the charge, or what has to be awaited for it."""
        policy: Policy = self.policy
        units: Any = policy.cost
        user = self.user_resolver.read(scope)
        answer = self._checker.check(Key(user, policy.name), units)
        if isinstance(answer, Decision):
            return Charge(self.limiter, policy, user, answer)
        return self._charge(user, answer, units)

    async def _charge(self, user: str, answer: Awaitable[Decision], units: int, spend: Spend | None = None) -> Charge:
        try:
            return Charge(self.limiter, self.policy, user, await answer)
        except SlotNeeded:  # by this user's own quotas
            pass
        return await self._hold(user, spend or Spend(user, self.policy.name, units))

    async def _hold(self, user: str, spend: Spend) -> Charge:
        limiter: Any = self.limiter
        take = limiter.reserve if self.policy.reserve else limiter.slot
        hold: Any = take(spend.user, spend.action, cost=spend.cost, quotas=spend.quotas)
        charge = Charge(limiter, self.policy, user, await hold.take())
        if hold.is_held:
            charge.hold = hold
        return charge

    async def check(
        self, connection: HTTPConnection, *, cost: Cost | None = None, inline: Inline | None = None
    ) -> Charge:
        """Decide, and spend. A free or exempt request is allowed at a cost of 0, asking nobody.

        The app's functions are called with the `connection`. Raises what they raise, `InvalidUser` and `InvalidCost`
        for what they should not return; never anything for a store that fails.
        """
        policy = self.policy
        units: Any = policy.cost if cost is None else cost
        if self.exempt and await self.exempt.covers(connection):
            return self.free()
        if callable(units):
            units = await self._asked(units, connection)
        if type(units) is int and units == 0:
            return self.free()
        user, spend = await self._spend(connection, units, inline)
        if self.holds:
            charge = await self._hold(user, spend)
        else:
            answer = self.limiter.check(spend.user, policy.name, cost=units, quotas=spend.quotas)
            charge = await self._charge(user, answer, units, spend)
        return charge if self._pending is None else self._counted_later(charge, self._pending)

    async def _spend(self, connection: HTTPConnection, units: int, inline: Inline | None) -> tuple[str, Spend]:
        if inline is None:
            user = await self.user_resolver.user_of(connection)
            return user, Spend(user, self.policy.name, units)
        said, key, quotas = await inline.said()
        user = said or await self.user_resolver.user_of(connection)
        return user, Spend(key or user, self.policy.name, units, quotas)

    async def _asked(self, cost: Callable[[Any], Any], connection: HTTPConnection) -> int:
        answer = cost(connection)
        units = await answer if isawaitable(answer) else answer
        if type(units) is not int or units < 0:
            what = f"policies.{self.policy.name}.cost: the function returned {units!r}"
            how = "raise HTTPException(400) for what the client has sent wrong"
            raise InvalidCost(f"{what}: a whole number of at least 0 is expected; {how}")
        return units

    async def _units(self, cost: Cost, connection: HTTPConnection) -> int | None:
        """Return what a request costs that is no check of its own; None where it is exempt."""
        if self.exempt and await self.exempt.covers(connection):
            return None
        return await self._asked(cost, connection) if callable(cost) else cost

    def free(self) -> Charge:
        """Return what a request is charged that this policy does not count."""
        decision = Decision(allowed=True, policy=self.policy.name, cost=0, quotas=(), at_us=self.limiter.clock.now())
        return Charge(self.limiter, self.policy, "", decision)

    def _counted_later(self, charge: Charge, pending: Pending) -> Charge:
        """While units that would have left room may still be given back, a refusal says so: to come back soon."""
        decision = charge.decision
        if charge.spent:
            charge.await_answer(pending)
        elif decision.reason == "quota" and _may_fit(decision, sum(list(pending.get(decision.user, {}).values()))):
            quotas = tuple([_soon(state) for state in decision.quotas])
            wait = None if decision.retry_after is None else min(decision.retry_after, _SOON_S)
            charge.decision = msgspec.structs.replace(decision, quotas=quotas, retry_after=wait)
        return charge


class JointPolicyCheck(PolicyCheck):
    """A policy that is decided together with `others`: all of them spend, or none."""

    __slots__ = ("others",)

    def __init__(
        self, limiter: Limiter, policy: Policy, user_resolver: UserResolver, others: Sequence[PolicyCheck]
    ) -> None:
        super().__init__(limiter, policy, user_resolver)
        self.is_plain = False
        self.others = others

    async def check(
        self, connection: HTTPConnection, *, cost: Cost | None = None, inline: Inline | None = None
    ) -> Charge:
        """Decide, and spend. What this policy exempts has none of the others to pass for its sake; what is free, or
        exempt for another, is so for that one alone.

        Return the charge of the one that refuses, else of this policy; the others are with it.
        """
        units = await self._units(self.policy.cost if cost is None else cost, connection)
        if units is None:
            return self.free()
        free: list[Charge] = []
        asked: list[tuple[PolicyCheck, str]] = []
        spends: list[Spend] = []
        for one in (self, *self.others):
            own = units if one is self else await self._units_of(one, units, connection)
            if own:
                user, spend = await one._spend(connection, own, inline if one is self else None)
                asked.append((one, user))
                spends.append(spend)
            else:
                free.append(one.free())
        answer = await self._decide(spends)
        charges = [
            self._charged(one, user, decision, answer) for (one, user), decision in zip(asked, answer, strict=True)
        ]
        if answer.refused is not None:
            first = charges[answer.decisions.index(answer.refused)]
        else:
            first = charges[0] if units else free[0]
        first.others = [charge for charge in (*charges, *free) if charge is not first]
        return first

    async def _units_of(self, other: PolicyCheck, units: int, connection: HTTPConnection) -> int | None:
        """Return what another one takes of a request that costs so many units: its own cost, where it has one."""
        own: Any = other.policy.cost
        return await other._units(units if type(own) is int and own == 1 else own, connection)

    async def _decide(self, spends: Sequence[Spend]) -> JointDecision:
        try:
            return await self.limiter._check_all(spends) if spends else JointDecision(())
        except SlotNeeded:  # by this user's own quotas
            warn_once(f"{self.policy.name}: {_NOT_TOGETHER}")
            raise HTTPException(403, _NOT_TOGETHER) from None

    def _charged(self, one: PolicyCheck, user: str, decision: Decision, answer: JointDecision) -> Charge:
        if not answer and decision.allowed and not decision.shadow_denied:
            decision = msgspec.structs.replace(decision, cost=0)  # which was not taken
        charge = Charge(self.limiter, one.policy, user, decision)
        return charge if one._pending is None else one._counted_later(charge, one._pending)


def _may_fit(refused: Decision, pending: int) -> bool:
    return pending > 0 and all(room(state, pending) >= refused.cost for state in refused.quotas)


def _soon(state: QuotaState) -> QuotaState:
    return msgspec.structs.replace(state, retry_after=min(state.retry_after, _SOON_S)) if state.retry_after else state


class Exemption:
    """Requests that are never checked: patterns as in `match`, or functions of the request. Raises `ConfigError`."""

    __slots__ = ("_functions", "patterns")

    def __init__(self, exempt: Exempt | Iterable[Exempt]) -> None:
        listed = [exempt] if isinstance(exempt, str) or callable(exempt) else list(exempt)
        for number, one in enumerate(listed):
            if not isinstance(one, str) and not callable(one):
                raise ConfigError(f"exempt[{number}]", f"expected a pattern or a function, not {one!r}")
        self.patterns = _patterns("exempt", [one for one in listed if isinstance(one, str)])
        self._functions: list[Callable[[Any], object]] = [one for one in listed if callable(one)]

    async def covers(self, connection: HTTPConnection) -> bool:
        scope = connection.scope
        if self.patterns and self.patterns.cover(scope):
            return True
        for function in self._functions:
            answer = function(connection)
            if await answer if isawaitable(answer) else answer:
                return True
        return False

    def __bool__(self) -> bool:
        return bool(self.patterns or self._functions)


def _patterns(path: str, texts: Iterable[str], *, any_case: bool = False) -> Patterns:
    with within(path):
        return Patterns(texts, any_case=any_case)


class SurfaceOptions:
    """Options as in `RateLimitMiddleware`, resolved once. Raises `ConfigError` with the path to a bad one."""

    __slots__ = (
        "_addresses", "_policy_checks", "_unnamed", "exempt", "identifying", "max_body_bytes", "user_resolver", "writer"
    )  # fmt: skip

    def __init__(
        self,
        *,
        user_from: UserFrom | Iterable[UserFrom] = DEFAULT_USER_FROM,
        trusted_proxies: TrustedProxies = 0,
        ipv6_prefix: int = DEFAULT_IPV6_PREFIX,
        headers: HeaderStyle = "draft",
        exempt: Exempt | Iterable[Exempt] = (),
        max_body_bytes: object = DEFAULT_MAX_BODY_BYTES,
    ) -> None:
        self._addresses = Addresses(trusted_proxies, ipv6_prefix)
        self.user_resolver = UserResolver(user_from, self._addresses)
        self.identifying = self.user_resolver.headers
        """The fields that say who somebody is, here or to a policy of its own `user_from`."""
        self.writer = HeaderWriter(headers)
        self.exempt = Exemption(exempt)
        with within("max_body_bytes"):
            self.max_body_bytes = check_max_body_bytes(max_body_bytes)
        self._policy_checks: dict[tuple[int, str], PolicyCheck] = {}
        self._unnamed: dict[tuple[int, str], PolicyCheck] = {}
        """Those of actions that only the calls know, who may make up new ones."""

    def policy_check(self, limiter: Limiter, action: str, *, is_inline: bool = False) -> PolicyCheck:
        """Return the check by one of the limiter's policies, made when first asked for. Raises `UnknownAction`, but for
        one whose quotas are `is_inline`."""
        # It holds on to its limiter, so an id in here is not used again for another one.
        known = self._unnamed if is_inline and action not in limiter.policies else self._policy_checks
        found = known.get((id(limiter), action))
        if found is None:
            found = self._make(limiter, action, is_inline)
            if len(self._unnamed) >= MAX_REMEMBERED:
                self._unnamed.clear()
            known[id(limiter), action] = found
        return found

    def warn(self, root: str) -> None:
        self.exempt.patterns.warn(root)
        for policy_check in self._policy_checks.values():
            policy_check.match.warn(root)
            policy_check.exempt.patterns.warn(root)

    def address_of(self, connection: HTTPConnection) -> str:
        return self._addresses.of(connection.scope)

    def _make(self, limiter: Any, action: str, is_inline: bool) -> PolicyCheck:
        if not isinstance(limiter, Limiter):
            how = "one of ratelimit.sync is for ratelimit.wsgi, .flask and .functions"
            raise ConfigError("limiter", f"expected a Limiter of ratelimit, not {limiter!r}; {how}")
        policy = limiter.policies.get(action)
        if policy is None and is_inline:
            return PolicyCheck(limiter, Policy(action, UNLIMITED), self.user_resolver)
        if policy is None:
            raise UnknownAction(no_policy(action, limiter.policies))
        user_resolver = self._resolver_of(policy)
        if not policy.together:
            return PolicyCheck(limiter, policy, user_resolver)
        named = [limiter.policies[name] for name in members_of(limiter.policies, action)[1:]]
        others = [PolicyCheck(limiter, other, self._resolver_of(other)) for other in named]
        return JointPolicyCheck(limiter, policy, user_resolver, others)

    def _resolver_of(self, policy: Policy) -> UserResolver:
        if not policy.user_from:
            return self.user_resolver
        with within(f"policies.{policy.name}"):
            own = UserResolver(policy.user_from, self._addresses)
        self.identifying |= own.headers
        return own


class Routes:
    """The policies with a `match`, in the limiter's order: which of them a request meets.

    Patterns have to be scanned, so it is remembered of the requests of late.
    """

    __slots__ = ("_known", "_policy_checks")

    def __init__(self, policy_checks: Sequence[PolicyCheck]) -> None:
        self._policy_checks = tuple(one for one in policy_checks if one.match)
        self._known: dict[tuple[str, str | None, str, str, Any], tuple[tuple[PolicyCheck, ...], bool]] = {}
        """What each has to pass, and whether by another method it would be more."""

    def find(self, scope: Scope) -> tuple[PolicyCheck, ...]:
        get = scope.get
        request = (scope["type"], get("method"), scope["path"], get("root_path", ""), get("raw_path"))
        found = self._known.get(request)
        if found is None:
            target = RequestTarget(scope)
            checks = self._fitting(target)
            target.methods = None
            found = _leading_first(checks), len(checks) < len(self._fitting(target))
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            if sum(map(len, filter(None, request))) <= _MAX_REMEMBERED_LENGTH:
                self._known[request] = found
        if found[1] and (methods := overriding_methods(scope)):
            target = RequestTarget(scope)
            target.methods = methods.union(target.methods or ())
            return _leading_first(self._fitting(target))
        return found[0]

    def _fitting(self, target: RequestTarget) -> list[PolicyCheck]:
        return [one for one in self._policy_checks if one.match.fit(target)]


def _leading_first(found: Sequence[PolicyCheck]) -> tuple[PolicyCheck, ...]:
    """Return the checks, each behind those that make it together with their own: where they have, it is not made by
    itself."""
    made = [other.policy.name for one in found if isinstance(one, JointPolicyCheck) for other in one.others]
    return tuple(sorted(found, key=lambda one: made.count(one.policy.name))) if made else tuple(found)
