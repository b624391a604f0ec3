"""What one request was checked for: `Charges`, which are settled when its answer is known, and written down."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable, Sequence
from random import random as _draw
from typing import Any, Final, TypeAlias

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from ratelimit.decision import Decision, QuotaState
from ratelimit.errors import NotHeld, QuotaExceeded, StoreUnavailable
from ratelimit.http.routing import app_path
from ratelimit.limiter import Limiter
from ratelimit.policy import Policy

_REQUEST_ID: Final = b"x-request-id"
_SHADOW: Final = {"shadow_denied": True}

logger = logging.getLogger("ratelimit")


Pending: TypeAlias = dict[str, dict[int, int]]
"""Of each user the units of requests that are not answered yet, which may turn out not to count. Threads share it
without a lock: where one loses sight of an entry of another's, a refusal only names a longer wait."""


class Charge:
    """What was decided for whom, and what it takes to give it back."""

    __slots__ = ("_pending", "decision", "hold", "limiter", "others", "policy", "user")

    def __init__(self, limiter: Limiter, policy: Policy, user: str, decision: Decision) -> None:
        self.limiter = limiter
        self.policy = policy
        self.user = user
        self.decision = decision
        self._pending: Pending | None = None
        self.hold: Any = None
        """The slot or the reservation that is held until the answer has ended; None where there is none."""
        self.others: Sequence[Charge] = ()
        """Those that were decided together with it."""

    @property
    def is_reserved(self) -> bool:
        return self.hold is not None and self.policy.reserve

    @property
    def spent(self) -> int:
        """Return the units that it still holds: none where it was refused, or has been given back."""
        return int(self.decision.spent) - int(self.decision.refunded)

    def counts(self, success: bool, status: int, headers: Any) -> bool:
        count: Any = self.policy.count
        if count == "all":
            return True
        if not callable(count):
            return bool((count == "success") == success)
        response = Response(status_code=status)
        response.raw_headers = [(name.lower(), value) for name, value in headers]
        return bool(count(response))

    async def give_back(self, units: int) -> None:
        """Give back so many of the units that it holds. Raises `StoreUnavailable`."""
        taken = self.decision
        quotas = taken.quotas
        try:
            if self.is_reserved:
                self.hold.resettle(self.spent - units)
                await self.release()
                taken = self.decision
            else:
                await self.limiter.refund(taken, cost=units)
            quotas = tuple([self._with_room(state, units) for state in quotas])
        finally:
            self.settle()
            self.decision = msgspec.structs.replace(taken, cost=taken.spent - taken.refunded, quotas=quotas)

    async def release(self) -> None:
        """Give back what is held until the answer has ended: the slot, and what was not used of what was reserved."""
        hold, self.hold = self.hold, None
        if hold is None:
            return
        is_reserved, taken = self.policy.reserve, self.decision
        used = taken.spent if not is_reserved or hold.used is None else hold.used
        was_held = await hold.finish()
        if not is_reserved:
            return
        if not was_held and used:  # it has gone back to others already
            await self.charge(used)
        if used < taken.spent:
            self.decision = msgspec.structs.replace(taken, cost=used, refunded=taken.spent - used)

    async def charge(self, units: int) -> Decision:
        """Charge so many units more, by the quotas that were decided by. Raises nothing for a store."""
        taken = self.decision
        quotas = tuple([state.quota for state in taken.quotas]) or None
        return await self.limiter.charge(taken.user, self.policy.name, units, quotas=quotas)

    def await_answer(self, pending: Pending) -> None:
        self._pending = pending
        pending.setdefault(self.decision.user, {})[id(self)] = self.decision.cost

    def settle(self) -> None:
        """Take note that it is known now whether it counts."""
        pending, self._pending = self._pending, None
        if pending is not None and (held := pending.get(self.decision.user)) is not None:
            held.pop(id(self), None)
            if not held:
                pending.pop(self.decision.user, None)

    def _with_room(self, state: QuotaState, units: int) -> QuotaState:
        quota, algorithm = state.quota, self.policy.algorithm
        if quota.is_concurrent:
            return state
        used = max(0, state.used - units)
        remaining = max(0, room(state, units))
        reset_after = state.reset_after
        if algorithm == "gcra":
            reset_after = max(0.0, reset_after - units * quota.window.seconds / max(1, quota.limit))
        elif algorithm == "sliding_window" and not used:
            reset_after = 0.0
        return msgspec.structs.replace(state, used=used, remaining=remaining, reset_after=reset_after)


def room(state: QuotaState, returned: int) -> int:
    """Return the units that are left where so many are given back; below 0 after a charge."""
    return (state.quota.burst or state.quota.limit) - state.used + returned


class Charges:
    """Everything that one request was checked for before it was answered. What does not count in the end is handed out
    once, to be given back: by `settle` when the answer is known, by `refuse` when the request is refused after all."""

    raised: QuotaExceeded | None = None
    """What a view was last told of a refusal."""
    _refused: Decision | None = None
    _acted_on: int = 0
    """So many of them, from the first, the app has acted on; are not to be given back any more; are recorded."""
    _settled: int = 0
    _recorded: int = 0
    _late: dict[str, Decision] | None = None
    held: Sequence[Charge] = ()
    """Those that hold something until the answer has ended."""

    def __init__(self) -> None:
        self.all: list[Charge] = []
        """In the order they were made, but for late ones."""

    @property
    def decisions(self) -> list[Decision]:
        """Return them in the order they were made; of those made after the answer began, each policy's last."""
        return [*[charge.decision for charge in self.all], *(self._late or {}).values()]

    @property
    def shown(self) -> list[Decision]:
        """Return those that the response's headers speak of: a shadow policy is not to be seen."""
        if self._refused is not None:
            return [self._refused]
        return [charge.decision for charge in self.all if charge.policy.mode == "enforce"]

    @property
    def spent(self) -> list[Charge]:
        """Return those that took units and are not settled yet."""
        return [charge for charge in self.all[self._settled :] if charge.spent]

    @property
    def is_settled(self) -> bool:
        return self._settled == len(self.all)

    @property
    def is_acted_on(self) -> bool:
        """Return whether the app has asked by itself."""
        return self._acted_on > 0

    def add(self, charge: Charge) -> None:
        """Take note of a check, and of those that were decided together with it."""
        self.all.append(charge)
        if charge.hold is not None:
            self.held = [*self.held, charge]
        if charge.others:
            self.all += charge.others

    def act(self) -> None:
        """Take note that the app acts on what was admitted so far: a later refusal does not give it back."""
        self._acted_on = len(self.all)

    def add_late(self, charge: Charge) -> None:
        """Take note of a check after the answer has begun: there may be any number of them."""
        if self._late is None:
            self._late = {}
        for part in (charge, *charge.others):
            self._late[part.policy.name] = part.decision
        if charge.hold is not None:
            self.held = [*self.held, charge]

    def settle_held(self, action: str, used: int) -> None:
        """Settle what a policy has reserved. Raises `InvalidCost`, and `NotHeld` where nothing is, or not any more."""
        for charge in reversed(self.held):
            if charge.policy.name == action and charge.is_reserved:
                charge.hold.settle(used)
                return
        raise NotHeld(f"nothing is reserved for this request by {action!r}; give that policy `reserve = true`")

    def settle(self, success: bool, status: int, headers: Any) -> list[Charge]:
        """Take note of the answer. Return what does not count with it, and so has to be given back."""
        returned = _uncounted(self.all[self._settled :], success, status, headers)
        self._settled = len(self.all)
        return returned

    def cancel(self) -> list[Charge]:
        """Undo what was no request of its own after all. Return all that it spent, whatever counts."""
        spent = self.spent
        self._settled = len(self.all)
        return spent

    def keep(self) -> None:
        """Leave spent what is, as it will not be known how the request would have ended. The app may have done it all:
        whoever leaves before the answer has had it no less."""
        for charge in self.all[self._settled :]:
            charge.settle()
        self._settled = len(self.all)

    def settle_unanswered(self) -> None:
        """Leave spent what is, as it will not be known how the request ends, nor when: a slot comes back by itself."""
        self.keep()
        if self.held:
            for charge in self.held:
                if not charge.policy.reserve:
                    charge.hold = None
            self.held = [charge for charge in self.held if charge.is_reserved]

    def refuse(self, refused: Decision, status: int, headers: Any) -> list[Charge]:
        """Take note of the refusal, of which alone the headers speak from now on. Return what was taken for that same
        decision; what the app has acted on counts as it does with such an answer."""
        self._refused = refused
        taken = [charge for charge in self.all[max(self._settled, self._acted_on) :] if charge.spent]
        if self._settled < self._acted_on:
            taken += _uncounted(self.all[self._settled : self._acted_on], False, status, headers)
        self._settled = len(self.all)
        return taken

    def to_record(self) -> list[Charge]:
        charges = self.all[self._recorded :]
        self._recorded = len(self.all)
        return charges


def _uncounted(charges: Iterable[Charge], success: bool, status: int, headers: Any) -> list[Charge]:
    """Return those that spent what does not count with such an answer; the others are settled."""
    returned: list[Charge] = []
    for charge in charges:
        if charge.policy.count == "all" or not charge.spent:
            continue
        if charge.counts(success, status, headers):
            charge.settle()
        else:
            returned.append(charge)
    return returned


async def give_back(charge: Charge, units: int) -> None:
    """Give so many units of it back, if the store will have them."""
    try:
        await charge.give_back(units)
    except StoreUnavailable as error:
        name = charge.policy.name
        charge.limiter.stats.lost["unreturned"] += units
        logger.warning("%d units of %r were not given back: %s", units, name, error)


def record(
    usage: Any,
    scope: Scope,
    charges: Sequence[Charge],
    *,
    status: int,
    duration: float | None,
    request_id: bytes | None = None,
) -> list[Awaitable[bool]]:
    """Keep an event of each charge that its policy's `log` asks for. Return what to await until they are kept as
    durably as the log promises.

    `usage` is a log for an event loop, or for threads, which has waited when it returns. The duration is in
    milliseconds; None of what does not end with an answer. The id is by default what the request's fields say.
    """
    waiting: list[Awaitable[bool]] = []
    for charge in charges:
        decision, policy = charge.decision, charge.policy
        allowed = decision.allowed
        if not charge.user or not ((allowed and policy.log == "all") or wants_event(policy, allowed=allowed)):
            continue
        pending = usage._accept(
            charge.user,
            policy.name,
            at_us=decision.at_us,
            cost=decision.cost,
            allowed=allowed,
            status=status,
            duration=duration,
            resource=app_path(scope),
            request_id=_request_id(scope) if request_id is None else request_id.decode(),
            metadata=_SHADOW if decision.shadow_denied else None,
        )
        if pending is not None:
            waiting.append(pending)
    return waiting


def wants_event(policy: Policy, *, allowed: bool) -> bool:
    """Return whether a policy's `log` asks for an event of such a decision; of refused ones it may want a sample."""
    if policy.log not in ("all", "allowed" if allowed else "denied"):
        return False
    return allowed or policy.log_sample == 1 or _draw() < policy.log_sample


def _request_id(scope: Any) -> str | None:
    for name, value in scope["headers"]:
        if name == _REQUEST_ID:
            text: str = value.decode("latin-1")
            return text if text.isprintable() else None
    return None
