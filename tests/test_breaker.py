from __future__ import annotations

from ratelimit.breaker import BreakerState
from ratelimit.clock import SECOND


def test_it_doubles_its_cooldown_up_to_the_most() -> None:
    breaker, now = BreakerState(failures=1), 0
    assert breaker.failed(now)
    waits = []
    for _ in range(8):
        waits.append(breaker.wait(now) // SECOND)
        now += breaker.wait(now)
        assert not breaker.admits(now - 1)
        assert breaker.admits(now)
        breaker.failed(now)
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_it_is_not_held_open_by_a_clock_that_steps_back() -> None:
    breaker = BreakerState(failures=1)
    breaker.failed(100 * SECOND)
    assert breaker.admits(10 * SECOND)
