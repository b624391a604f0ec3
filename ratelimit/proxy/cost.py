"""`X-RateLimit-Cost: 17`: what a request has really cost, as only the upstream knows it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec
from starlette.types import Scope

from ratelimit.decision import Decision
from ratelimit.errors import StoreUnavailable
from ratelimit.http.gate import Receipt
from ratelimit.http.state import RateLimitState, Receipts
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
    owing = [one for one in state.receipts.spent if one.counts(success=status < 400) and stated != one.decision.cost]
    if owing:
        settling = asyncio.ensure_future(_settle(state.receipts, owing, stated))
        try:
            await asyncio.shield(settling)
        finally:
            # The client may leave meanwhile: what the request has spent is known before its end is settled.
            await asyncio.wait({settling})


async def _settle(receipts: Receipts, owing: list[Receipt], stated: int) -> None:
    for receipt in owing:
        if stated > receipt.decision.cost:
            await _charge(receipts, receipt, stated)
        else:
            await _give_back(receipts, receipt, stated)


async def _charge(receipts: Receipts, receipt: Receipt, stated: int) -> None:
    owed, name = stated - receipt.decision.cost, receipt.policy.name
    charged = await receipt.limiter.charge(receipt.user, name, owed)
    if charged.reason == "unavailable":
        logger.warning("%d units of %r were not charged: the store cannot be asked", owed, name)
        return
    receipts.restate(receipt, _restated(receipt, charged, stated))


async def _give_back(receipts: Receipts, receipt: Receipt, stated: int) -> None:
    """Restated first: whether a store that did not answer has given them back is not known, and never is it twice."""
    owed, name, taken = receipt.decision.cost - stated, receipt.policy.name, receipt.decision
    receipts.restate(receipt, _restated(receipt, receipt.decision, stated))
    try:
        await receipt.limiter.refund(taken, cost=owed)
    except StoreUnavailable as error:
        logger.warning("%d units of %r were not given back: %s", owed, name, error)


def _restated(receipt: Receipt, decision: Decision, stated: int) -> Receipt:
    decision = msgspec.structs.replace(decision, cost=stated, at_us=receipt.decision.at_us, spent=stated, refunded=0)
    return Receipt(receipt.limiter, receipt.policy, receipt.user, decision)


def _stated(raw: list[Raw]) -> int | None:
    """Where it is stated more than once, the last counts. What is no whole number is said so, and charged as taken."""
    values = [value for name, value in raw if name.lower() == COST]
    if not values:
        return None
    text = values[-1].strip()
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) <= MAX_LIMIT:
        return int(text)
    logger.warning("the upstream states a cost of %r, which is not a whole number up to %d", text[:40], MAX_LIMIT)
    return None
