"""Several checks of one request, of different keys, decided together: all of them spend, or none does.

On DynamoDB that is one transaction, all or nothing for everybody at every moment. It takes twice the units of single
writes, and answers without the records: what is told of an admission is what this process has seen of them, `LOOK_US`
ago at most, and what it has spent since. So records unseen for longer are read first, all of them at once, and what is
known to be refused by then is not written.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from ratelimit.algorithms import Taken
from ratelimit.blocking import running_loop
from ratelimit.clock import SECOND, Clock
from ratelimit.decision import Decision
from ratelimit.errors import StoreThrottled, StoreUnavailable
from ratelimit.limiter.batching import Coalescer
from ratelimit.limiter.compiled_policy import CachedRecord, CompiledPolicy
from ratelimit.limiter.counters import ATTEMPTS, CONTENDED, Counters, admit, decide, in_mode, inactive
from ratelimit.names import Key, UserId
from ratelimit.policy import AlgorithmName
from ratelimit.quota import QuotasLike
from ratelimit.store.base import MAX_WRITES_AT_ONCE, Add, Put, Record, Write, batches
from ratelimit.tasks import start_now

if TYPE_CHECKING:
    from ratelimit.limiter.checker import Checker, Fallback

LOOK_US: Final = SECOND


class Spend(NamedTuple):
    """One of several checks that are decided together; the arguments are those of `Limiter.check`."""

    user: UserId
    action: str
    cost: int = 1
    quotas: QuotasLike | None = None
    algorithm: AlgorithmName | None = None


class JointPart(NamedTuple):
    """One of them, made ready."""

    compiled: CompiledPolicy
    key: Key
    cost: int

    @property
    def is_enforced(self) -> bool:
        """Return whether its refusal is one of the whole group."""
        return self.compiled.policy.mode == "enforce"


Group: TypeAlias = Sequence[JointPart]
Answer: TypeAlias = list[Decision]
"""A decision for each part of a group."""


class Spending:
    """Spends on one store those groups that fit, in their order, each all or none: in one write, or as many as that
    takes. Of those that are decided the `answers` are known by their number, others are `left`. `run` may raise
    `StoreUnavailable`."""

    def __init__(self, counters: Counters, groups: Sequence[Group], now: int) -> None:
        self.answers: dict[int, Answer] = {}
        self.left = list(range(len(groups)))
        self._groups = groups
        self._now = now
        self._counters = counters
        self._cached = {part.key: counters.cached(part.key) for group in groups for part in group}
        self._seen: set[Key] = set()
        """Those read since this began: what does not fit them is refused."""

    async def run(self) -> None:
        attempt = 0
        while self.left:
            if attempt == ATTEMPTS:
                raise StoreThrottled(f"the records kept changing under {ATTEMPTS} attempts to write them together")
            attempt = 0 if await self._advance(contended=attempt >= CONTENDED) else attempt + 1

    async def _advance(self, *, contended: bool) -> bool:
        """Take one step. Return whether more is known or decided than before."""
        if unseen := [key for key in self._keys() if self._is_old(key)]:
            await self._read(unseen)
        plan = _Plan(self._cached)
        doubtful: list[Key] = []
        refused: list[int] = []
        unfit_parts: list[JointPart] = []
        for number in self.left:
            unfit = [part for part in self._groups[number] if not self._fits(part)]
            doubtful += [part.key for part in unfit if not self._is_known(part)]
            unfit_parts += unfit
            if any(part.is_enforced for part in unfit):
                refused.append(number)
            else:
                plan.add(number, [part for part in self._groups[number] if part not in unfit], self._now)
        if doubtful:
            await self._read(list(dict.fromkeys(doubtful)))
            return True
        swept = [await self._counters.swept(part.key, self._now, self._cached[part.key]) for part in unfit_parts]
        if any(swept):
            return True
        self._decide(refused, {})
        for part in unfit_parts:
            await self._counters.renew(part.compiled, part.key, self._now, self._cached[part.key])
        return await self._write(plan, contended) if plan.chosen else True

    async def _write(self, plan: _Plan, contended: bool) -> bool:
        writes: list[tuple[Key, Write]] = []
        for key, (compiled, total) in plan.totals.items():
            write = compiled.spend(self._now, total, self._cached[key], contended)
            if write is None:
                await self._read([key])
                return False
            writes.append((key, write))
        expected = [_expected(write, self._cached[key]) for key, write in writes]
        if writes:
            outcomes = await self._counters.store.apply_all(writes, now=self._now)
            refused = [(key, one.record) for (key, _), one in zip(writes, outcomes, strict=True) if not one.applied]
            self._learn(refused)
            if refused:
                return False
        for (key, write), after in zip(writes, expected, strict=True):
            cached = self._cached[key]
            _update(cached, write, after, self._now)
            compiled, total = plan.totals[key]
            self._counters.announce(compiled, key, self._now, total, cached.record)
        self._decide(list(plan.chosen), plan.chosen)
        return True

    def _decide(self, numbers: Iterable[int], chosen: Mapping[int, Group]) -> None:
        """Answer these groups; of those that were chosen, what was chosen is spent."""
        for number in numbers:
            spent = chosen.get(number, ())
            self.answers[number] = [
                admit(part.compiled, part.key, self._now, part.cost, self._cached[part.key].record)
                if part in spent
                else _decision(part, self._now, self._cached[part.key])
                for part in self._groups[number]
            ]
            self.left.remove(number)

    def _keys(self) -> set[Key]:
        return {part.key for number in self.left for part in self._groups[number]}

    def _is_old(self, key: Key) -> bool:
        """Return whether it is to be looked at before anything is planned: on the embedded store, whatever it is."""
        if key in self._seen:
            return False
        return self._counters.embedded is not None or not 0 <= self._now - self._cached[key].seen_at < LOOK_US

    def _is_known(self, part: JointPart) -> bool:
        compiled, key, cost = part
        if key in self._seen or (compiled.max_cost is not None and cost > compiled.max_cost):
            return True
        return self._counters.is_fresh(compiled, self._cached[key], self._now)

    def _fits(self, part: JointPart) -> bool:
        return part.compiled.fits(self._now, part.cost, self._cached[part.key].record)

    async def _read(self, keys: list[Key]) -> None:
        for some in batches(keys, MAX_WRITES_AT_ONCE):
            records = await self._counters.store.read_all(some)
            self._learn(list(zip(some, records, strict=True)))

    def _learn(self, records: Iterable[tuple[Key, Record]]) -> None:
        for key, record in records:
            self._cached[key].learn_refusal(record, self._now)
            self._seen.add(key)


class _Plan:
    """What one write is to spend, of each record together, and for which groups: `chosen`."""

    def __init__(self, cached: Mapping[Key, CachedRecord]) -> None:
        self.totals: dict[Key, tuple[CompiledPolicy, int]] = {}
        self.chosen: dict[int, Group] = {}
        self._cached = cached

    def add(self, number: int, parts: Group, now: int) -> None:
        """Choose the group, if all of these parts fit beside what is chosen already; else it waits."""
        sums: dict[Key, tuple[CompiledPolicy, int]] = {}
        for part in parts:
            compiled, total = self.totals.get(part.key, (part.compiled, 0))
            total += part.cost
            if compiled is not part.compiled or not compiled.fits(now, total, self._cached[part.key].record):
                if part.is_enforced:
                    return
                parts = [one for one in parts if one is not part]
                continue
            sums[part.key] = compiled, total
        if len(self.totals.keys() | sums.keys()) <= MAX_WRITES_AT_ONCE:
            self.totals |= sums
            self.chosen[number] = parts


def _look(counters: Counters, group: Group, now: int) -> Answer:
    """Return how each part stands by what is known of it, nothing being spent."""
    return [_decision(part, now, counters.cached(part.key)) for part in group]


def _decision(part: JointPart, now: int, cached: CachedRecord) -> Decision:
    return _meant(part, decide(part.compiled, part.key, now, part.cost, cached.record))


def _meant(part: JointPart, decision: Decision) -> Decision:
    return decision if decision.allowed else in_mode(part.compiled, inactive(part.compiled, decision))


def _expected(write: Write, cached: CachedRecord) -> dict[str, int]:
    """Return what the record will say of what the write touches: at least, for others may have added to it."""
    after: dict[str, int] = {}
    for op in write.ops:
        if type(op) is Put:
            after[op.field] = op.value
        elif type(op) is Add:
            after[op.field] = cached.record.get(op.field, 0) + op.amount
    return after


def _update(cached: CachedRecord, write: Write, after: Mapping[str, int], now: int) -> None:
    """Take over what an applied write has changed; what was learned meanwhile may be more."""
    puts = {op.field for op in write.ops if type(op) is Put}
    for field, value in after.items():
        cached.record[field] = value if field in puts else max(value, cached.record.get(field, value))
    cached.dropped(write, now)


class JointChecker:
    """A limiter's checks of several keys. Those of a process that share their last key leave together, as those of one
    key do: so whatever all have in common is best named last.
    """

    def __init__(self, checker: Checker, counters: Counters, fallback: Fallback, clock: Clock, deadline: float) -> None:
        self._checker = checker
        self._counters = counters
        self._fallback = fallback
        self._clock = clock
        self._coalescer: Coalescer[Group, Answer | None] = Coalescer(self._spend_many, clock, deadline)

    async def check(self, group: Group) -> Answer:
        """Decide; the arguments are known to be good ones, and the keys to differ.

        What has no limit is counted behind the answer, and takes no part in the write.
        """
        self._checker.check_open()
        limited = [part for part in group if part.compiled.max_cost is not None]
        if len(limited) > 1:
            decided = await self._check(limited)
        else:
            decided = [await self._alone(part) for part in limited]
        allowed = all(decided)
        of_limited = iter(decided)
        return [
            next(of_limited)
            if part.compiled.max_cost is not None
            else await self._alone(part)
            if allowed
            else _decision(part, self._clock.now(), CachedRecord())
            for part in group
        ]

    async def finish(self) -> None:
        await self._coalescer.finish()

    async def _alone(self, part: JointPart) -> Decision:
        answer = self._checker.check(part.key, part.cost, part.compiled)
        return answer if isinstance(answer, Decision) else await answer

    async def _check(self, group: Group) -> Answer:
        if any(part.compiled.lease is not None for part in group):
            return await self._check_leased(group)
        now = self._clock.now()
        if any(self._is_known_refusal(part, now) for part in group):
            answer: Answer | None = _look(self._counters, group, now)
            self._checker.stats.denials_cached += 1
        else:
            try:
                answer = await self._spend(group, now)
            except StoreUnavailable:
                answer = None
        if answer is None:
            answer = await self._answer_unasked(group, now)
        self._checker.observe(answer, now)
        return answer

    def _is_known_refusal(self, part: JointPart, now: int) -> bool:
        """Return whether the store would surely refuse this part, and with it the group."""
        cached = self._counters.cache.peek(part.key)
        if not part.is_enforced or cached is None:
            return False
        return self._counters.known_refusal(part.compiled, part.key, now, part.cost, cached) is not None

    async def _check_leased(self, group: Group) -> Answer:
        """Take what has a lease from what this process holds, and write the rest; where that is refused, hold it again.

        What is held was taken from the quota before, so that no transaction is needed.
        """
        leased = [part for part in group if part.compiled.lease is not None]
        rest = [part for part in group if part not in leased]
        answers: dict[Key, Decision] = {}
        try:
            for part in leased:
                answers[part.key] = await self._alone(part)
                if not answers[part.key]:
                    break
            else:
                decided = await self._check(rest) if len(rest) > 1 else [await self._alone(part) for part in rest]
                answers.update(zip([part.key for part in rest], decided, strict=True))
        finally:
            if len(answers) < len(group) or not all(answers.values()):
                self._restore(leased, answers)
        now = self._clock.now()
        return [answers[part.key] if part.key in answers else _look(self._counters, [part], now)[0] for part in group]

    def _restore(self, leased: Group, answers: dict[Key, Decision]) -> None:
        """Put back what was taken from where it was: the lease, or what this process counts without the store."""
        for compiled, key, _ in leased:
            decision = answers.get(key)
            if decision is None or not decision.spent:
                continue
            at, units = decision.at_us, decision.spent
            if decision.reason is None:
                self._checker.leases.restore(compiled, key, at, units)
            else:
                start_now(self._fallback.counters.refund(compiled, key, self._clock.now(), units, Taken(at, units)))
            answers[key] = msgspec.structs.replace(decision, spent=0)

    async def _spend(self, group: Group, now: int) -> Answer | None:
        loop = running_loop()
        if loop is None or self._checker.coalescer is None:
            return (await self._spend_now([group], now))[0]
        self._coalescer.forget(loop)
        batch_key = group[-1].key, group[-1].compiled
        if not self._coalescer.begin(batch_key):
            return await self._coalescer.enqueue(batch_key, group)
        try:
            return (await self._spend_now([group], now))[0]
        finally:
            self._coalescer.end(batch_key)

    async def _spend_many(
        self, compiled: CompiledPolicy, key: Key, now: int, groups: Sequence[Group]
    ) -> list[Answer | None]:
        self._checker.stats.coalesced += len(groups)
        return await self._spend_now(groups, now)

    async def _spend_now(self, groups: Sequence[Group], now: int) -> list[Answer | None]:
        """Return the answers; None for those that the store has not decided, where it has decided others."""
        spending = Spending(self._counters, groups, now)
        try:
            with self._checker.store_call():
                await spending.run()
        except StoreUnavailable:
            if not spending.answers:
                raise
        return [spending.answers.get(number) for number in range(len(groups))]

    async def _answer_unasked(self, group: Group, now: int) -> Answer:
        """Decide without the store, as each policy has it: nothing is spent in memory where one of them refuses."""
        local = [part for part in group if part.compiled.policy.on_unavailable == "local"]
        verb = self._fallback.counters.peek  # which nobody calls: none of the others is local
        answers = {
            part.key: _meant(part, await self._fallback.answer(verb, part.compiled, part.key, now, part.cost))
            for part in group
            if part not in local
        }
        spending = Spending(self._fallback.counters, [local], now)
        if all(answers.values()):
            await spending.run()
        decided = spending.answers.get(0) or _look(self._fallback.counters, local, now)
        for part, decision in zip(local, decided, strict=True):
            unasked = decision.allowed and not decision.shadow_denied
            answers[part.key] = msgspec.structs.replace(decision, reason="unavailable") if unasked else decision
        return [answers[part.key] for part in group]
