"""`X-RateLimit-Cost: 17`: what a request has really cost, as only the upstream knows it."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec
from starlette.types import Scope

from ratelimit.http.gate import Receipt
from ratelimit.http.refunds import give_back
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
    owing = [
        one for one in state.receipts.spent if stated != one.decision.cost and one.counts(status < 400, status, raw)
    ]
    if owing:
        settling = asyncio.ensure_future(_settle(owing, stated))
        try:
            await asyncio.shield(settling)
        finally:
            # The client may leave meanwhile: what the request has spent is known before its end is settled.
            await asyncio.wait({settling})


async def _settle(owing: list[Receipt], stated: int) -> None:
    for receipt in owing:
        owed = stated - receipt.decision.cost
        if owed > 0:
            await _charge(receipt, owed, stated)
        else:
            await give_back(receipt, -owed)


async def _charge(receipt: Receipt, owed: int, stated: int) -> None:
    name = receipt.policy.name
    charged = await receipt.limiter.charge(receipt.user, name, owed)
    if charged.reason == "unavailable":
        logger.warning("%d units of %r were not charged: the store cannot be asked", owed, name)
        return
    at_us = receipt.decision.at_us
    receipt.decision = msgspec.structs.replace(charged, cost=stated, spent=stated, refunded=0, at_us=at_us)


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
