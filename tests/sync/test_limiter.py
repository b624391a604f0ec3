"""The verbs of the blocking limiter, from many threads, and what is not to be done with it."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

import ratelimit
from ratelimit import Alert, Identity, MemoryStore, Plan, Policy, User
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, InvalidUser, LimiterClosed, UnknownAction
from ratelimit.store.directory import IdentityTaken
from ratelimit.sync import Directory, InsideEventLoop, Limiter, Store, open_store
from ratelimit.testing import FakeClock
from tests.engines import Engine
from tests.faults import ok, slow
from tests.faults.apart import Apart
from tests.faults.behaviours import Exchange

HINT = Policy("hint", "5/day")


@pytest.fixture(params=["memory", "dynamodb"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    url = "memory://"
    if request.param == "dynamodb":
        engine: Engine = request.getfixturevalue("engine")
        url = f"dynamodb://sync-{uuid4().hex[:8]}?region=eu-west-1&endpoint={engine.endpoint}&create=true"
    with open_store(url) as store:
        yield store


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_threads(number: int, work: Callable[[], Any]) -> list[Any]:
    """What so many threads have found, all of which began at once."""
    ready = threading.Barrier(number)

    def run(_: int) -> Any:
        ready.wait(60)
        return work()

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(run, range(number)))


@pytest.mark.parametrize("name", ["Limiter", "Directory"])
def test_the_same_names_arguments_and_defaults(name: str) -> None:
    ours, theirs = getattr(ratelimit.sync, name), getattr(ratelimit, name)
    public = [verb for verb in vars(theirs) if not verb.startswith("_") and inspect.isfunction(getattr(theirs, verb))]
    assert public
    for verb in ("__init__", *public):
        wanted = dict(inspect.signature(getattr(theirs, verb)).parameters)
        found = dict(inspect.signature(getattr(ours, verb)).parameters)
        if "args" not in found:
            assert [(one.name, one.kind, one.default) for one in found.values()] == [
                (one.name, one.kind, one.default) for one in wanted.values()
            ], verb


def test_every_verb(store: Store, clock: FakeClock) -> None:
    with Limiter(store, [HINT], clock=clock) as limiter:
        taken = limiter.check("alice", "hint", cost=3)
        assert (taken.allowed, taken.remaining) == (True, 2)
        assert not limiter.check("alice", "hint", cost=3)
        assert limiter.peek("alice", "hint").remaining == 2
        limiter.refund(taken, cost=1)
        assert limiter.peek("alice", "hint").remaining == 3
        limiter.refund("alice", "hint", 1)
        assert limiter.charge("alice", "hint", 9).used == 10
        limiter.reset("alice", "hint")
        assert limiter.peek("alice", "hint").used == 0
        assert sum(limiter.totals("alice")["hint"].values()) == 10
        assert limiter.check("alice", "other", quotas="1/minute", algorithm="gcra").allowed
        assert limiter.check(7, "hint").used == 1


def test_errors_are_the_same(clock: FakeClock) -> None:
    limiter = Limiter(MemoryStore(), [HINT], clock=clock)
    with pytest.raises(UnknownAction):
        limiter.check("alice", "nothing")
    with pytest.raises(InvalidUser):
        limiter.check("", "hint")
    with pytest.raises(ConfigError, match="deadline"):
        Limiter(MemoryStore(), deadline=0)


@pytest.mark.parametrize("algorithm", ["fixed_window", "sliding_window", "gcra"])
@pytest.mark.usefixtures("restless")
def test_threads_admit_exactly_the_limit(store: Store, clock: FakeClock, algorithm: Any) -> None:
    limit, each = (500, 60) if isinstance(store.inner, MemoryStore) else (50, 10)
    policy = Policy("hint", f"{limit}/day", algorithm=algorithm, on_unavailable="deny")
    with Limiter(store, [policy], clock=clock) as limiter:
        found = in_threads(16, lambda: [limiter.check("alice", "hint") for _ in range(each)])
        decisions: list[Decision] = [decision for some in found for decision in some]
        assert sum(decision.allowed for decision in decisions) == limit
        assert {decision.reason for decision in decisions} == {None, "quota"}
        assert sum(limiter.totals("alice")["hint"].values()) == limit


def test_limiters_on_one_store_in_memory_count_together(clock: FakeClock) -> None:
    store = MemoryStore()
    one, other = (Limiter(store, [HINT], clock=clock) for _ in range(2))
    assert one.check("alice", "hint", cost=3).allowed
    assert other.check("alice", "hint").used == 4
    assert one.store.runner is other.store.runner


async def test_in_an_event_loop_it_names_what_to_use_there() -> None:
    limiter = Limiter(MemoryStore(), [HINT])
    with pytest.raises(InsideEventLoop, match="use `from ratelimit import Limiter`"):
        limiter.check("alice", "hint")
    with pytest.raises(InsideEventLoop, match="use `from ratelimit import open_store`"):
        open_store("memory://")
    assert (await asyncio.to_thread(limiter.check, "alice", "hint")).used == 1


def test_a_store_for_event_loops_is_refused() -> None:
    for store in (ratelimit.open_store("memory://"), "memory://", None):
        with pytest.raises(ConfigError, match=r"ratelimit\.sync\.open_store"):
            Limiter(store)  # type: ignore[arg-type]


def test_after_close_every_thread_hears_of_it(store: Store) -> None:
    limiter = Limiter(store, [HINT])
    assert limiter.check("alice", "hint").allowed
    limiter.close()
    limiter.close()

    def asked() -> str:
        with pytest.raises(LimiterClosed, match=r"`limiter\.open\(\)` makes it ready again") as caught:
            limiter.check("alice", "hint")
        return type(caught.value).__name__

    assert in_threads(3, asked) == ["LimiterClosed"] * 3
    with limiter:
        assert limiter.check("alice", "hint").used == 2
    with pytest.raises(LimiterClosed):
        limiter.peek("alice", "hint")


def test_close_waits_for_checks_under_way(apart: Apart, url: str) -> None:
    limiter = Limiter(open_store(url), [HINT])
    apart.server.always(slow(0.2))
    with ThreadPoolExecutor(4) as pool:
        checks = [pool.submit(limiter.check, f"user-{number}", "hint") for number in range(4)]
        while apart.server.received["UpdateItem"] < 4:
            pass
        limiter.close()
        assert all(check.done() for check in checks)
        assert [check.result().reason for check in checks] == [None] * 4


def test_where_there_is_no_limit_a_check_is_counted_before_it_returns(apart: Apart, url: str, clock: FakeClock) -> None:
    with Limiter(open_store(url), [Policy("free", "unlimited")], clock=clock) as limiter:
        assert limiter.check("alice", "free").allowed
        assert apart.server.received["UpdateItem"] == 1
        decision = limiter.check("alice", "free", cost=2)
        assert sum(limiter.totals("alice")["free"].values()) == 3
        limiter.refund(decision)
        assert sum(limiter.totals("alice")["free"].values()) == 1


def test_an_alert_is_raised_once_and_others_go_on_meanwhile(store: Store, clock: FakeClock) -> None:
    heard: list[tuple[float, int]] = []

    def hook(alert: Alert) -> None:
        heard.append((alert.threshold, in_threads(1, lambda: limiter.peek("alice", "hint").used)[0]))

    policy = Policy("hint", "10/day", alert_at=(0.5, 1.0))
    with Limiter(store, [policy], clock=clock, on_alert=hook) as limiter:
        for _ in range(12):
            limiter.check("alice", "hint")
    assert heard == [(0.5, 5), (1.0, 10)]


def test_an_alert_hook_that_is_async_or_fails_is_told_of(caplog: pytest.LogCaptureFixture, clock: FakeClock) -> None:
    async def hook(alert: Alert) -> None: ...

    def broken(alert: Alert) -> None:
        raise ValueError("no such pager")

    for one, told in ((hook, "nobody awaits it here"), (broken, "no such pager")):
        limiter = Limiter(MemoryStore(), [Policy("hint", "1/day", alert_at=(1.0,))], clock=clock, on_alert=one)
        assert limiter.check("alice", "hint").allowed
        assert told in caplog.text


def test_a_lease_is_granted_from_and_returned(apart: Apart, url: str, clock: FakeClock) -> None:
    with Limiter(open_store(url), [Policy("hint", "1000/day", lease=50)], clock=clock) as limiter:
        in_threads(4, lambda: [limiter.check("alice", "hint") for _ in range(10)])
        assert apart.server.received["UpdateItem"] < 10
        assert limiter.stats.leased > 30
    with limiter:
        assert limiter.peek("alice", "hint").used == 40


def test_idle_leases_go_back_with_a_later_check(url: str, clock: FakeClock) -> None:
    with Limiter(open_store(url), [Policy("hint", "1000/day", lease=50)], clock=clock) as limiter:
        limiter.check("alice", "hint")
        clock.advance(60)
        limiter.check("bob", "hint")
        with Limiter(open_store(url), [Policy("hint", "1000/day")], clock=clock) as other:
            assert other.peek("alice", "hint").used == 1


def test_users_and_plans(store: Store, clock: FakeClock) -> None:
    directory = Directory(store.directory, clock=clock)
    directory.put_plan(Plan("pro", {"hint": "7/day"}))
    directory.put_user(User("alice", plan="pro"))
    with Limiter(store, [HINT], clock=clock, directory=directory) as limiter:
        assert limiter.check("alice", "hint").limit == 7
        assert limiter.check("bob", "hint").limit == 5
        directory.change_user("alice", lambda user: User("alice", quotas={"hint": "9/day"}))
        assert limiter.check("alice", "hint").limit == 9
        reads = directory.stats.reads
        assert in_threads(8, lambda: limiter.check("alice", "hint").limit) == [9] * 8
        assert directory.stats.reads == reads
        assert [user.id for user in directory.users()] == ["alice"]
        assert [plan.name for plan in directory.plans()] == ["pro"]
        assert directory.remove_user("alice")
        assert directory.user("alice") is None


def test_a_directory_of_another_store_is_refused() -> None:
    directory = Directory(open_store("memory://").directory)
    with pytest.raises(ConfigError, match="on another store"):
        Limiter(open_store("memory://"), directory=directory)
    with pytest.raises(ConfigError, match=r"Directory of ratelimit\.sync"):
        Limiter(open_store("memory://"), directory=ratelimit.Directory(MemoryStore().directory))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"a store of ratelimit\.sync"):
        Directory(MemoryStore().directory)  # type: ignore[arg-type]


def test_reads_and_the_directory_take_the_fast_way(apart: Apart, url: str, clock: FakeClock) -> None:
    """And not botocore's client."""
    agents: list[str] = []

    async def noting(exchange: Exchange) -> bool:
        agents.append(exchange.headers["user-agent"])
        return await ok()(exchange)

    with Limiter(open_store(url), [HINT], clock=clock) as limiter:
        apart.server.always(noting)
        limiter.check("alice", "hint")
        assert limiter.peek("alice", "hint").used == 1
        limiter.totals("alice")
        assert Directory(limiter.store.directory).user("alice") is None
        assert apart.server.received["GetItem"] == 3
        assert set(agents) == {"ratelimit-dynamodb (fast lane)"}
        assert limiter.store.inner.stats.fallbacks == {}  # type: ignore[attr-defined]


def test_a_user_whose_address_is_taken_is_told_so(store: Store) -> None:
    """What a transaction is refused for comes through."""
    directory = Directory(store.directory)
    mail = Identity.email("alice@example.org")
    directory.put_user(User("alice", identities=(mail,)))
    with pytest.raises(IdentityTaken):
        directory.put_user(User("bob", identities=(mail,)))
    found = directory.find(mail)
    assert found is not None
    assert found.id == "alice"


@pytest.mark.process
def test_neither_aiobotocore_nor_a_web_framework_is_imported(url: str) -> None:
    """A function on Lambda starts the sooner for it."""
    code = (
        "import sys; from ratelimit import Policy; from ratelimit.sync import Limiter, open_store; "
        "limiter = Limiter(open_store(sys.argv[1]), [Policy('hint', '9/day')], deadline=30); "
        "limiter.check('alice', 'hint'); "
        "limiter.close(); print(sorted({'aiobotocore', 'aiohttp', 'starlette', 'typer', 'uvloop'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, timeout=240, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_bad_url_is_told_as_the_async_one_tells_it() -> None:
    for url in ("dynamodb://limits?regoin=x", "dynamo://limits", "memory://x", "limits"):
        told = []
        for opening in (open_store, ratelimit.open_store):
            with pytest.raises(ConfigError) as caught:
                opening(url)
            told.append(str(caught.value))
        assert told[0] == told[1]


def test_several_keys_are_decided_together(store: Store, restless: None) -> None:
    limiter = Limiter(store, [Policy("user", "3/day"), Policy("org", "7/day")], clock=FakeClock())
    numbers = iter(range(20))
    answers = in_threads(20, lambda: limiter.check_all([(f"user-{next(numbers) % 4}", "user"), ("acme", "org")]))
    assert sum(map(bool, answers)) == 7
    assert limiter.totals("acme", actions=["org"])["org"].popitem()[1] == 7
