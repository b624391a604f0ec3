"""What is kept of answers to keyed requests: bounded in time, in number and in bytes."""

from __future__ import annotations

import asyncio

import pytest

from ratelimit.http.api import app as api
from ratelimit.http.api.app import ApiAnswer, IdempotencyCache
from ratelimit.testing import FakeClock


class Service:
    """Answers with so many bytes, or with what a test wants; counts how often it had to."""

    def __init__(self, cache: IdempotencyCache) -> None:
        self.cache = cache
        self.acted = 0

    async def ask(self, key: str, *, size: int = 0, status: int = 200) -> ApiAnswer:
        async def act() -> ApiAnswer:
            self.acted += 1
            return ApiAnswer(status, b"x" * size)

        return await self.cache.answer(key, "/v1/check", b"{}", act)


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_BYTES", 1000)


async def test_the_oldest_give_way_when_there_are_too_many_bytes() -> None:
    service = Service(IdempotencyCache(FakeClock()))
    for number in range(50):
        await service.ask(str(number), size=100)
        assert len(service.cache) <= 10
    assert (service.acted, len(service.cache)) == (50, 10)
    await service.ask("40", size=100)
    await service.ask("49", size=100)
    assert service.acted == 50
    await service.ask("39", size=100)
    assert service.acted == 51


async def test_an_answer_that_is_too_large_on_its_own_is_not_kept() -> None:
    service = Service(IdempotencyCache(FakeClock()))
    assert len((await service.ask("one", size=1001)).body) == 1001
    assert len(service.cache) == 0
    await service.ask("two", size=1000)
    assert len(service.cache) == 1


async def test_room_comes_back_with_what_expires_and_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "KEPT_FOR", 10_000_000)
    clock = FakeClock()
    service = Service(IdempotencyCache(clock))
    for number in range(10):
        await service.ask(f"failed {number}", size=1000, status=503)
    for round_ in range(5):
        for number in range(10):
            await service.ask(f"{round_} {number}", size=100)
        clock.advance(10)
    assert (service.acted, len(service.cache)) == (60, 10)


async def test_one_that_gave_way_while_it_ran_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_ANSWERS", 1)
    cache, go = IdempotencyCache(FakeClock()), asyncio.Event()

    async def slow() -> ApiAnswer:
        await go.wait()
        return ApiAnswer(200, b"x" * 1000)

    running = asyncio.create_task(cache.answer("slow", "/v1/check", b"{}", slow))
    await asyncio.sleep(0)
    service = Service(cache)
    await service.ask("next", size=100)
    go.set()
    assert len((await running).body) == 1000
    await service.ask("next", size=100)
    assert (service.acted, len(cache)) == (1, 1)


async def test_a_fault_is_raised_and_not_kept() -> None:
    cache = IdempotencyCache(FakeClock())

    async def broken() -> ApiAnswer:
        raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await cache.answer("one", "/v1/check", b"{}", broken)
        assert len(cache) == 0
