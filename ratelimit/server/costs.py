"""What the upstream says a request has really cost: `X-RateLimit-Cost: 17`."""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from ratelimit.http.charges import Charge, Charges, give_back
from ratelimit.quota import MAX_LIMIT
from ratelimit.server.request import RawHeader

logger = logging.getLogger("ratelimit.proxy")

_DIGITS: Final = len(str(MAX_LIMIT))


def read_cost(stated: bytes) -> int | None:
    """Return the cost that is stated. What is no whole number is logged, and charged as taken."""
    text = stated.strip()
    if text.isascii() and text.isdigit() and len(text) <= _DIGITS and int(text) <= MAX_LIMIT:
        return int(text)
    logger.warning("the upstream states a cost of %r, which is not a whole number up to %d", text[:40], MAX_LIMIT)
    return None


def owing_of(charges: Charges, stated: int, status: int, headers: list[RawHeader]) -> list[Charge]:
    """Return the charges that took something else. What the policy does not count with this answer stays as it is, and
    is given back as ever."""
    return [one for one in charges.spent if stated != one.decision.cost and one.counts(status < 400, status, headers)]


async def settle_cost(owing: list[Charge], stated: int) -> None:
    """Charge what is stated beyond what was taken, or give back what is less. It may exceed the quota.

    Never raises for a store.
    """
    for charge in owing:
        if not await _charge_beyond(charge, stated):
            await give_back(charge, charge.decision.cost - stated)


async def settle_reserved(charges: Charges, stated: int) -> None:
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
    charged = await charge.limiter.charge(charge.user, name, owed)
    if charged.reason == "unavailable":
        logger.warning("%d units of %r were not charged: the store cannot be asked", owed, name)
    else:
        at_us = charge.decision.at_us
        charge.decision = msgspec.structs.replace(charged, cost=stated, spent=stated, refunded=0, at_us=at_us)
    return True
