"""Random histories of slots and reservations over several processes, some of which die, beside a model of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from hypothesis import strategies as st

from ratelimit import Decision, HoldExpired, Limiter, Policy, Reservation, Slot
from ratelimit.algorithms.concurrency import reserved_in
from ratelimit.algorithms.fields import held_fields
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.store import Record, Store
from ratelimit.testing import FakeClock

HOLD = 30
COMES_BACK_S = HOLD + HOLD // 4 + 1
"""By then all is back that a process has died with."""
PROCESSES = 3

actions = st.sampled_from(
    [
        "take",
        "take",
        "take",
        "settle",
        "settle",
        "fail",
        "die",
        "renew",
        "refund",
        "refund",
        "refund ended",
        "give back",
    ]
)
steps = st.lists(
    st.tuples(actions, st.integers(0, 7), st.integers(1, 4), st.sampled_from([0.0, 0.0, 0.3, 4.0, 9.0, 39.0, 3_000.0])),
    min_size=1,
    max_size=40,
)


@dataclass
class Holder:
    """Somebody who holds something."""

    limiter: Limiter
    slot: Slot
    units: int
    left: int
    """What may go back by its decision."""
    reserved: bool
    taken_at: int
    renewed_at: int
    dead: bool = False


@dataclass
class Holders:
    """One user's slots and reservations on one store. Every step leaves the record as the model has it."""

    store: Store
    quotas: str
    algorithm: AlgorithmName = "fixed_window"
    reserves: bool = True
    clock: FakeClock = field(default_factory=FakeClock)
    user: str = field(default_factory=lambda: uuid4().hex)
    holders: list[Holder] = field(default_factory=list)
    ended: list[Holder] = field(default_factory=list)
    used: int = 0
    """Units that were really used: those that stay spent in the end."""

    def __post_init__(self) -> None:
        self.policy = Policy("export", self.quotas, algorithm=self.algorithm, hold=HOLD)
        self.limiters = [Limiter(self.store, [self.policy], clock=self.clock, denial_cache=0) for _ in range(PROCESSES)]
        self.key = Key(self.user, "export")
        slots = [quota.limit for quota in self.policy.quotas if quota.is_concurrent]
        self.slots = slots[0] if slots else None

    async def step(self, action: str, number: int, cost: int, advance: float) -> Any:
        self.clock.advance(advance)
        if action == "take":
            answer: Any = await self.take(self.limiters[number % PROCESSES], cost)
        elif action == "give back":
            answer = await self.give_back(self.limiters[number % PROCESSES], cost)
        else:
            among = self.ended if action == "refund ended" else self.holders
            holder = among[number % len(among)] if among else None
            answer = None if holder is None or holder.dead else await self.act(action, holder, cost)
        self.assert_agrees(await self.store.read(self.key))
        return answer

    async def take(self, limiter: Limiter, cost: int) -> Decision:
        reserves = self.reserves
        limiter._holds._looks = asyncio.get_running_loop()  # a history renews by itself, not by the machine's clock
        slot: Slot = limiter.reserve(self.user, "export", cost) if reserves else limiter.slot(self.user, "export")
        cost = cost if reserves else 1
        decision = await slot.take()
        await limiter._checker.background.tasks.drain()
        now = self.clock.now()
        if decision.allowed:
            self.holders.append(Holder(limiter, slot, cost, cost, reserves, now, now))
            self.used += 0 if reserves else 1
        if self.slots is not None:
            assert len(self.counted(oldest=False)) <= self.slots, "never over"
            if decision.reason == "concurrency":
                assert len(self.counted(oldest=True)) >= self.slots, "refused for no reason"
        return decision

    async def give_back(self, limiter: Limiter, cost: int) -> int:
        """Give back without a decision: what is reserved is nothing to give back of."""
        before = self.spent(await self.store.read(self.key))
        await limiter.refund(self.user, "export", cost)
        back = before - self.spent(await self.store.read(self.key))
        assert 0 <= back <= cost
        self.used -= back
        return back

    @staticmethod
    def spent(record: Record) -> int:
        return sum(value for name, value in record.items() if name[0] == "u" and len(name) == 7)

    async def refund(self, holder: Holder, cost: int) -> int:
        """Give back by the decision: of what is held still, as of what is spent for good."""
        decision, before = holder.slot.decision, self.spent(await self.store.read(self.key))
        assert decision is not None
        await holder.limiter.refund(decision, cost=cost)
        back = before - self.spent(await self.store.read(self.key))
        assert 0 <= back <= min(cost, holder.left)
        holder.left -= min(cost, holder.left)
        self.used -= 0 if holder.reserved and holder in self.holders else back
        return back

    async def act(self, action: str, holder: Holder, cost: int) -> str:
        if action in ("refund", "refund ended"):
            return f"refunded: {await self.refund(holder, cost)}"
        if action == "die":
            holder.dead = True
            return "died"
        if action == "renew":
            held = await holder.slot.renew()
            holder.renewed_at = self.clock.now() if held else holder.renewed_at
            holder.dead = not held
            return f"renewed: {held}"
        self.holders.remove(holder)
        return await self._end(action, holder, min(cost, holder.units))

    async def _end(self, action: str, holder: Holder, used: int) -> str:
        slot = holder.slot
        try:
            if isinstance(slot, Reservation) and action == "settle":
                slot.settle(used)
            await slot.release()
        except HoldExpired:
            holder.dead = True
            self.holders.append(holder)
            return "expired"
        if isinstance(slot, Reservation):
            holder.left = min(used, holder.left) if action == "settle" else 0
            self.used += holder.left
        self.ended.append(holder)
        return "settled"

    def counted(self, *, oldest: bool) -> list[Holder]:
        """Those who hold a slot now for sure (`oldest` False), or may be counted at most (`oldest` True)."""
        allowed = COMES_BACK_S if oldest else HOLD
        return [one for one in self.holders if self.clock.now() <= one.renewed_at + allowed * 1_000_000]

    def assert_agrees(self, record: Record) -> None:
        for total in "cr":
            fields = [one.name for one in held_fields(record) if one.total == total]
            assert sum(record[name] for name in fields) == record.get(total, 0), record
            assert all(record[name] >= 0 for name in fields)
        for name, units in reserved_in(record).items():
            assert name[0] != "u" or record[name] >= units, "what is reserved is counted"
            assert len(fields) <= 2 * (HOLD // (HOLD // 4) + 3), "few fields, however many hold something"
        if self.slots is not None:
            assert 0 <= record.get("c", 0) <= self.slots

    async def end(self) -> Record:
        """All of them die, and somebody else asks in time: return the record that is left."""
        self.clock.advance(COMES_BACK_S)
        limiter = self.limiters[0]
        slot: Slot = limiter.reserve(self.user, "export", 1) if self.reserves else limiter.slot(self.user, "export")
        if await slot.take():
            await limiter._checker.background.tasks.drain()
            await slot.release()
            self.used += 0 if self.reserves else 1
        record = await self.store.read(self.key)
        for per in (6, 4):  # a day's, a month's
            totals = [value for name, value in record.items() if name[0] == "u" and len(name) == per + 1]
            assert sum(totals) == self.used, "each unit that was used is counted, and no other"
        return record
