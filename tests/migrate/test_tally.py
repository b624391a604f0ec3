"""The counters that are brought over are those that the limiter would have made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit import Limiter, MemoryStore, Policy
from ratelimit.algorithms.fields import stale
from ratelimit.clock import DAY
from ratelimit.event import UsageEvent
from ratelimit.migrate.convert import derived_id
from ratelimit.migrate.rows import Expired
from ratelimit.migrate.scratch import Scratch
from ratelimit.migrate.tally import SCHEMA, Rules, SpanName, Sum, Tally
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
    uses = [_use(user, action, back, cost) for user, action, back, cost in sorted(found, key=lambda one: -one[2])]
    with TemporaryDirectory() as folder:
        counted = _tallied(uses, Path(folder), at_once=4)
    expected = await _charged(uses)
    for key, record in expected.items():
        mine = counted[key]
        for field, value in record.items():
            if field in mine or not (field.startswith("g") or field.startswith("d")):
                assert mine.get(field) == value, (key, field)
        # The day's counter is always there, for plans that limit by the day; a bucket long full again is left out.
        assert {field for field in set(mine) ^ set(record) if not field.startswith(("d", "g"))} == set()


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
    uses = [_use("alice", "hint", back, 1) for back in (3000, 2000, 1000, 0)]
    mark = {Key("alice", "hint"): NOW // 1000 - 2000}
    later = _tallied(uses, tmp_path, marks=mark, span="after")
    before = _tallied(uses, tmp_path, marks=mark, span="before")
    assert later[Key("alice", "hint")][f"d{NOW // DAY}"] == 2  # and not the one of this very moment
    assert before[Key("alice", "hint")][f"d{NOW // DAY}"] == 1


def test_what_is_too_old_for_an_event_still_counts_for_its_month(tmp_path: Path) -> None:
    old = Expired("0" * 32, "alice", "hint", (NOW - 120 * DAY) // 1000, 4)
    ancient = Expired("1" * 32, "alice", "hint", (NOW - 800 * DAY) // 1000, 4)
    assert _tallied([old, ancient], tmp_path) == {Key("alice", "hint"): {"u2509": 4}}


def _use(user: str, action: str, back: int, cost: int) -> UsageEvent:
    at = NOW // 1000 - back
    return UsageEvent.of(
        user, action, now=NOW, at=at, cost=cost, id=derived_id(at, f"{user}{action}{back}", user, action)
    )


def _tallied(
    uses: Sequence[UsageEvent | Expired],
    folder: Path,
    *,
    at_once: int = 100,
    keyed: bool = True,
    marks: dict[Key, int] | None = None,
    span: SpanName = "all",
) -> dict[Key, dict[str, int]]:
    with Scratch(folder, SCHEMA) as scratch:
        tally = Tally(scratch, Rules(POLICIES), began=NOW, keyed=keyed, span=span)
        if marks:
            tally.mark(marks.items())
        for start in range(0, len(uses), at_once):
            tally.add(uses[start : start + at_once])
        return {key: {field: each.on(None) for field, each in sums.items()} for key, sums, _ in tally.counters()}


async def _charged(uses: Sequence[UsageEvent]) -> dict[Key, dict[str, int]]:
    clock, store = FakeClock(), MemoryStore()
    limiter = Limiter(store, POLICIES, clock=clock)
    for use in uses:
        if use.at * 1000 < NOW:
            clock.advance((use.at * 1000 - clock.now()) / 1_000_000)
            await limiter.charge(use.user, use.action, use.cost)
    found: dict[Key, dict[str, int]] = {}
    for use in uses:
        key = Key(use.user, use.action)
        record = await store.read(key)
        gone = stale(record, NOW)
        if record:
            found[key] = {field: value for field, value in record.items() if field not in gone}
    return found
