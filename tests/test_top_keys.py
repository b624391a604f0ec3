"""The keys that come most often: bounds that hold for every stream, and memory that does not grow with it."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import repeat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.top_keys import KeyCounts, TopKeys, added

Key = tuple[str, str]
KEYS = st.integers(0, 30).map(lambda number: (f"user {number}", "hint"))
STREAMS = st.lists(st.one_of(KEYS, st.sampled_from([("alice", "hint"), ("bob", "run")])), max_size=150)


def counted(stream: list[Key], size: int) -> TopKeys:
    top = TopKeys(size)
    for key in stream:
        top.add(key)
    return top


def check_bounds(found: KeyCounts, true: Counter[Key]) -> None:
    bounds = {(one.user, one.action): (one.count - one.error, one.count) for one in found.keys}
    assert len(bounds) == len(found.keys)
    for key, count in true.items():
        least, most = bounds.get(key, (0, found.floor))
        assert least <= count <= most
    assert bounds.keys() <= true.keys()


@given(STREAMS, st.integers(1, 10))
def test_every_count_is_within_its_bounds_and_what_comes_often_is_there(stream: list[Key], size: int) -> None:
    found, true = counted(stream, size).read(), Counter(stream)
    check_bounds(found, true)
    assert len(found.keys) <= 2 * size
    assert max([found.floor, *(one.error for one in found.keys)]) <= len(stream) / size
    often = {key for key, count in true.items() if count > len(stream) / size}
    assert often <= {(one.user, one.action) for one in found.keys}


@given(st.lists(st.tuples(STREAMS, STREAMS, STREAMS), min_size=1, max_size=3), st.integers(1, 10))
def test_two_periods_of_several_processes_are_one_stream(streams: list[tuple[list[Key], ...]], size: int) -> None:
    tops, true = [], Counter[Key]()
    for forgotten, before, present in streams:
        tops.append(top := counted(forgotten, size))
        for period in (before, present):
            top.rotate()
            for key in period:
                top.add(key)
            true.update(period)
    found = added(top.read() for top in tops)
    check_bounds(KeyCounts([one for one in found.keys if (one.user, one.action) in true], found.floor), true)
    assert {(one.user, one.action) for one in found.keys if one.count > one.error} <= true.keys()


def test_the_surest_come_first() -> None:
    often = [*repeat(("alice", "hint"), 9), *repeat(("erin", "hint"), 3)]
    top = counted([*often, ("bob", "hint"), ("carol", "hint"), ("dave", "hint"), *repeat(("frank", "hint"), 2)], 2)
    first, second, third = top.read().top(5)
    assert (first.user, first.count, first.error) == ("alice", 9, 0)
    assert (second.user, second.count, second.error) == ("erin", 3, 0)
    assert (third.user, third.count, third.error) == ("frank", 3, 1), "it may have been there before, once"
    assert [one.user for one in top.read().top(1)] == ["alice"]
    for user in ("frank", "frank", "gina", "hank"):
        top.add((user, "hint"))
    assert [(one.user, one.count, one.error) for one in top.read().top(5)] == [("alice", 9, 0), ("frank", 5, 1)]


@pytest.mark.heavy
def test_a_million_keys_take_the_memory_of_as_many_as_are_counted() -> None:
    top = TopKeys(512)
    for number in range(1_000_000):
        top.add((str(number), "hint"))
        if number % 10 == 0:
            top.add(("alice", "hint"))
    assert 0 < len(top._counts) <= 2 * 512
    assert len(top._errors) <= 512
    assert sys.getsizeof(top._counts) + sys.getsizeof(top._errors) < 200_000
    first = top.read().top(1)[0]
    assert (first.user, first.count - first.error) == ("alice", 100_000)
