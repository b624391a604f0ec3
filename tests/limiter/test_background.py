"""Alerts: once per window and threshold, whichever process passes it, and never in the way of a check."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from ratelimit import Alert, ConfigError, Limiter, MemoryStore, Policy
from ratelimit.testing import FakeClock

POLICY = Policy("hint", "10/day", alert_at=[0.8, 1.0])


async def test_each_threshold_alerts_once_in_a_window_over_all_processes() -> None:
    store, clock, heard = MemoryStore(), FakeClock(), list[Alert]()
    processes = [Limiter(store, [POLICY], clock=clock, on_alert=heard.append) for _ in range(3)]
    for _ in range(2):
        for number in range(15):
            await processes[number % 3].check("alice", "hint")
        clock.advance(86_400)
    await asyncio.gather(*(process.close() for process in processes))
    assert [(alert.user, alert.threshold, alert.used) for alert in heard] == [("alice", 0.8, 8), ("alice", 1.0, 10)] * 2


@pytest.mark.parametrize(("threshold", "limit", "units"), [(0.55, 100, 55), (0.07, 100, 7), (1 / 3, 10, 4)])
async def test_a_threshold_is_reached_with_the_unit_that_reaches_it(threshold: float, limit: int, units: int) -> None:
    heard = list[Alert]()
    policy = Policy("hint", [f"{limit}/day", f"{7 * limit}/week"], alert_at=[threshold])
    async with Limiter(MemoryStore(), [policy], clock=FakeClock(), on_alert=heard.append) as one:
        for _ in range(limit):
            await one.check("alice", "hint")
    assert [alert.used for alert in heard if alert.quota.limit == limit] == [units]


async def test_a_step_over_several_thresholds_alerts_for_each() -> None:
    heard = list[Alert]()
    one = Limiter(MemoryStore(), [POLICY], clock=FakeClock(), on_alert=heard.append)
    await one.check("alice", "hint", cost=10)
    await one.charge("bob", "hint", 25)
    await one.close()
    assert [(alert.user, alert.threshold) for alert in heard] == [
        ("alice", 0.8), ("alice", 1.0), ("bob", 0.8), ("bob", 1.0),
    ]  # fmt: skip


async def test_a_hook_that_fails_harms_no_check(caplog: pytest.LogCaptureFixture) -> None:
    async def hook(alert: Alert) -> None:
        raise ZeroDivisionError

    one = Limiter(MemoryStore(), [POLICY], clock=FakeClock(), on_alert=hook)
    with caplog.at_level(logging.ERROR, logger="ratelimit"):
        assert (await one.check("alice", "hint", cost=9)).allowed
        await one.close()
    assert "alert hook failed" in caplog.text


async def test_a_slow_hook_is_not_waited_for() -> None:
    done = asyncio.Event()

    async def hook(alert: Alert) -> None:
        await done.wait()

    one = Limiter(MemoryStore(), [POLICY], clock=FakeClock(), on_alert=hook)
    assert (await one.check("alice", "hint", cost=9)).allowed
    done.set()
    await one.close()


async def test_a_hook_that_never_ends_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ratelimit.limiter.background._DRAIN_TIMEOUT_S", 0.01)
    cancelled = asyncio.Event()

    async def hook(alert: Alert) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    one = Limiter(MemoryStore(), [POLICY], clock=FakeClock(), on_alert=hook)
    await one.check("alice", "hint", cost=9)
    await one.close()
    assert cancelled.is_set()


@pytest.mark.parametrize("alert_at", [0.8, "0.8", [0], [-1], ["much"], [True]])
def test_thresholds_are_parts_of_the_limit(alert_at: Any) -> None:
    with pytest.raises(ConfigError, match="alert_at"):
        Policy("hint", "10/day", alert_at=alert_at)
