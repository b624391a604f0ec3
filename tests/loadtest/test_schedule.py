"""The constant rate: when requests are meant to start, and what becomes of those that are late."""

from __future__ import annotations

from collections import Counter

import pytest

from loadtest.load.schedule import Draw, Schedule, Ticket, user_prefix
from loadtest.plan import GROUPS, SERIES, USERS_OF, Group, LoadPlan, Series

TWO = (Series("one", "x", None), Series("other", "x", None, weight=3))


def schedule(*, rate: float = 100.0, warm_up: float = 0.0, worker: int = 0, workers: int = 1) -> Schedule:
    return Schedule(TWO, rate=rate, warm_up=warm_up, duration=2.0, worker=worker, workers=workers, seed=7)


def all_of(given: Schedule, now: float = -10.0) -> list[Ticket]:
    found = []
    while (ticket := given.take(now)) is not None:
        found.append(ticket)
    return found


def test_the_starts_are_evenly_spaced() -> None:
    starts = [ticket.at for ticket in all_of(schedule())]
    assert len(starts) == 200
    assert starts == pytest.approx([n / 100 for n in range(200)])


def test_workers_share_the_rate() -> None:
    parts = [all_of(schedule(worker=worker, workers=3)) for worker in range(3)]
    starts = sorted(ticket.at for part in parts for ticket in part)
    assert starts == pytest.approx([n / 100 for n in range(200)])


def test_the_series_take_turns_by_their_weight() -> None:
    tickets = all_of(schedule())
    for block in range(0, 200, 4):
        assert Counter(ticket.series for ticket in tickets[block : block + 4]) == {0: 1, 1: 3}


def test_who_comes_late_takes_what_is_overdue() -> None:
    given = schedule()
    assert given.take(0.0) == Ticket(0.0, given_series(0))
    late = given.take(1.5)
    assert late is not None
    assert late.at == pytest.approx(0.01)  # and not 1.5: the waiting is the request's, and counted


def given_series(number: int) -> int:
    return all_of(schedule())[number].series


def test_what_was_never_sent_is_known() -> None:
    given = schedule()
    for _ in range(30):
        given.take(0.0)
    assert given.left == 170
    assert given.take(2.0) is None
    assert given.left == 170


def test_the_warm_up_leaves_no_debts() -> None:
    given = schedule(warm_up=1.0)
    first = given.take(-1.0)
    assert first is not None
    assert first.at == -1.0
    after = given.take(0.005)
    assert after is not None
    assert after.at == pytest.approx(0.0)
    for _ in range(199):
        given.take(0.005)
    assert given.left == 0


def test_the_same_seed_draws_the_same_users() -> None:
    plan = _plan("checks")
    names = [[Draw(plan, 0).user(n) for n in range(7)] for _ in range(2)]
    assert names[0] == names[1]
    assert all(name.startswith(user_prefix("r1")) for name in names[0])


def test_new_users_are_new_on_every_worker() -> None:
    cold = next(n for n, series in enumerate(SERIES["checks"]) if series.users == "fresh")
    draws = [Draw(_plan("checks"), worker) for worker in range(2)]
    users = [draw.user(cold) for draw in draws for _ in range(100)]
    assert len(set(users)) == 200


def test_a_few_of_many_users_ask_most() -> None:
    zipf = next(n for n, series in enumerate(SERIES["checks"]) if series.users == "zipf")
    draw = Draw(_plan("checks"), 0)
    often = Counter(draw.user(zipf) for _ in range(5_000)).most_common(10)
    assert len({user for user, _ in often}) == 10
    assert sum(count for _, count in often) > 5_000 * 10 / USERS_OF["zipf"] * 100


def test_readers_are_those_who_wrote() -> None:
    draw = Draw(_plan("usage"), 0)
    names = [series.name for series in SERIES["usage"]]
    reader, writer = names.index("events read back"), names.index("checked and logged")
    assert {draw.user(reader) for _ in range(2_000)} == {draw.user(writer) for _ in range(2_000)}


@pytest.mark.parametrize("group", GROUPS)
def test_what_is_compared_is_there(group: Group) -> None:
    names = [series.name for series in SERIES[group]]
    assert len(set(names)) == len(names)
    assert {series.over for series in SERIES[group]} - {None} <= set(names)
    assert {series.as_series for series in SERIES[group]} - {""} <= set(names)


def _plan(group: Group) -> LoadPlan:
    return LoadPlan(
        run="r1", group=group, rate=1, users=1, duration=1, warm_up=0, workers=1, seed=3, targets={},
    )  # fmt: skip
