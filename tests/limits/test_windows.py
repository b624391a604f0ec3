"""What the windows decide, beside the storage in memory that `limits` brings, in a time that is turned."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerSecond
from limits import strategies as theirs
from limits.storage import MemoryStorage, memory
from limits.strategies import STRATEGIES, MovingWindowRateLimiter, RateLimiter

from ratelimit.blocking import Runner
from ratelimit.clock import SECOND
from ratelimit.limits import MAX_MOMENTS, DynamoDBStorage, Windows
from ratelimit.names import Key
from ratelimit.store import MemoryStore, Record
from ratelimit.testing import FakeClock


class OnMemory(DynamoDBStorage):
    """Our windows, on the embedded store."""

    STORAGE_SCHEME = None  # type: ignore[assignment]

    def __init__(self, clock: FakeClock) -> None:
        self.wrap_exceptions = False
        self.store = MemoryStore()
        self._runner = Runner()
        self._windows = Windows(self.store, "limits", clock)

    def record(self, item: RateLimitItem) -> Record:
        found: Record = self._do(self.store.read(Key(item.key_for("alice"), "limits.moving")))
        return found


def turned_time(patch: pytest.MonkeyPatch) -> FakeClock:
    """Return the clock of both. Theirs would also forget by itself what has expired, after a while."""
    clock = FakeClock()
    time = SimpleNamespace(time=lambda: clock.now() / SECOND)
    timer = SimpleNamespace(start=lambda: None, is_alive=lambda: True)
    patch.setattr(theirs, "time", time)
    patch.setattr(memory, "time", time)
    patch.setattr(memory, "threading", SimpleNamespace(RLock=threading.RLock, Timer=lambda delay, call: timer))
    return clock


# Eighths of a second and windows of a power of two: a `float` holds these exactly, and limits reckons with those.
ITEMS = (
    RateLimitItemPerSecond(1),
    RateLimitItemPerSecond(3, 4),
    RateLimitItemPerSecond(7, 16),
    RateLimitItemPerSecond(12, 64),
)
histories = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 0, 1, 2, 8, 9, 31, 32, 33, 128, 512, 1030]),
        st.sampled_from(["hit", "hit", "hit", "hit", "test", "get_window_stats", "clear"]),
        st.sampled_from(ITEMS),
        st.sampled_from(["alice", "alice", "b\u00f6b\n"]),
        st.integers(1, 5),
    ),
    max_size=60,
)


def ask(limiter: RateLimiter, method: str, item: RateLimitItem, user: str, cost: int) -> object:
    if method in ("hit", "test"):
        return getattr(limiter, method)(item, user, cost=cost)
    answer = getattr(limiter, method)(item, user)
    if answer and answer.remaining == item.amount and isinstance(limiter, MovingWindowRateLimiter):
        return answer.remaining  # where nothing counts, theirs says when something last did
    return answer


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(history=histories)
def test_every_history_is_decided_as_limits_decides_it_in_memory(strategy: str, history: list) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = turned_time(patch)
        ours, reference = STRATEGIES[strategy](OnMemory(clock)), STRATEGIES[strategy](MemoryStorage())
        # Whether a hit just as old as a moving window counts, the storages of limits do not agree.
        apart = 0.001 if strategy == "moving-window" else 0
        for eighths, *question in history:
            clock.advance(eighths / 8 + apart)
            assert ask(ours, *question) == ask(reference, *question), question


def test_a_record_of_a_moving_window_is_bounded_and_never_too_generous() -> None:
    clock = FakeClock()
    storage = OnMemory(clock)
    limiter, item = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(1500, 10)
    admitted: list[int] = []
    for _ in range(3600):
        clock.advance(0.0037)
        if limiter.hit(item, "alice"):
            admitted.append(clock.now())
    record = storage.record(item)
    assert len(record) <= MAX_MOMENTS + 5
    for count, at in enumerate(admitted):
        assert count < 1500 or at - admitted[count - 1500] > 10 * SECOND, "more than 1500 within 10 seconds"
    assert len(admitted) >= 1500 + 800, "a unit comes back a thousandth of the window late at most"


def test_what_is_over_goes_from_the_record() -> None:
    clock = FakeClock()
    storage = OnMemory(clock)
    limiter, item = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(300, 10)
    for _ in range(300):
        clock.advance(0.001)
        assert limiter.hit(item, "alice")
    for _ in range(4):
        clock.advance(11)
        assert limiter.hit(item, "alice")
    record = storage.record(item)
    assert len(record) == len(("b", "n", "the moment of the last hit"))


def test_who_clears_between_reading_and_writing_gives_nobody_units_of_the_past() -> None:
    clock = FakeClock()
    storage = OnMemory(clock)
    limiter, item = MovingWindowRateLimiter(storage), RateLimitItemPerSecond(3, 10)
    assert limiter.hit(item, "alice", cost=3)
    clock.advance(11)
    cleared: list[bool] = []
    apply = storage.store.apply

    async def late(key, write, *, now):
        if not cleared:
            cleared.append(True)
            await storage.store.delete(key)
            assert [limiter_of_another.hit(item, "alice") for _ in range(4)] == [True, True, True, False]
        return await apply(key, write, now=now)

    other = OnMemory(clock)
    other.store = storage.store
    other._windows = Windows(storage.store, "limits", clock)
    limiter_of_another = MovingWindowRateLimiter(other)
    storage.store.apply = late  # type: ignore[method-assign]
    assert not limiter.hit(item, "alice")


def test_a_window_ends_to_the_microsecond() -> None:
    clock = FakeClock()
    storage, item = OnMemory(clock), RateLimitItemPerSecond(2, 10)
    fixed, moving = (STRATEGIES[name](storage) for name in ("fixed-window", "moving-window"))
    assert fixed.hit(item, "alice", cost=2)
    assert moving.hit(item, "alice", cost=2)
    clock.advance(9.999999)
    assert not fixed.hit(item, "alice")
    clock.advance(0.000001)
    assert fixed.hit(item, "alice"), "it ends ten seconds after it began"
    assert not moving.hit(item, "alice"), "a hit of ten seconds ago still counts"
    clock.advance(0.000001)
    assert moving.hit(item, "alice", cost=2)


@pytest.mark.parametrize("strategy", ["moving-window", "sliding-window-counter"])
def test_who_has_read_the_last_unit_that_another_takes_is_refused(strategy: str) -> None:
    clock = FakeClock()
    storage, item = OnMemory(clock), RateLimitItemPerSecond(3, 10)
    limiter, apply = STRATEGIES[strategy](storage), storage.store.apply
    assert limiter.hit(item, "alice", cost=2)

    async def second(key, write, *, now):
        storage.store.apply = apply  # type: ignore[method-assign]
        assert limiter.hit(item, "alice"), "who has read it later is first"
        return await apply(key, write, now=now)

    storage.store.apply = second  # type: ignore[method-assign]
    assert not limiter.hit(item, "alice")
    assert limiter.get_window_stats(item, "alice").remaining == 0


def test_a_process_whose_clock_is_behind_counts_in_the_window_that_others_have_begun() -> None:
    clock, behind = FakeClock(), FakeClock()
    behind.advance(-0.5)
    ahead, late = OnMemory(clock), OnMemory(behind)
    late.store = ahead.store
    late._windows = Windows(ahead.store, "limits", behind)
    assert [ahead.acquire_sliding_window_entry("k", 3, 1) for _ in range(2)] == [True, True]
    assert [late.acquire_sliding_window_entry("k", 3, 1) for _ in range(2)] == [True, False]
    clock.advance(1)
    behind.advance(1)
    assert ahead.acquire_sliding_window_entry("k", 4, 1)
    assert late.get_sliding_window("k", 1) == (3, 1.0, 1, 2.0), "to it, the new window has just begun"


@pytest.mark.parametrize("key", ["", "x" * 3000, "b\u00f6b\u0301", "\ud800", "a\nb", "#%/", "sha256:" + "0" * 64])
def test_any_text_is_a_key_and_no_two_are_one(key: str) -> None:
    storage = OnMemory(FakeClock())
    for other in (key, f"{key}x", key.upper() + "y"):
        assert [storage.incr(other, 60) for _ in range(2)] == [1, 2]
    storage.clear(key)
    assert (storage.get(key), storage.get(f"{key}x")) == (0, 2)


def test_a_cost_that_is_not_whole_takes_the_next_whole_one() -> None:
    storage = OnMemory(FakeClock())
    for kind in STRATEGIES.values():
        limiter, item = kind(storage), RateLimitItemPerDay(10)
        assert [limiter.hit(item, "alice", cost=4.5) for _ in range(3)] == [True, True, False]  # type: ignore[arg-type]
        limiter.clear(item, "alice")
