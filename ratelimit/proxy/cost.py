"""`X-RateLimit-Cost: 17`: what a request has really cost, as only the upstream knows it."""

from __future__ import annotations

import logging
from typing import Final

import msgspec
from starlette.types import Scope

from ratelimit.errors import StoreUnavailable
from ratelimit.http.gate import Receipt
from ratelimit.http.state import RateLimitState
from ratelimit.proxy.fields import COST, Raw
from ratelimit.quota import MAX_LIMIT

_DIGITS: Final = len(str(MAX_LIMIT))

logger = logging.getLogger("ratelimit.proxy")


async def settle_cost(scope: Scope, raw: list[Raw], status: int) -> None:
    """Charge what the upstream states beyond what was taken, or give back what is less; it may exceed the quota.

    What the policy does not count with this status stays as it is, and is given back as ever. Never raises for a store.
    """
    stated = _stated(raw)
    state = RateLimitState.of(scope)
    if stated is None or state is None:
        return
    for receipt in state.receipts.spent:
        if receipt.counts(success=status < 400) and stated != receipt.decision.cost:
            state.receipts.restate(receipt, await _settled(receipt, stated))


async def _settled(receipt: Receipt, stated: int) -> Receipt:
    decision, name = receipt.decision, receipt.policy.name
    owed = stated - decision.cost
    if owed > 0:
        charged = await receipt.limiter.charge(receipt.user, name, owed)
        if charged.reason == "unavailable":
            logger.warning("%d units of %r were not charged: the store cannot be asked", owed, name)
            return receipt
        decision = msgspec.structs.replace(charged, cost=stated, at=decision.at)
    else:
        try:
            await receipt.limiter.refund(receipt.user, name, -owed, at=decision.at)
        except StoreUnavailable as error:
            logger.warning("%d units of %r were not given back: %s", -owed, name, error)
            return receipt
        decision = msgspec.structs.replace(decision, cost=stated)
    return Receipt(receipt.limiter, receipt.policy, receipt.user, decision)


def _stated(raw: list[Raw]) -> int | None:
    """Where it is stated more than once, the last counts. What is no whole number is said so, and charged as taken."""
    values = [value for name, value in raw if name.lower() == COST]
    if not values:
        return None
    text = values[-1].strip()
    if text.isdigit() and len(text) <= _DIGITS and int(text) <= MAX_LIMIT:
        return int(text)
    logger.warning("the upstream states a cost of %r, which is not a whole number up to %d", text[:40], MAX_LIMIT)
    return None
