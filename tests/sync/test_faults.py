"""A limiter on a real connection to a server that misbehaves, blocking or in an event loop: always a decision."""

from __future__ import annotations

import asyncio
import gc
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import ratelimit
from ratelimit.clock import SystemClock
from ratelimit.dynamodb import DynamoDBStore, parse_url
from ratelimit.dynamodb.transport.connection import CLOSE_LOOK_S, elapsed
from ratelimit.errors import StoreUnavailable, TableNotFound
from ratelimit.policy import OnUnavailable, Policy
from ratelimit.sync import Limiter, open_store
from ratelimit.sync.store import store_from
from ratelimit.testing import FakeClock
from tests.faults import Behaviour, error, garbage, half, hang_up, held, internal_error, ok, slow, throttled
from tests.faults.apart import Apart
from tests.faults.oddities import checksum, chunked, gzipped, raw, then_close, twice

pytestmark = pytest.mark.heavy

ANSWERS: list[OnUnavailable] = ["allow", "deny", "local"]
BAD_DAYS = [
    pytest.param(slow(30), 1.0, id="30 s an answer"),
    pytest.param(internal_error(), 30.0, id="500"),
    pytest.param(throttled(), 30.0, id="throttled"),
    pytest.param(garbage(), 30.0, id="garbage"),
    pytest.param(half(), 30.0, id="half an answer"),
    pytest.param(hang_up(), 30.0, id="hang up"),
]


class InALoop:
    """The limiter of event loops, asked as the blocking one is."""

    def __init__(self, url: str, *args: Any, **options: Any) -> None:
        self.limiter = ratelimit.Limiter(DynamoDBStore(parse_url(url)), *args, **options)
        self.store, self.breaker = self.limiter.store, self.limiter.breaker
        self._runner = asyncio.Runner()

    def __enter__(self) -> InALoop:
        self._runner.run(self.limiter.open())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self.limiter.close())
        self._runner.close()

    def check(self, user: str, action: str) -> ratelimit.Decision:
        return self._runner.run(self.limiter.check(user, action))


def blocking(url: str, *args: Any, **options: Any) -> Limiter:
    return Limiter(store_from(url), *args, **options)


either_way = pytest.mark.parametrize("kind", [blocking, InALoop])


def on(url: str, on_unavailable: OnUnavailable, clock: FakeClock, kind: Any = blocking, **options: Any) -> Any:
    policy = Policy("hint", "2/day", on_unavailable=on_unavailable)
    return kind(url, [policy], clock=clock, **{"denial_cache": 0} | options)


def stats(limiter: Any) -> Any:
    return getattr(limiter.store, "inner", limiter.store).stats


def wait_until_ended(limiter: Limiter) -> None:
    """Return when the end of each idle connection has arrived, and have it idle for long enough to be looked at."""
    for connection in limiter.store.inner._pool._idle:  # type: ignore[attr-defined]
        assert select.select([connection._socket], [], [], 10)[0]
        connection.since -= CLOSE_LOOK_S


def expected(on_unavailable: OnUnavailable, checks: int) -> list[bool]:
    if on_unavailable == "local":
        return [number < 2 for number in range(checks)]
    return [on_unavailable == "allow"] * checks


@either_way
@pytest.mark.parametrize("on_unavailable", ANSWERS)
@pytest.mark.parametrize(("bad_day", "deadline"), BAD_DAYS)
def test_a_bad_day_is_a_decision(
    apart: Apart, url: str, clock: FakeClock, bad_day: Behaviour, deadline: float, on_unavailable: Any, kind: Any
) -> None:
    with on(url, on_unavailable, clock, kind, deadline=deadline) as limiter:
        apart.server.always(bad_day)
        decisions = [limiter.check("alice", "hint") for _ in range(4)]
        assert [decision.allowed for decision in decisions] == expected(on_unavailable, 4)
        assert all(decision.reason == "unavailable" for decision in decisions if decision.allowed)
        apart.server.recover()
        clock.advance(60)
        back = limiter.check("bob", "hint")
        assert (back.allowed, back.reason, limiter.breaker.state) == (True, None, "closed")


@pytest.mark.parametrize("verb", ["check", "peek"])
def test_the_deadline_is_kept_whoever_sends(apart: Apart, url: str, clock: FakeClock, verb: str) -> None:
    with on(url, "deny", clock, deadline=0.2) as limiter:
        getattr(limiter, verb)("alice", "hint")
        apart.server.always(slow(600))
        assert getattr(limiter, verb)("alice", "hint").reason == "unavailable"


def test_while_one_thread_waits_the_others_go_on(apart: Apart, url: str, clock: FakeClock) -> None:
    with on(url, "deny", clock, deadline=10) as limiter:
        released = threading.Event()
        apart.server.then(held(released))
        late = threading.Thread(target=limiter.check, args=("alice", "hint"))
        late.start()
        while not apart.server.received["UpdateItem"]:
            time.sleep(0.001)
        assert limiter.check("bob", "hint").reason is None
        assert late.is_alive()
        released.set()
        late.join()


@either_way
@pytest.mark.parametrize("on_unavailable", ANSWERS)
def test_a_dead_server_is_a_decision_and_soon_no_call_at_all(
    apart: Apart, url: str, clock: FakeClock, on_unavailable: OnUnavailable, kind: Any
) -> None:
    with on(url, on_unavailable, clock, kind) as limiter:
        limiter.check("warm", "hint")
        apart.do(apart.server.refuse())
        decisions = [limiter.check("alice", "hint").allowed for _ in range(30)]
        assert decisions == expected(on_unavailable, 30)
        assert limiter.breaker.state == "open"
        calls = stats(limiter).calls.copy()
        for _ in range(100):
            limiter.check("alice", "hint")
        assert stats(limiter).calls == calls
        apart.do(apart.server.listen())
        clock.advance(60)
        assert limiter.check("bob", "hint").reason is None
        assert limiter.breaker.state == "closed"


def test_a_server_that_was_never_there(apart: Apart, url: str, clock: FakeClock) -> None:
    apart.do(apart.server.refuse())
    with pytest.raises(StoreUnavailable, match="cannot reach"):
        open_store(url)
    limiter = on(url, "allow", clock, deadline=5)
    assert limiter.check("alice", "hint").reason == "unavailable"
    apart.do(apart.server.listen())
    assert limiter.check("alice", "hint").reason is None
    limiter.close()


def test_opening_goes_on_where_a_check_gives_up(apart: Apart, url: str, clock: FakeClock) -> None:
    """It is not begun anew by each: some seconds may be needed, and a check has not got them."""
    released = threading.Event()
    apart.server.everything(held(released))
    limiter = on(url, "deny", clock, deadline=1)
    assert limiter.check("alice", "hint").reason == "unavailable"
    apart.server.always(ok())
    released.set()
    limiter.open()
    assert apart.server.received["DescribeTable"] == 1
    clock.advance(60)
    assert limiter.check("alice", "hint").reason is None
    limiter.close()


def test_a_table_that_is_not_there(apart: Apart, url: str) -> None:
    apart.server.everything(error("ResourceNotFoundException"))
    with pytest.raises(TableNotFound, match="ratelimit table create"):
        open_store(url)


def test_a_write_whose_answer_was_lost_is_not_sent_again(apart: Apart, url: str, clock: FakeClock) -> None:
    with on(url, "allow", clock) as limiter:
        limiter.check("alice", "hint")
        apart.server.received.clear()
        for behaviour in (internal_error(), half(), hang_up()):
            apart.server.then(behaviour)
            limiter.check("alice", "hint")
        assert apart.server.received["UpdateItem"] == 3


def test_a_throttled_write_is_sent_again(apart: Apart, url: str) -> None:
    with on(url, "deny", SystemClock(), deadline=5) as limiter:  # type: ignore[arg-type]
        apart.server.then(throttled(), throttled())
        assert limiter.check("alice", "hint").reason is None
        assert stats(limiter).retries == 2


@pytest.mark.parametrize("odd", [chunked(), chunked(size=1), checksum(), twice(), then_close(announced=True)])
def test_odd_but_good(apart: Apart, url: str, clock: FakeClock, odd: Behaviour) -> None:
    apart.server.always(odd)
    with on(url, "deny", clock) as limiter:
        assert [limiter.check(user, "hint").reason for user in ("alice", "bob", "carol")] == [None] * 3
        assert not stats(limiter).fallbacks


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (gzipped(), "garbage"),
        (checksum(off_by=1), "garbage"),
        (raw(b"SSH-2.0-OpenSSH_9.9\r\n"), "garbage"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), "timeout"),
        (raw(b""), "timeout"),
        (hang_up(), "closed"),
    ],
)
def test_an_answer_that_cannot_be_used(
    apart: Apart, url: str, clock: FakeClock, behaviour: Behaviour, reason: str
) -> None:
    """Its connection is not used again, and nothing is sent twice."""
    with on(f"{url}&read_timeout={1 if reason == 'timeout' else 30}", "deny", clock) as limiter:
        apart.server.then(behaviour)
        assert limiter.check("alice", "hint").reason == "unavailable"
        assert stats(limiter).dropped == {reason: 1}
        assert limiter.check("alice", "hint").reason is None
        assert apart.server.received["UpdateItem"] == 2


def test_a_connection_that_died_while_idle_costs_nothing(apart: Apart, url: str, clock: FakeClock) -> None:
    with on(url, "deny", clock) as limiter:
        limiter.check("alice", "hint")
        apart.drop_connections()
        wait_until_ended(limiter)
        assert limiter.check("bob", "hint").reason is None
        assert stats(limiter).dropped == {"closed": 1}
        assert stats(limiter).retries == 0


def test_more_threads_than_connections(apart: Apart, url: str, clock: FakeClock) -> None:
    apart.server.always(slow(0.002))
    with on(f"{url}&pool=3", "deny", clock, deadline=20) as limiter:
        with ThreadPoolExecutor(12) as pool:
            decisions = list(pool.map(lambda number: limiter.check(f"user-{number}", "hint"), range(60)))
        assert {decision.reason for decision in decisions} == {None}
        assert stats(limiter).connections == 3


def test_waiting_for_a_connection_ends(apart: Apart, url: str, clock: FakeClock) -> None:
    released = threading.Event()
    apart.server.always(held(released))
    with on(f"{url}&pool=2&connect_timeout=0.5&attempts=1", "deny", clock, deadline=20) as limiter:
        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(limiter.check, f"user-{number}", "hint") for number in range(2)]
            while apart.server.received["UpdateItem"] < 2:
                time.sleep(0.001)
            assert limiter.check("alice", "hint").reason == "unavailable"
            assert stats(limiter).dropped == {"no_connection": 1}
            released.set()
            assert [check.result().reason for check in busy] == [None, None]


def test_a_connection_is_idle_from_its_answer_on(apart: Apart, url: str, clock: FakeClock) -> None:
    """Not from its request: it would be looked at before every use, where an answer takes longer than that allows."""
    with on(url, "deny", clock, deadline=20) as limiter:
        limiter.check("alice", "hint")
        apart.server.then(slow(0.1))
        began = elapsed()
        limiter.check("alice", "hint")
        (connection,) = limiter.store.inner._pool._idle
        assert connection.since - began >= 0.1


def test_giving_up_harms_nobody(apart: Apart, url: str, clock: FakeClock) -> None:
    """A late answer must not become the next caller's."""
    released = threading.Event()
    with on(url, "deny", clock, deadline=1) as limiter:
        limiter.check("warm", "hint")
        apart.server.always(held(released))
        for _ in range(2):
            assert limiter.check("alice", "hint").reason == "unavailable"
        assert stats(limiter).dropped == {"cancelled": 2}
        apart.server.recover()
        released.set()
        assert limiter.check("bob", "hint").used == 1


def test_closing_leaves_nothing_behind(apart: Apart, url: str, clock: FakeClock) -> None:
    """An unclosed socket would be an error here, once it is collected."""

    def use() -> None:
        with on(url, "deny", clock) as limiter, ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda number: limiter.check(f"user-{number}", "hint"), range(30)))

    use()
    gc.collect()
    latest = time.monotonic() + 60
    while apart.server.connections and time.monotonic() < latest:
        time.sleep(0.005)
    assert apart.server.connections == 0
