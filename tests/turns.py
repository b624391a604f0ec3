"""Turns of the event loop: a test lets what can happen happen, and sleeps for nothing."""

from __future__ import annotations

import asyncio

from ratelimit.testing import FakeClock


async def settled(turns: int = 50) -> None:
    """Let all that waits for nothing run."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def turn(clock: FakeClock, seconds: float) -> None:
    """Let time go by, and what it brings happen."""
    clock.advance(seconds)
    await settled(200)
