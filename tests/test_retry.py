from __future__ import annotations

import random

import pytest

from ratelimit.errors import StoreMisconfigured, StoreThrottled, StoreUnavailable
from ratelimit.retry import Backoff, retry_store

BACKOFF = Backoff(0.1, 5.0)


class Flaky:
    """Fails with each of these errors, and then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_pauses_double_up_to_the_longest():
    assert [BACKOFF.bound_s(attempt) for attempt in (1, 2, 3, 6, 10, 10_000)] == [0.2, 0.4, 0.8, 5.0, 5.0, 5.0]


@pytest.mark.parametrize("drawn", [0.0, 0.25, 0.999])
async def test_a_pause_is_random_from_zero_up(drawn: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(random, "random", lambda: drawn)
    await BACKOFF.pause(2)
    assert pauses == [drawn * 0.4]


async def test_what_succeeds_is_not_tried_again(pauses: list[float]):
    call = Flaky()
    assert await BACKOFF.retry(call, attempts=3, on=OSError) == "done"
    assert (call.calls, pauses) == (1, [])


async def test_another_attempt_follows_each_failure_after_a_longer_pause(pauses: list[float]):
    call = Flaky(OSError(), OSError())
    assert await BACKOFF.retry(call, attempts=3, on=OSError) == "done"
    assert pauses == [0.2, 0.4]


async def test_the_last_error_is_raised_when_no_attempt_is_left(pauses: list[float]):
    call = Flaky(OSError("first"), OSError("second"), OSError("third"))
    with pytest.raises(OSError, match="second"):
        await BACKOFF.retry(call, attempts=2, on=OSError)
    assert (call.calls, pauses) == (2, [0.2])


async def test_other_errors_are_raised_at_once(pauses: list[float]):
    with pytest.raises(ValueError, match="a bug"):
        await BACKOFF.retry(Flaky(ValueError("a bug")), attempts=3, on=OSError)
    assert pauses == []


async def test_exceptions_to_the_rule_are_raised_at_once(pauses: list[float]):
    with pytest.raises(FileNotFoundError):
        await BACKOFF.retry(Flaky(FileNotFoundError()), attempts=3, on=OSError, but=FileNotFoundError)
    assert pauses == []


@pytest.mark.parametrize(("error", "calls"), [(StoreUnavailable, 10), (StoreThrottled, 10), (StoreMisconfigured, 1)])
async def test_only_a_store_that_may_come_back_is_asked_again(
    error: type[StoreUnavailable], calls: int, pauses: list[float]
):
    asked = 0

    async def call() -> None:
        nonlocal asked
        asked += 1
        raise error("away")

    with pytest.raises(error):
        await retry_store(call)
    assert (asked, len(pauses)) == (calls, calls - 1)
