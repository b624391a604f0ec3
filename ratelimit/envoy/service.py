"""`RateLimitService`: Envoy's question about a request's descriptors, answered by a limiter.

As envoyproxy/ratelimit answers, with four differences that make limits exact:

- A refused hit is not counted, as it does not fit. Several that only part of would fit are: what is left goes with
  them, for callers that count afterwards (`apply_on_stream_done`) and have had what they count already.
- `hits_addend: 0` looks without counting, and says OVER_LIMIT as soon as nothing is left.
- Who may do only so much at the same time, by a plan, takes a slot that comes back after `hold`: Envoy does not say
  when a request has ended.
- With `all_or_nothing` a request that is refused counts nowhere: its descriptors are decided together. Those in quota
  mode, that are the same twice, only look or need a slot are all taken, and given back where one refuses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from math import ceil
from typing import Any, Final, NamedTuple, TypeVar

from msgspec.structs import replace

from ratelimit.cache import LRUCache
from ratelimit.clock import SECOND
from ratelimit.config.envoy import MAX_UINT32, UNIT_NAMES, UNITS, EnvoyRule, EnvoyRules, policy_name, quota, user_of
from ratelimit.decision import Decision, JointDecision
from ratelimit.envoy.grpc import Call, GrpcError, Status
from ratelimit.envoy.messages import (
    OK,
    OVER_LIMIT,
    CurrentLimit,
    Descriptor,
    DescriptorStatus,
    RateLimitRequest,
    RateLimitResponse,
    read_request,
    write_response,
)
from ratelimit.errors import InvalidInput, SlotNeeded, StoreUnavailable
from ratelimit.http.addresses import warn_once
from ratelimit.http.headers import HeaderStyle, HeaderWriter
from ratelimit.limiter import Limiter, Slot, Spend
from ratelimit.quota import MAX_LIMIT, Quota
from ratelimit.store import MemoryStore
from ratelimit.usage import UsageLog

logger: Final = logging.getLogger("ratelimit")

SERVICE: Final = "envoy.service.ratelimit.v3.RateLimitService"
MAX_DESCRIPTORS: Final = 64
MAX_ENTRIES: Final = 32
_MAX_PLANS: Final = 4096
_MAX_PLANNED_BYTES: Final = 1024
UNREAD: Final = write_response(RateLimitResponse(OVER_LIMIT, ()))
"""The answer to what is too large to be read: upon an error Envoy would let a request pass whose client made it so."""
UNKNOWN_DOMAIN: Final = "other"
"""What domains are called in metrics that have no rules."""

T = TypeVar("T")


class Check(NamedTuple):
    """A descriptor that has a limit: what to ask the limiter, and how to say what it is."""

    user: str
    action: str
    cost: int
    """0 to look only."""
    negative: bool
    own: Quota | None
    """The one that the request brings with it."""
    quota: Quota
    """The one that holds, if the user has none of their own."""
    limit: CurrentLimit
    """What it is called."""
    window: int
    """Its length in microseconds."""
    quota_mode: bool


class CheckOutcome(NamedTuple):
    """What came of a check. Without a decision, a refund."""

    status: DescriptorStatus
    decision: Decision | None
    over: bool
    slot: Slot | None = None


class CallPlan(NamedTuple):
    """What a request means by the rules; in the place of a descriptor without a limit is its status."""

    domain: str
    parts: tuple[Check | DescriptorStatus, ...]
    checks: list[Check]
    is_joint: bool
    """Whether all that it asks for is to be spent, of different keys, and may refuse it alone."""


class CallAnswer(NamedTuple):
    """A response, and what has to be awaited before it may leave: events of the usage log on their way to the disk."""

    response: RateLimitResponse
    events: list[Awaitable[bool]]


_FREE: Final = DescriptorStatus(OK)
_SHADOW: Final = {"shadow_denied": True}
_UNLIMITED: Final = DescriptorStatus(OK, None, MAX_UINT32)
_NO_END: Final = (
    "the plan of a user limits how many requests go on at the same time, and Envoy does not say when one has ended: a"
    " slot comes back after `hold`"
)


class RateLimitService:
    """The service for one set of rules. `calls` counts by domain and answer (`ok`, `over_limit`, `error`).

    `limiter` has the rules' policies among its own, and waits `deadline` seconds for the store: a caller who waits less
    is warned of. `headers` is what Envoy is to add to responses.
    """

    def __init__(
        self,
        rules: EnvoyRules,
        limiter: Limiter,
        *,
        headers: HeaderStyle = "none",
        all_or_nothing: bool = False,
        usage: UsageLog | None = None,
        deadline: float = 0.0,
    ) -> None:
        self.calls: dict[tuple[str, str], int] = {}
        self._rules = rules
        self._limiter = limiter
        self._headers = None if headers == "none" else HeaderWriter(headers)
        self._all_or_nothing = all_or_nothing
        self._usage = usage
        self._deadline = deadline
        # There nothing ever waits, and no task is needed. (A directory may have to be read first.)
        self._at_once = isinstance(limiter.store, MemoryStore) and limiter.directory is None
        self._plans: LRUCache[bytes, CallPlan] = LRUCache(_MAX_PLANS)
        self._limits: dict[str, CurrentLimit] = {}

    def should_rate_limit(self, message: bytes, call: Call) -> bytes | Awaitable[bytes]:
        """Answer a call. Raises `GrpcError` for what is no question, as what it returns does."""
        plan = self._plans.get(message)
        if plan is None:
            try:
                plan = self._plan(read_request(message))
            except InvalidInput as error:
                self._count(UNKNOWN_DOMAIN, "error")
                raise GrpcError(Status.INVALID_ARGUMENT, str(error)) from error
            if len(message) <= _MAX_PLANNED_BYTES:
                self._plans.put(message, plan)
        if not self._at_once:
            self._compare_deadlines(call)
            return self._answer(plan)
        answer = run_at_once(self._decide(plan))
        return self._when_kept(answer) if answer.events else write_response(answer.response)

    def _compare_deadlines(self, call: Call) -> None:
        """Say once that the caller is gone before the limiter answers by itself: Envoy then lets the request pass."""
        if self._deadline and call.deadline is not None:
            left = call.deadline - asyncio.get_running_loop().time()
            if left < self._deadline:
                told = "%s waits %.0f ms, and the limiter %.0f for its store: raise Envoy's timeout, or lower deadline"
                logger.warning(told, call.peer, left * 1000, self._deadline * 1000)
                self._deadline = 0.0

    async def _answer(self, plan: CallPlan) -> bytes:
        return await self._when_kept(await self._decide(plan))

    async def _when_kept(self, answer: CallAnswer) -> bytes:
        return write_response(await _kept(answer))

    async def respond(self, request: RateLimitRequest) -> RateLimitResponse:
        """Answer a request that came otherwise. Raises `InvalidInput`, and `GrpcError` where a refund is not taken."""
        try:
            plan = self._plan(request)
        except InvalidInput:
            self._count(UNKNOWN_DOMAIN, "error")
            raise
        return await _kept(await self._decide(plan))

    def _plan(self, request: RateLimitRequest) -> CallPlan:
        """Find the limits of a request. Raises `InvalidInput`."""
        if not request.domain:
            raise InvalidInput("the domain is empty; Envoy's filter has it as `domain`")
        if not 0 < len(request.descriptors) <= MAX_DESCRIPTORS:
            raise InvalidInput(f"expected 1 to {MAX_DESCRIPTORS} descriptors, not {len(request.descriptors)}")
        found = [self._find(request.domain, descriptor) for descriptor in request.descriptors]
        replaced = {name for rule in found if isinstance(rule, EnvoyRule) for name in rule.replaces}
        parts = tuple(
            self._part(request, descriptor, rule, replaced)
            for descriptor, rule in zip(request.descriptors, found, strict=True)
        )
        domain = request.domain if request.domain in self._rules.domains else UNKNOWN_DOMAIN
        checks = [part for part in parts if isinstance(part, Check)]
        differ = len({(check.user, check.action) for check in checks}) == len(checks)
        spends = all(check.cost and not check.negative and not check.quota_mode for check in checks)
        return CallPlan(domain, parts, checks, differ and spends)

    def _find(self, domain: str, descriptor: Descriptor) -> EnvoyRule | None:
        if not 0 < len(descriptor.entries) <= MAX_ENTRIES:
            raise InvalidInput(f"expected 1 to {MAX_ENTRIES} entries in a descriptor, not {len(descriptor.entries)}")
        root = self._rules.domains.get(domain)
        return None if root is None or descriptor.limit is not None else root.find(descriptor.entries)

    def _part(
        self, request: RateLimitRequest, descriptor: Descriptor, rule: EnvoyRule | None, replaced: set[str]
    ) -> Check | DescriptorStatus:
        hits = descriptor.hits if descriptor.hits is not None else max(1, request.hits)
        cost = min(hits, MAX_LIMIT)
        if descriptor.limit is not None and request.domain in self._rules.domains:
            return _overridden(request.domain, descriptor, cost)
        if rule is None or (rule.name and rule.name in replaced):
            return _FREE
        if rule.policy is None:
            return _UNLIMITED
        limit = self._limits.get(rule.policy.name)
        if limit is None:
            number = UNITS[rule.unit][0]
            limit = CurrentLimit(rule.requests_per_unit, number, rule.multiplier, rule.name)
            self._limits[rule.policy.name] = limit
        quota = rule.policy.quotas[0]
        window = quota.window.longest
        user, action = rule.user(descriptor.entries), rule.policy.name
        return Check(user, action, cost, descriptor.negative, None, quota, limit, window, rule.quota_mode)

    async def _decide(self, plan: CallPlan) -> CallAnswer:
        checks = plan.checks
        if len(checks) == 1:
            outcomes = [await self._check(checks[0])]
        elif plan.is_joint and self._all_or_nothing:
            outcomes = await self._check_together(checks)
        else:
            outcomes = await self._all(map(self._check, checks))
        over = _is_over(checks, outcomes)
        self._count(plan.domain, "over_limit" if over else "ok")
        if over and self._all_or_nothing:
            outcomes = await self._all(map(self._give_back, outcomes))
        statuses = [outcome.status for outcome in outcomes]
        for place, part in enumerate(plan.parts):
            if not isinstance(part, Check):
                statuses.insert(place, part)
        events = [] if self._usage is None else self._record(self._usage, checks, outcomes)
        code, fields = OVER_LIMIT if over else OK, self._fields(outcomes, over)
        return CallAnswer(RateLimitResponse(code, tuple(statuses), fields), events)

    async def _all(self, works: Iterable[Coroutine[Any, Any, CheckOutcome]]) -> list[CheckOutcome]:
        """Do all of it, at once where it has to wait for the store."""
        if self._at_once:
            return [await work for work in works]
        return await asyncio.gather(*works)

    async def _check(self, check: Check) -> CheckOutcome:
        limiter, quotas = self._limiter, check.own
        if check.negative:
            return await self._refund(check)
        if not check.cost:
            return _outcome(check, await limiter.peek(check.user, check.action, quotas=quotas))
        decision: Decision | None
        try:
            decision = await limiter.check(check.user, check.action, cost=check.cost, quotas=quotas)
        except SlotNeeded:  # by this user's own quotas
            decision = None
        if decision is None:
            return await self._take_slot(check)
        left = decision.quotas[0].remaining if decision.quotas else 0
        if check.cost > 1 and not decision.spent and left and not self._all_or_nothing:
            charged = await limiter.charge(check.user, check.action, check.cost, quotas=quotas)
            decision = replace(decision, quotas=charged.quotas)
        return _outcome(check, decision)

    async def _take_slot(self, check: Check) -> CheckOutcome:
        warn_once(f"{check.action}: {_NO_END}")
        slot = self._limiter.slot(check.user, check.action, cost=check.cost)
        outcome = _outcome(check, await slot.take())
        return outcome._replace(slot=slot) if slot.is_held else outcome

    async def _check_together(self, checks: Sequence[Check]) -> list[CheckOutcome]:
        spends = [Spend(check.user, check.action, check.cost, check.own) for check in checks]
        answer: JointDecision | None
        try:
            answer = await self._limiter.check_all(spends)
        except SlotNeeded:  # which is taken by itself
            answer = None
        if answer is None:
            return await self._all(map(self._check, checks))
        return [
            _outcome(check, replace(decision, cost=0) if decision.allowed and not answer else decision)
            for check, decision in zip(checks, answer, strict=True)
        ]

    async def _refund(self, check: Check) -> CheckOutcome:
        """Give hits back, as far as there are any. That is OK however much is left then."""
        limiter, quotas = self._limiter, check.own
        try:
            if check.cost:
                await limiter.refund(check.user, check.action, check.cost, quotas=quotas)
        except StoreUnavailable as error:
            raise GrpcError(Status.UNAVAILABLE, "the store did not take the refund") from error
        decision = await limiter.peek(check.user, check.action, quotas=quotas)
        return CheckOutcome(_status(check, decision, OK), None, False)

    async def _give_back(self, outcome: CheckOutcome) -> CheckOutcome:
        decision = outcome.decision
        if outcome.slot is not None:
            await outcome.slot.release()
        if decision is None or not decision.spent:
            return outcome
        try:
            await self._limiter.refund(decision)
        except StoreUnavailable as error:
            self._limiter.stats.lost["unreturned"] += decision.cost
            logger.warning("%d units of %r were not given back: %s", decision.cost, decision.policy, error)
            return outcome
        status = outcome.status
        return outcome._replace(status=status._replace(remaining=status.remaining + decision.cost))

    def _fields(self, outcomes: Iterable[CheckOutcome], over: bool) -> tuple[tuple[bytes, bytes], ...]:
        if self._headers is None:
            return ()
        decisions = [outcome.decision for outcome in outcomes if outcome.decision is not None]
        fields = self._headers.fields(decisions)
        if over:
            waits = [decision.retry_after for decision in decisions if not decision.allowed]
            if waits and None not in waits:
                fields.append((b"retry-after", b"%d" % max(1, ceil(max(wait or 0.0 for wait in waits)))))
        return tuple(fields)

    def _record(
        self, usage: UsageLog, checks: Iterable[Check], outcomes: Iterable[CheckOutcome]
    ) -> list[Awaitable[bool]]:
        """Keep an event of each decision; of what was only looked at there is none."""
        waiting = []
        for check, outcome in zip(checks, outcomes, strict=True):
            decision = outcome.decision
            if decision is None or not check.cost:
                continue
            pending = usage._accept(
                decision.user,
                decision.policy,
                at_us=decision.at_us,
                cost=decision.cost,
                allowed=decision.allowed,
                status=200 if decision.allowed else 429,
                metadata=_SHADOW if decision.shadow_denied else None,
            )
            if pending is not None:
                waiting.append(pending)
        return waiting

    def _count(self, domain: str, code: str) -> None:
        self.calls[domain, code] = self.calls.get((domain, code), 0) + 1


async def _kept(answer: CallAnswer) -> RateLimitResponse:
    for event in answer.events:
        await event
    return answer.response


def _overridden(domain: str, descriptor: Descriptor, cost: int) -> Check:
    """Return the check of a descriptor by the limit that it brings: counted apart from the rules, never in shadow."""
    assert descriptor.limit is not None
    requests, number, multiplier = descriptor.limit
    if number not in UNIT_NAMES or not multiplier:
        raise InvalidInput(f"a limit of the request has the unit {number}, of which there are {multiplier}")
    limit = quota(requests, UNIT_NAMES[number], multiplier)
    user = user_of([text for entry in descriptor.entries for text in entry])
    action = policy_name((domain, "override"))
    wire = CurrentLimit(requests, number, multiplier)
    return Check(user, action, cost, descriptor.negative, limit, limit, wire, limit.window.longest, False)


def _is_over(checks: list[Check], outcomes: list[CheckOutcome]) -> bool:
    """Return whether the request is refused: by any limit, or by all of those in quota mode."""
    over = [outcome.over for outcome in outcomes]
    if True not in over:
        return False
    modes = [check.quota_mode for check in checks]
    hard = any(is_over and not mode for is_over, mode in zip(over, modes, strict=True))
    return hard or (True in modes and all(is_over for is_over, mode in zip(over, modes, strict=True) if mode))


def _outcome(check: Check, decision: Decision) -> CheckOutcome:
    over = not decision.allowed
    return CheckOutcome(_status(check, decision, OVER_LIMIT if over else OK), decision, over)


def _status(check: Check, decision: Decision, code: int) -> DescriptorStatus:
    quotas = decision.quotas
    if quotas and (len(quotas) > 1 or (quotas[0].quota is not check.quota and quotas[0].quota != check.quota)):
        return _own_status(decision, code)
    if not quotas and code == OK and decision.reason is None:
        return _UNLIMITED
    remaining = 0 if code == OVER_LIMIT or not quotas else min(quotas[0].remaining, MAX_UINT32)
    reset = -(-(check.window - decision.at_us % check.window) // SECOND)
    return DescriptorStatus(code, check.limit, remaining, reset)


def _own_status(decision: Decision, code: int) -> DescriptorStatus:
    """Return the status of a user with quotas of their own: by the tightest of them."""
    state = decision.tightest
    assert state is not None
    window, requests = state.quota.window, min(state.quota.limit, MAX_UINT32)
    remaining = 0 if code == OVER_LIMIT else min(state.remaining, MAX_UINT32)
    if state.quota.is_concurrent:
        return DescriptorStatus(code, CurrentLimit(requests, 0), remaining, 0)
    limit = CurrentLimit(requests, UNITS[window.unit][0], window.count)
    reset = -(-(window.span(decision.at_us).end - decision.at_us) // SECOND)
    return DescriptorStatus(code, limit, remaining, reset)


def run_at_once(work: Coroutine[Any, Any, T]) -> T:
    """Return what a coroutine returns that never waits."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("the embedded store had to be waited for")
