"""The counters that are brought over are those that the limiter would have made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import Limiter, MemoryStore, Policy, UsageEvent
from ratelimit.algorithms.fields import stale
from ratelimit.clock import DAY
from ratelimit.migrate.checkpoint import Scratch
from ratelimit.migrate.convert import derived_id
from ratelimit.migrate.rows import Expired
from ratelimit.migrate.tally import SCHEMA, Rules, Sum, Tally
from ratelimit.names import Key
from ratelimit.testing import FakeClock

NOW = FakeClock().now()
POLICIES = (
    Policy("hint", "5/day; 20/month"),
    Policy("run", "3/10 minutes; 100/week", algorithm="sliding_window"),
    Policy("search", "60/hour", algorithm="gcra"),
)
USES = st.lists(
    st.tuples(
        st.sampled_from(["alice", "bob"]),
        st.sampled_from(["hint", "run", "search"]),
        st.integers(0, 40 * DAY // 1000) | st.integers(0, 3_600_000),
        st.integers(1, 3),
    ),
    max_size=30,
)


@given(USES)
async def test_as_the_limiter_counts(found: list[tuple[str, str, int, int]]) -> None:
    """In whatever order the uses come."""
    uses = [_use(user, action, back, cost) for user, action, back, cost in found]
    with TemporaryDirectory() as folder:
        counted = _tallied(uses, Path(folder), at_once=4)
    expected = await _charged(sorted(uses, key=lambda one: one.at_ms))
    for key, record in expected.items():
        mine = counted[key]
        for field, value in record.items():
            assert mine.get(field) == value, (key, field)
        # The day's counter is always there, for plans that limit by the day.
        assert {field for field in set(mine) - set(record) if not field.startswith("d")} == set()


def test_sums_of_buckets_may_be_put_together() -> None:
    one, two, three = Sum(100, 10), Sum(105, 10), Sum(200, 10)
    assert one.then(two).then(three) == one.then(two.then(three))
    assert one.then(two).on(None) == 120
    assert one.then(two).then(three).on(500) == 530


@pytest.mark.parametrize("keyed", [True, False])
def test_a_use_that_comes_twice_counts_once_where_it_may(keyed: bool, tmp_path: Path) -> None:
    use = _use("alice", "hint", 1000, 1)
    counted = _tallied([use, use], tmp_path, at_once=1, keyed=keyed)
    assert counted[Key("alice", "hint")][f"d{NOW // DAY}"] == (2 if keyed else 1)


def test_only_what_came_after_the_mark(tmp_path: Path) -> None:
    uses = [_use("alice", "hint", back, 1) for back in (3000, 2000, 1000, 0)] + [_use("bob", "hint", 1, 1)]
    with Scratch(tmp_path, SCHEMA) as scratch:
        tally = Tally(scratch, Rules(POLICIES), now=NOW, keyed=True)
        tally.add(uses)
        first = {one.key.user: one for one in tally.counters()}
        marks = {Key("alice", "hint"): NOW // 1000 - 2000}
        tally.again(marks.items())
        tally.add(uses)
        (later,) = tally.counters()
    today = f"d{NOW // DAY}"
    assert first["alice"].sums[today].amount == 3  # and not the one of this very moment
    assert (later.key, later.sums[today].amount) == (Key("alice", "hint"), 2)
    assert (first["alice"].since, later.since) == (None, NOW // 1000 - 2000)
    # Just after the newest use, not where the run began: what a source did not hold yet is still to come.
    assert first["alice"].until == later.until == NOW // 1000 - 999
    assert first["bob"].until == NOW // 1000


def test_what_is_too_old_for_an_event_still_counts_for_its_month(tmp_path: Path) -> None:
    old = Expired("0" * 32, "alice", "hint", (NOW - 120 * DAY) // 1000, 4)
    ancient = [
        Expired("1" * 32, "alice", action, (NOW - days * DAY) // 1000, 4)
        for action, days in (("hint", 800), ("search", 800), ("hint", 36_525), ("hint", 20_500))
    ]
    assert _tallied([old, *ancient], tmp_path) == {Key("alice", "hint"): {"u2509": 4}}


def _use(user: str, action: str, back: int, cost: int) -> UsageEvent:
    at = NOW // 1000 - back
    return UsageEvent.of(
        user, action, now=NOW, at_ms=at, cost=cost, id=derived_id(at, f"{user}{action}{back}", user, action)
    )


def _tallied(
    uses: Sequence[UsageEvent | Expired],
    folder: Path,
    *,
    at_once: int = 100,
    keyed: bool = True,
) -> dict[Key, dict[str, int]]:
    with Scratch(folder, SCHEMA) as scratch:
        tally = Tally(scratch, Rules(POLICIES), now=NOW, keyed=keyed)
        for start in range(0, len(uses), at_once):
            tally.add(uses[start : start + at_once])
        return {one.key: {field: each.on(None) for field, each in one.sums.items()} for one in tally.counters()}


async def _charged(uses: Sequence[UsageEvent]) -> dict[Key, dict[str, int]]:
    clock, store = FakeClock(), MemoryStore()
    limiter = Limiter(store, POLICIES, clock=clock)
    for use in uses:
        if use.at_ms * 1000 < NOW:
            clock.advance((use.at_ms * 1000 - clock.now()) / 1_000_000)
            await limiter.charge(use.user, use.action, use.cost)
    found: dict[Key, dict[str, int]] = {}
    for use in uses:
        key = Key(use.user, use.action)
        record = await store.read(key)
        gone = stale(record, NOW)
        if record:
            found[key] = {field: value for field, value in record.items() if field not in gone}
    return found
