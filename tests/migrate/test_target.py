"""So many units a second: to within a flight, over any length of time, and no flood after a pause."""

from __future__ import annotations

import pytest

from ratelimit.clock import SECOND
from ratelimit.errors import InvalidInput
from ratelimit.migrate.target import Pace
from ratelimit.testing import FakeClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """Turned by whoever waits."""
    clock = FakeClock()

    async def turn(seconds: float) -> None:
        clock.advance(seconds)

    monkeypatch.setattr("ratelimit.migrate.target.sleep", turn)
    return clock


@pytest.mark.parametrize("rate", [3, 500, 4000])
async def test_the_rate_is_kept(rate: int, clock: FakeClock) -> None:
    pace = Pace(rate, clock=clock)
    began = clock.now()
    for _ in range(400):
        await pace.take(25)
        clock.advance(0.001)  # the write itself
    took = (clock.now() - began) / SECOND
    assert 400 * 25 / took == pytest.approx(rate, rel=0.05)


async def test_a_pause_is_not_made_up_for(clock: FakeClock) -> None:
    pace = Pace(100, clock=clock)
    await pace.take(1)
    clock.advance(3600)
    began = clock.now()
    for _ in range(300):
        await pace.take(1)
    assert (clock.now() - began) / SECOND >= 2.4  # half a second's worth is made up for


async def test_without_a_rate_nobody_waits(clock: FakeClock) -> None:
    pace, began = Pace(None), clock.now()
    for _ in range(10):
        await pace.take(10_000)
    assert clock.now() == began


@pytest.mark.parametrize("rate", [0, -1, float("nan")])
def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(InvalidInput, match="--rate"):
        Pace(rate)
