"""Functions that are limited: refused, or kept waiting until they may pass and not a moment longer."""

from __future__ import annotations

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import ratelimit
from ratelimit import ConfigError, MemoryStore, Policy, QuotaExceeded, UnknownAction, sync
from ratelimit.functions import limited
from ratelimit.testing import FakeClock

MAIL = Policy("mail", "2/minute")


@pytest.fixture
def clock() -> FakeClock:
    """Whoever waits turns it."""
    return FakeClock(jumps=True)


class Both:
    """The same function, sync and async, called by the same name."""

    def __init__(self, *, is_async: bool, clock: FakeClock, **options: Any) -> None:
        self.is_async = is_async
        self.limiter: Any = (ratelimit.Limiter if is_async else sync.Limiter)(MemoryStore(), [MAIL], clock=clock)
        self.sent: list[str] = []
        options = {"user": lambda user, text="": user, "limiter": self.limiter} | options

        self._send: Any
        if is_async:

            @limited("mail", **options)
            async def send_later(user: str, text: str = "") -> str:
                self.sent.append(user)
                return text

            self._send = send_later
        else:

            @limited("mail", **options)
            def send(user: str, text: str = "") -> str:
                self.sent.append(user)
                return text

            self._send = send

    async def send(self, user: str, text: str = "") -> Any:
        if self.is_async:
            return await self._send(user, text=text)
        return await asyncio.to_thread(self._send, user, text=text)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


async def test_a_call_too_many_is_refused(is_async: bool, clock: FakeClock) -> None:
    mail = Both(is_async=is_async, clock=clock)
    assert [await mail.send("alice", "hello"), await mail.send("alice"), await mail.send("bob")] == ["hello", "", ""]
    with pytest.raises(QuotaExceeded) as caught:
        await mail.send("alice")
    assert (caught.value.decision.policy, mail.sent) == ("mail", ["alice", "alice", "bob"])
    clock.advance(60)
    await mail.send("alice")


async def test_with_block_it_waits_until_it_may_pass(is_async: bool, clock: FakeClock) -> None:
    mail = Both(is_async=is_async, clock=clock, block=True, timeout=120)
    began = clock.now()
    for _ in range(4):
        await mail.send("alice")
    assert (len(mail.sent), clock.now() - began) == (4, 60_000_000)


async def test_it_does_not_begin_to_wait_for_what_comes_too_late(is_async: bool, clock: FakeClock) -> None:
    mail = Both(is_async=is_async, clock=clock, block=True, timeout=59)
    began = clock.now()
    await mail.send("alice")
    await mail.send("alice")
    with pytest.raises(QuotaExceeded):
        await mail.send("alice")
    assert clock.now() == began


async def test_what_others_take_meanwhile_does_not_make_it_wait_for_longer(clock: FakeClock) -> None:
    mail = Both(is_async=False, clock=clock, block=True, timeout=100)

    def overtaken(seconds: float) -> None:
        FakeClock.advance(clock, seconds)
        mail.limiter.check("alice", "mail", cost=2)

    await mail.send("alice")
    await mail.send("alice")
    began = clock.now()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "advance", overtaken)
        with pytest.raises(QuotaExceeded):
            await mail.send("alice")
    assert clock.now() - began == 60_000_000


async def test_what_can_never_pass_is_refused_at_once(is_async: bool, clock: FakeClock) -> None:
    mail = Both(is_async=is_async, clock=clock, block=True, cost=lambda user, text: len(text))
    await mail.send("alice", "ab")
    began = clock.now()
    with pytest.raises(QuotaExceeded):
        await mail.send("bob", "abc")
    assert clock.now() == began


@pytest.mark.parametrize("quotas", ["1 concurrent", "1 concurrent; 100/day"])
async def test_a_slot_is_held_until_the_call_has_ended(is_async: bool, quotas: str) -> None:
    clock = FakeClock()
    export: Any
    again: Any
    if is_async:

        @limited("export", limiter=ratelimit.Limiter(MemoryStore(), clock=clock), user="alice", quotas=quotas)
        async def later(work: Any) -> Any:
            return await work()

        export, again = later, lambda: later(asyncio.Event().wait)
    else:

        @limited("export", limiter=sync.Limiter(MemoryStore(), clock=clock), user="alice", quotas=quotas)
        def now(work: Any) -> Any:
            return work()

        export, again = lambda work: asyncio.to_thread(now, work), lambda: now(list)
    for _ in range(2):  # left by an exception, it is back as well
        with pytest.raises(QuotaExceeded) as caught:
            await export(again)
        assert caught.value.decision.reason == "concurrency"


async def test_with_block_it_waits_for_a_slot() -> None:
    @limited("export", limiter=ratelimit.Limiter(MemoryStore()), user="alice", quotas="1 concurrent", block=True)
    async def export(begun: asyncio.Event, may_end: asyncio.Event) -> None:
        begun.set()
        await may_end.wait()

    calls = [(asyncio.Event(), asyncio.Event()) for _ in range(3)]
    tasks = [asyncio.create_task(export(*call)) for call in calls]
    for number, (begun, may_end) in enumerate(calls):
        await asyncio.wait_for(begun.wait(), 60)
        assert [one.is_set() for one, _ in calls] == [place <= number for place in range(3)]
        may_end.set()
    await asyncio.gather(*tasks)


def test_threads_wait_for_a_slot() -> None:
    running, most = 0, 0

    @limited("export", limiter=sync.Limiter(MemoryStore()), user="alice", quotas="1 concurrent", block=True)
    def export() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0)
        running -= 1

    with ThreadPoolExecutor(4) as pool:
        for call in [pool.submit(export) for _ in range(20)]:
            call.result(60)
    assert most == 1


async def test_one_user_for_all_and_quotas_of_its_own(is_async: bool, clock: FakeClock) -> None:
    mail = Both(is_async=is_async, clock=clock, user="everybody", quotas="1/minute")
    await mail.send("alice")
    with pytest.raises(QuotaExceeded):
        await mail.send("bob")


async def test_an_async_function_may_say_who_it_is(clock: FakeClock) -> None:
    async def user(user: str, text: str) -> str:
        return user

    mail = Both(is_async=True, clock=clock, user=user)
    await mail.send("alice")
    assert (await mail.limiter.peek("alice", "mail")).used == 1


def test_bad_options_are_told_at_once() -> None:
    ours, theirs = sync.Limiter(MemoryStore(), [MAIL]), ratelimit.Limiter(MemoryStore(), [MAIL])
    with pytest.raises(UnknownAction, match="'male'"):
        limited("male", limiter=ours, user="a")
    with pytest.raises(ConfigError, match="timeout"):
        limited("mail", limiter=ours, user="a", timeout=-1)
    with pytest.raises(ConfigError, match=r"is not async: it needs a Limiter of ratelimit\.sync"):
        limited("mail", limiter=theirs, user="a")(lambda: None)

    async def later() -> None: ...

    with pytest.raises(ConfigError, match="is async: it needs a Limiter of ratelimit,"):
        limited("mail", limiter=ours, user="a")(later)

    def rows() -> Iterator[int]:
        yield 1

    async def rows_later() -> AsyncIterator[int]:
        yield 1

    for generator in (rows, rows_later):
        with pytest.raises(ConfigError, match=r"rows.* is a generator"):
            limited("mail", limiter=ours, user="a")(generator)


def test_a_refusal_passes_between_processes() -> None:
    """As those of Celery's workers do."""
    limiter = sync.Limiter(MemoryStore(), [MAIL])
    send = limited("mail", limiter=limiter, user="a", cost=3)(lambda: None)
    with pytest.raises(QuotaExceeded) as caught:
        send()
    assert pickle.loads(pickle.dumps(caught.value)).decision == caught.value.decision
