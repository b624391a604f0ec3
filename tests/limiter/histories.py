"""Random histories of checks, and the promises that hold at every step of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import strategies as st

from ratelimit import Decision, Limiter, Policy, Quota
from ratelimit.names import Key
from ratelimit.policy import AlgorithmName
from ratelimit.store import Store
from ratelimit.testing import FakeClock

ALGORITHMS: tuple[AlgorithmName, ...] = ("fixed_window", "sliding_window", "gcra")
QUOTAS = (
    *("3/second", "5/day", "7/minute", "6/month"),
    *("4/second; 9/minute", "2/second; 5/10 seconds; 11/hour", "3/week; 10/year"),
)
MICROSECOND = 1e-6

steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.33, 1.0, 7.5, 61.0, 3600.0, 40_000.0, 86_400.0, 700_000.0, -0.4]),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=40,
)

joint_steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.33, 1.0, 7.5, 61.0, 3600.0, 86_400.0, 700_000.0, -0.4]),
        st.sampled_from("ab"),
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=30,
)


@dataclass
class History:
    """One user's checks on one store, and what was admitted when."""

    store: Store
    policy: Policy
    clock: FakeClock = field(default_factory=FakeClock)
    user: str = "alice"
    admitted: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Two processes: the beliefs of each are its own, and so always a little stale.
        self.limiter, self.other = (
            Limiter(self.store, [self.policy], clock=self.clock, denial_cache=0) for _ in range(2)
        )

    async def step(self, advance: float, cost: int) -> Decision:
        self.clock.advance(advance)
        before = await self.store.read(self.key)
        limiter = self.limiter if len(self.admitted) % 3 else self.other
        decision = await limiter.check(self.user, self.policy.name, cost=cost)
        if decision.allowed:
            self.admitted.append((self.clock.now(), cost))
            assert decision.retry_after == 0
            assert decision.reason is None
            if self.policy.algorithm == "sliding_window":
                self.assert_sliding()
        else:
            assert await self.store.read(self.key) == before, "a refusal spends nothing"
            if all(at <= self.clock.now() for at, _ in self.admitted):  # else the clock went back behind them
                await self.assert_truthful(decision, cost)
        self.assert_within_limits()
        await drained(self.limiter, self.other)
        return decision

    @property
    def key(self) -> Key:
        return Key(self.user, self.policy.name)

    async def assert_truthful(self, decision: Decision, cost: int) -> None:
        """Denied just before `retry_after`, allowed at it."""
        if decision.retry_after is None:
            assert any(cost > (quota.burst or quota.limit) for quota in self.policy.quotas)
            return
        assert decision.retry_after > 0
        self.clock.advance(decision.retry_after - MICROSECOND)
        assert not (await self.limiter.peek(self.user, self.policy.name, cost=cost)).allowed
        self.clock.advance(MICROSECOND)
        assert (await self.limiter.peek(self.user, self.policy.name, cost=cost)).allowed
        self.clock.advance(-decision.retry_after)

    def assert_within_limits(self) -> None:
        for quota in self.policy.quotas:
            if self.policy.algorithm == "gcra":
                self._assert_bucket(quota)
            else:
                self._assert_windows(quota)

    def assert_sliding(self) -> None:
        """Right after an admission: the current window, and of the previous one the share that is still covered."""
        for quota in self.policy.quotas:
            now, span = self.clock.now(), quota.window.span(self.clock.now())
            current, previous = self._spent(quota, span.index), self._spent(quota, span.index - 1)
            length = span.end - span.start
            assert current * length + previous * (span.end - now) <= quota.limit * length

    def _assert_windows(self, quota: Quota) -> None:
        assert self._spent(quota, quota.window.span(self.clock.now()).index) <= quota.limit

    def _spent(self, quota: Quota, index: int) -> int:
        return sum(cost for at, cost in self.admitted if quota.window.span(at).index == index)

    def _assert_bucket(self, quota: Quota) -> None:
        """Between any two moments, at most a full bucket and what was refilled in between."""
        rate = quota.limit / quota.window.longest
        end = self.clock.now()
        for start, _ in self.admitted:
            spent = sum(cost for at, cost in self.admitted if start <= at <= end)
            assert spent <= (quota.burst or quota.limit) + rate * max(0, end - start) + 1e-9


async def drained(*limiters: object) -> None:
    """Return when what goes on behind answers is over: the clean-up of a record would change it under who reads it."""
    for one in limiters:
        if isinstance(one, Limiter):
            await one.drain()


@dataclass
class JointHistory:
    """Checks of a user and an organisation together, on one store, by two processes whose beliefs are their own."""

    store: Store
    user: Policy
    org: Policy
    clock: FakeClock = field(default_factory=FakeClock)
    prefix: str = ""
    asked: int = 0

    def __post_init__(self) -> None:
        self.users = {name: History(self.store, self.user, self.clock, self.prefix + name) for name in "ab"}
        self.orgs = History(self.store, self.org, self.clock, self.prefix + "acme")
        policies = [self.user, self.org]
        self.limiters = [Limiter(self.store, policies, clock=self.clock, denial_cache=0) for _ in range(2)]

    async def step(self, advance: float, name: str, cost: int) -> tuple[list[bool], Decision | None]:
        """Return who had room, and the refusal; all of what is promised having been looked at."""
        self.clock.advance(advance)
        members = [self.users[name], self.orgs]
        before = [await self.store.read(one.key) for one in members]
        self.asked += 1
        limiter = self.limiters[self.asked // 3 % 2]
        answer = await limiter.check_all([(one.user, one.policy.name, cost) for one in members])
        if answer:
            for one in members:
                one.admitted.append((self.clock.now(), cost))
        else:
            assert [await self.store.read(one.key) for one in members] == before, "a refusal spends from neither"
            for one, decision in zip(members, answer, strict=True):
                in_order = all(at <= self.clock.now() for at, _ in one.admitted)
                if not decision.allowed and in_order:
                    await one.assert_truthful(decision, cost)
        for one in members:
            one.assert_within_limits()
        await drained(*self.limiters)
        return [decision.allowed for decision in answer], answer.refused
