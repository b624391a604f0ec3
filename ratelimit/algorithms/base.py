"""What an algorithm is: four pure questions about one quota."""

from __future__ import annotations

from typing import Protocol, TypeAlias

from ratelimit.decision import QuotaState
from ratelimit.quota import Quota
from ratelimit.store.base import Add, Expect, Op, Record

Ops: TypeAlias = tuple[Op, ...]


class Rule(Protocol):
    """One quota under one algorithm. Values in, values out: `now` in microseconds, what is known of the record, and
    out come operations for a `Write` whose conditions make an outdated record harmless: it is refused, with the truth.

    An instance may remember what it computed for the current window, never anything about a user.
    """

    quota: Quota
    max_cost: int
    """The largest cost that can ever pass at once."""
    lasts: int
    """Microseconds that a unit may still count after the window in which it was spent."""

    def spend(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops | None:
        """Take `cost` if it fits, in one conditional step; None where, by this record, it does not fit.

        `contended`: the record keeps changing, so that only what many can do at once has a chance.
        """
        ...

    def charge(self, now: int, cost: int, record: Record, contended: bool = False) -> Ops:
        """Take `cost` whether or not it fits."""
        ...

    def refund(self, now: int, cost: int, record: Record | None, taken: Taken, position: int) -> Ops:
        """Give back `cost` of what was taken; of a record that is known (not None), no more than is left there.

        `position` is that of the state which the decision had of this quota; 0 where there was no decision.
        """
        ...

    def state(self, now: int, cost: int, record: Record) -> QuotaState:
        """Return how the quota stands by a record that is true, and when `cost` more would pass."""
        ...


class Taken:
    """What a refund gives back of: `held` units, taken at the moment `at` and not given back yet.

    `cached` is the record to plan by as long as the true one is not known. `reserved` says how much of each field is
    somebody's reservation, which a refund leaves there: that goes back with whoever holds it.
    """

    __slots__ = ("at", "cached", "held", "reserved")

    def __init__(self, at: int, held: int) -> None:
        self.at = at
        self.held = held
        self.cached: Record = {}
        self.reserved: Record = {}


def give_back(field: str, amount: int, record: Record | None, taken: Taken) -> Ops:
    """Take back `amount` from a counter, or what is left in it where the record is known; never what is reserved."""
    reserved = taken.reserved.get(field, 0)
    back = amount if record is None else min(amount, record.get(field, 0) - reserved)
    return (Expect(field, low=back + reserved), Add(field, -back)) if back > 0 else ()
