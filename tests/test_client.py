"""Clients of others wait for their turn instead of being refused, in their order, and no longer than they may."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Callable
from email.utils import format_datetime
from time import asctime
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from ratelimit import ConfigError, LimiterClosed, MemoryStore, Policy, RateLimitMiddleware, configure, sync
from ratelimit.blocking import InsideEventLoop
from ratelimit.client import (
    MAX_ITEMS,
    MAX_WAIT_S,
    AsyncRateLimitTransport,
    RateLimitTransport,
    ServerLimits,
    ServerQuota,
    WaitTooLong,
    read_limits,
)
from ratelimit.clock import SECOND, Clock, instant, seconds
from ratelimit.decision import Decision, QuotaState
from ratelimit.http.headers import HeaderStyle, HeaderWriter
from ratelimit.policy import AlgorithmName
from ratelimit.quota import to_quotas
from ratelimit.testing import FakeClock, virtual_time
from ratelimit.testing.virtual_time import VirtualClock
from ratelimit.wsgi import RateLimitMiddleware as WsgiMiddleware
from tests.http.serving import served
from tests.profiles import examples
from tests.turns import settled, turn

URL = "http://origin.test/"
DRAFT = {"ratelimit-policy": '"a";q=2;w=60', "ratelimit": '"a";r={};t=60'}

Answer = Callable[[httpx.Request], httpx.Response]


class Origin:
    """An origin that answers as it is told, and when it may; what it was asked, in that order."""

    def __init__(self, *answers: httpx.Response) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request.url.path[1:])
        answer = self.answers.pop(0) if self.answers else httpx.Response(200)
        may_answer = self.may_answer
        await may_answer.wait()
        return answer

    def client(self, clock: Clock, **options: Any) -> httpx.AsyncClient:
        transport = AsyncRateLimitTransport(httpx.MockTransport(self), clock=clock, **options)
        return httpx.AsyncClient(transport=transport, base_url=URL)


def drafted(remaining: int, status: int = 200, **fields: str) -> httpx.Response:
    headers = {name: value.format(remaining) for name, value in DRAFT.items()}
    return httpx.Response(status, headers={**headers, **{name.replace("_", "-"): fields[name] for name in fields}})


def start(client: httpx.AsyncClient, *paths: str) -> dict[str, asyncio.Task[httpx.Response]]:
    return {path: asyncio.create_task(client.get(path)) for path in paths}


async def test_one_finds_out_and_the_rest_go_in_their_order_window_by_window() -> None:
    clock, origin = FakeClock(), Origin(drafted(1), drafted(0), drafted(1), drafted(0), drafted(1))
    origin.may_answer.clear()
    async with origin.client(clock, timeout=600) as client:
        tasks = start(client, *"abcde")
        await settled(200)
        assert origin.asked == ["a"], "nothing is known of it yet"
        origin.may_answer.set()
        await settled(200)
        assert origin.asked == ["a", "b"]
        await turn(clock, 59.9)
        assert origin.asked == ["a", "b"]
        await turn(clock, 0.1)
        assert origin.asked == ["a", "b", "c", "d"]
        await turn(clock, 60)
        assert {(await task).status_code for task in tasks.values()} == {200}
    assert origin.asked == ["a", "b", "c", "d", "e"]


async def test_where_nothing_is_limited_nobody_waits_but_for_the_first_answer() -> None:
    clock, origin = FakeClock(), Origin()
    async with origin.client(clock) as client:
        await client.get("first")
        origin.may_answer.clear()
        tasks = start(client, *"abcdefgh")
        await settled(200)
        assert sorted(origin.asked) == sorted(["first", *"abcdefgh"])
        origin.may_answer.set()
        await asyncio.gather(*tasks.values())


async def test_origins_do_not_wait_for_one_another_nor_do_keys() -> None:
    clock, origin = FakeClock(), Origin(drafted(0), drafted(0))
    async with origin.client(clock, timeout=10, key=lambda request: request.headers.get("account")) as client:
        await client.get("a", headers={"account": "one"})
        with pytest.raises(WaitTooLong):
            await client.get("b", headers={"account": "one"})
        await client.get("c", headers={"account": "two"})
        await client.get("http://other.test/d", headers={"account": "one"})
    assert origin.asked == ["a", "c", "d"]


async def test_keys_of_one_partition_have_one_quota() -> None:
    """The server says whose quota it is: two keys of one organisation share what it has."""
    clock = FakeClock()

    def of(remaining: int, partition: str) -> httpx.Response:
        fields = {
            "ratelimit-policy": f'"a";q=9;w=60;pk=:{partition}:',
            "ratelimit": f'"a";r={remaining};t=60;pk=:{partition}:',
        }
        return httpx.Response(200, headers=fields)

    origin = Origin(of(2, "b3Jn"), of(1, "b3Jn"), of(5, "b3Ro"), of(0, "b3Jn"))
    async with origin.client(clock, timeout=10, key=lambda request: request.headers["account"]) as client:
        for account in ("one", "two", "other", "one"):
            await client.get(account, headers={"account": account})
        for account in ("one", "two"):
            with pytest.raises(WaitTooLong):
                await client.get("more", headers={"account": account})
        await client.get("fine", headers={"account": "other"})


async def test_a_wait_that_is_too_long_is_refused_at_once_and_says_how_long() -> None:
    clock, origin = FakeClock(), Origin(drafted(0))
    async with origin.client(clock, timeout=59) as client:
        await client.get("a")
        with pytest.raises(WaitTooLong, match="it would have to wait for at least 60 seconds") as caught:
            await client.get("b")
        assert (caught.value.retry_after, origin.asked) == (60, ["a"])
        assert isinstance(caught.value, TimeoutError)
        await turn(clock, 1)
        tasks = start(client, "c")
        await turn(clock, 59)
        assert (await tasks["c"]).status_code == 200


def test_who_waits_for_an_answer_waits_no_longer_than_it_may() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        origin = Origin()
        origin.may_answer.clear()
        async with origin.client(VirtualClock(loop), timeout=5) as client:
            tasks = start(client, *"ab")
            with pytest.raises(WaitTooLong) as caught:
                await tasks["b"]
            assert (caught.value.retry_after, origin.asked) == (None, ["a"])
            took = loop.time()
            origin.may_answer.set()
            await tasks["a"]
            return took

    assert virtual_time.run(main()) == pytest.approx(5, abs=0.1)


async def test_answers_out_of_order_admit_no_more_than_is_left() -> None:
    clock = FakeClock()
    late = [asyncio.Event() for _ in range(3)]
    order = iter(range(3))

    async def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/first":
            return drafted(4, ratelimit_policy='"a";q=5;w=60')
        if request.url.path != "/more":
            number = next(order)
            await late[number].wait()
            return drafted(3 - number)
        sent.append(request)
        await asyncio.Event().wait()
        raise AssertionError

    sent: list[httpx.Request] = []
    client = httpx.AsyncClient(
        transport=AsyncRateLimitTransport(httpx.MockTransport(answer), clock=clock), base_url=URL
    )
    await client.get("first")
    tasks = start(client, *"abc")
    await settled(200)
    late[2].set()  # one left, says the last; and then the first says three
    await settled(200)
    late[0].set()
    await settled(200)
    waiting = [asyncio.create_task(client.get("more")) for _ in range(3)]
    await settled(200)
    assert len(sent) == 1, "four had been sent of five"
    for task in (*waiting, *tasks.values()):
        task.cancel()
    await asyncio.gather(*waiting, *tasks.values(), return_exceptions=True)


async def test_an_answer_that_comes_late_brings_no_reset_forward() -> None:
    """A bucket is whole again the later, the more was taken of it."""
    clock, may_answer = FakeClock(), {"a": asyncio.Event(), "b": asyncio.Event()}

    async def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path[1:]
        if path in may_answer:
            await may_answer[path].wait()
        asked.append(path)
        remaining, reset = {"first": (2, 20), "a": (1, 40), "b": (0, 60)}.get(path, (0, 60))
        return httpx.Response(200, headers={"ratelimit": f'"a";r={remaining};t={reset}'})

    asked: list[str] = []
    transport = AsyncRateLimitTransport(httpx.MockTransport(answer), clock=clock)
    async with httpx.AsyncClient(transport=transport, base_url=URL) as client:
        await client.get("first")
        tasks = start(client, *"abc")
        for path in "ba":
            may_answer[path].set()
            await settled(200)
        await turn(clock, 59)
        assert asked == ["first", "b", "a"]
        await turn(clock, 1)
        await asyncio.gather(*tasks.values())


async def test_the_tightest_of_several_quotas_takes_the_place_of_the_one_before() -> None:
    clock = FakeClock()
    policies = {"ratelimit-policy": '"hour";q=2;w=3600, "day";q=3;w=86400'}

    def of(name: str, remaining: int, reset: int) -> httpx.Response:
        return httpx.Response(200, headers={**policies, "ratelimit": f'"{name}";r={remaining};t={reset}'})

    origin = Origin(of("hour", 1, 3600), of("hour", 0, 3600), of("day", 3, 86400))
    async with origin.client(clock, timeout=90000) as client:
        tasks = start(client, *"abc")
        await settled(200)
        await turn(clock, 3600)
        assert origin.asked == ["a", "b", "c"]
        origin.may_answer.clear()
        tasks |= start(client, *"defg")
        await settled(200)
        assert origin.asked == [*"abcdef"], "all that the day has left, at once"
        origin.may_answer.set()
        await turn(clock, 86400)
        await asyncio.gather(*tasks.values())


async def test_who_comes_when_there_is_room_again_does_not_overtake() -> None:
    clock, origin = FakeClock(), Origin(drafted(0), drafted(1), drafted(0))
    async with origin.client(clock) as client:
        await client.get("a")
        tasks = start(client, "b", "c")
        await settled(200)
        clock.advance(60)
        tasks |= start(client, "late")
        await settled(200)
        assert origin.asked == ["a", "b", "c"]
        await turn(clock, 60)
        await asyncio.gather(*tasks.values())


async def test_a_refusal_is_sent_again_when_it_says_and_holds_up_the_others() -> None:
    clock = FakeClock()
    origin = Origin(httpx.Response(200), httpx.Response(429, headers={"retry-after": "30"}))
    async with origin.client(clock) as client:
        await client.get("first")
        tasks = start(client, "a")
        await settled(200)
        tasks |= start(client, "b", "c")
        await turn(clock, 29)
        assert origin.asked == ["first", "a"]
        await turn(clock, 1)
        assert [(await task).status_code for task in tasks.values()] == [200, 200, 200]
    assert origin.asked == ["first", "a", "a", "b", "c"]


def test_a_refusal_that_says_nothing_is_waited_out_longer_each_time() -> None:
    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        asked: list[float] = []

        def answer(request: httpx.Request) -> httpx.Response:
            asked.append(loop.time())
            return httpx.Response(429)

        transport = AsyncRateLimitTransport(httpx.MockTransport(answer), clock=VirtualClock(loop), retries=3)
        async with httpx.AsyncClient(transport=transport) as client:
            assert (await client.get(URL)).status_code == 429, "at last the caller gets it"
        return [later - earlier for earlier, later in itertools.pairwise(asked)]

    pauses = virtual_time.run(main())
    assert len(pauses) == 3
    assert all(most / 2 <= pause <= most + 0.1 for pause, most in zip(pauses, (1, 2, 4), strict=True))


async def test_a_refusal_for_longer_than_it_may_wait_is_the_callers() -> None:
    origin = Origin(httpx.Response(429, headers={"retry-after": "600"}, text="slow down"))
    async with origin.client(FakeClock()) as client:
        assert (await client.post("a", content=b"text")).text == "slow down"
        with pytest.raises(WaitTooLong) as caught:
            await client.get("b")
    assert (caught.value.retry_after, origin.asked) == (600, ["a"])


@pytest.mark.parametrize(
    "told",
    [
        httpx.Response(429, headers={"retry-after": "999999999999999"}),
        httpx.Response(429, headers={"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}),
        httpx.Response(200, headers={"ratelimit": '"a";r=0;t=999999999999999'}),
        httpx.Response(200, headers={"x-ratelimit-remaining": "0", "x-ratelimit-reset": "999999999999999"}),
    ],
    ids=["seconds", "date", "draft", "milliseconds"],
)
async def test_nothing_that_a_server_says_keeps_it_shut_for_ever(told: httpx.Response) -> None:
    clock, origin = FakeClock(), Origin(told)
    async with origin.client(clock) as client:
        await client.get("a")
        with pytest.raises(WaitTooLong) as caught:
            await client.get("b")
        assert caught.value.retry_after == MAX_WAIT_S
        clock.advance(MAX_WAIT_S)
        await client.get("c")
    assert origin.asked == ["a", "c"]


async def test_a_body_that_can_be_read_once_is_sent_once() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"text"

    origin = Origin(*(httpx.Response(429, headers={"retry-after": "0"}) for _ in range(2)))
    async with origin.client(FakeClock(jumps=True), retries=1) as client:
        assert (await client.post("a", content=body())).status_code == 429
        assert (await client.post("b", content=b"text")).status_code == 200
    assert origin.asked == ["a", "b", "b"]


async def test_503_is_the_callers_and_the_others_keep_away_until_it_says() -> None:
    clock, origin = FakeClock(), Origin(httpx.Response(503, headers={"retry-after": "30"}))
    async with origin.client(clock) as client:
        assert (await client.get("a")).status_code == 503
        tasks = start(client, "b")
        await turn(clock, 29.9)
        assert origin.asked == ["a"]
        await turn(clock, 0.1)
        assert (await tasks["b"]).status_code == 200


async def test_who_fails_or_is_cancelled_lets_the_next_one_find_out() -> None:
    clock, origin = FakeClock(), Origin()
    origin.may_answer.clear()
    async with origin.client(clock) as client:
        tasks = start(client, *"abcd")
        await settled(200)
        tasks["b"].cancel()
        tasks["a"].cancel()
        await settled(200)
        assert origin.asked == ["a", "c"]
        origin.may_answer.set()
        assert (await tasks["d"]).status_code == 200


async def test_routes_without_limits_take_nothing_of_those_with() -> None:
    clock = FakeClock()
    origin = Origin(drafted(1), *(httpx.Response(200) for _ in range(10)), drafted(0))
    async with origin.client(clock, timeout=1) as client:
        for number in range(12):
            await client.get(f"{number}")
        with pytest.raises(WaitTooLong):
            await client.get("more")


async def test_what_was_not_spent_is_had_at_once() -> None:
    clock, origin = FakeClock(), Origin(drafted(1), httpx.Response(200))
    async with origin.client(clock) as client:
        await client.get("a")
        origin.may_answer.clear()
        tasks = start(client, "free", "b")
        await settled(200)
        assert origin.asked == ["a", "free"]
        origin.may_answer.set()
        await asyncio.wait_for(tasks["b"], 30)


async def test_closing_ends_all_waits() -> None:
    clock, origin = FakeClock(), Origin(drafted(0))
    client = origin.client(clock)
    await client.get("a")
    tasks = start(client, "b")
    await settled(200)
    await client.aclose()
    with pytest.raises(LimiterClosed, match="the transport is closed"):
        await tasks["b"]


@pytest.mark.parametrize(
    ("options", "path"), [({"timeout": -1}, "timeout"), ({"retries": -1}, "retries"), ({"retries": 1.5}, "retries")]
)
def test_bad_options(options: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        RateLimitTransport(httpx.HTTPTransport(), **options)


async def test_the_blocking_one_does_not_hold_up_an_event_loop() -> None:
    transport = RateLimitTransport(httpx.MockTransport(lambda request: httpx.Response(200)))
    with pytest.raises(InsideEventLoop, match=r"from ratelimit\.client import AsyncRateLimitTransport"):
        transport.handle_request(httpx.Request("GET", URL))


# Against servers of our own: once an answer has told the limit, nobody is refused, and no window is left unused.


def app_of(clock: Clock, policy: Policy, headers: HeaderStyle) -> Any:
    async def view(request: Request) -> PlainTextResponse:
        return PlainTextResponse("here you are")

    options = configure(policies=[policy], clock=clock, headers=headers, user_from="header:x-api-key")
    return Starlette(routes=[Route("/", view)], middleware=[Middleware(RateLimitMiddleware, **options)])


@settings(max_examples=examples(40))
@given(
    limit=st.integers(1, 7),
    window=st.sampled_from([10, 60, 3600]),
    algorithm=st.sampled_from(["fixed_window", "sliding_window", "gcra"]),
    headers=st.sampled_from(["draft", "legacy"]),
    clients=st.integers(1, 8),
    each=st.integers(1, 4),
    latencies=st.lists(st.floats(0, 0.5), min_size=1, max_size=20),
)
def test_nobody_is_refused_and_no_window_is_wasted(
    limit: int,
    window: int,
    algorithm: AlgorithmName,
    headers: HeaderStyle,
    clients: int,
    each: int,
    latencies: list[float],
) -> None:
    policy = Policy("api", f"{limit}/{window} seconds", match="/", algorithm=algorithm)
    seen = virtual_time.run(asked_at(policy, headers, clients, each, latencies))
    assert len(seen) == clients * each
    if algorithm == "fixed_window":
        windows = {at // window for at in seen}
        assert windows == set(range(-(-len(seen) // limit))), "in as many windows as that takes, and no more"
    else:
        assert seen[-1] <= 2 * window * -(-len(seen) // limit)


async def asked_at(
    policy: Policy, headers: HeaderStyle, clients: int, each: int, latencies: list[float]
) -> list[float]:
    """Return when requests were let pass by a server, of which none was refused."""
    loop = asyncio.get_running_loop()
    clock = VirtualClock(loop)
    began, latency = clock.now(), itertools.cycle(latencies)
    seen: list[float] = []

    async def travel(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(next(latency))
        seen.append(seconds(clock.now() - began))
        response = await server.handle_async_request(request)
        assert response.status_code == 200
        await asyncio.sleep(next(latency))
        return response

    async def ask() -> None:
        for _ in range(each):
            await client.get(URL)

    server = httpx.ASGITransport(app_of(clock, policy, headers))
    transport = AsyncRateLimitTransport(httpx.MockTransport(travel), timeout=10**6, clock=clock)
    async with httpx.AsyncClient(transport=transport, headers={"x-api-key": "alice"}) as client:
        await asyncio.gather(*(ask() for _ in range(clients)))
    return seen


async def test_over_sockets() -> None:
    clock = FakeClock()
    app = app_of(clock, Policy("api", "5/minute", match="/"), "both")
    async with served(app, date_header=False) as address:
        transport = AsyncRateLimitTransport(httpx.AsyncHTTPTransport(), clock=clock, timeout=3600)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{address}") as client:
            tasks = [asyncio.create_task(client.get("/")) for _ in range(12)]
            for answered in (5, 10, 12):
                while sum(task.done() for task in tasks) < answered or (answered < 12 and not clock._waiting):
                    await asyncio.sleep(0.002)
                clock.advance(60)
    assert [task.result().status_code for task in tasks] == [200] * 12


def test_threads() -> None:
    clock = FakeClock()
    policy = Policy("api", "5/minute", match="/", user_from="header:x-api-key")
    lock = threading.Lock()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"here you are"]

    limited = WsgiMiddleware(app, limiter=sync.Limiter(MemoryStore(), [policy], clock=clock))
    statuses: list[int] = []
    with httpx.Client(
        transport=RateLimitTransport(httpx.WSGITransport(limited), clock=clock, timeout=3600),
        headers={"x-api-key": "alice"},
    ) as client:

        def ask() -> None:
            for _ in range(3):
                status = client.get(URL).status_code
                with lock:
                    statuses.append(status)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert statuses == [200] * 12
    # Each that waits turns the clock on, also where another one has just done so.
    assert clock.now() - FakeClock().now() >= 120 * 1_000_000


# What servers say of their limits is understood in every dialect, and nonsense is as good as silence.


NOW = FakeClock().now()
DATE = format_datetime(instant(NOW), usegmt=True)
LATER = format_datetime(instant(NOW + 90 * SECOND), usegmt=True)
ASCTIME_LATER = asctime(instant(NOW + 90 * SECOND).timetuple())
"""As RFC 9110, 5.6.7, has the oldest form."""


def said(**fields: str) -> ServerLimits:
    return read_limits(httpx.Headers({name.replace("_", "-"): value for name, value in fields.items()}, "utf-8"), NOW)


@pytest.mark.parametrize(
    ("fields", "quota"),
    [
        ({"ratelimit_policy": '"a";q=20;w=60', "ratelimit": '"a";r=3;t=7'}, ServerQuota("a", "", 3, 7)),
        ({"ratelimit_policy": "a;q=20;w=60", "ratelimit": "a;r=3;t=7"}, ServerQuota("a", "", 3, 7)),
        ({"ratelimit_policy": '"a";q=20;w=60', "ratelimit": '"a";r=3'}, ServerQuota("a", "", 3, 60)),
        ({"ratelimit": '"a";r=3;t=7'}, ServerQuota("a", "", 3, 7)),
        (
            {"ratelimit_policy": '"a";q=9;w=60;pk=:YQ==:', "ratelimit": '"a";r=3;t=7;pk=:YQ==:'},
            ServerQuota("a", ":YQ==:", 3, 7),
        ),
        (
            {"ratelimit_policy": '"a, \\"b\\"";q=9', "ratelimit": '"a, \\"b\\"" ; r=3; t=7'},
            ServerQuota('a, "b"', "", 3, 7),
        ),
        ({"ratelimit_policy": '"a";q=9;w=60, "b";q=99;w=3600', "ratelimit": '"a";r=3;t=7'}, ServerQuota("a", "", 3, 7)),
        ({"ratelimit": "limit=100, remaining=50, reset=5", "ratelimit_policy": "100;w=60"}, ServerQuota("", "", 50, 5)),
        (
            {"ratelimit_limit": "100, 100;w=60", "ratelimit_remaining": "50", "ratelimit_reset": "5"},
            ServerQuota("", "", 50, 5),
        ),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": "5"}, ServerQuota("", "", 0, 5)),
        ({"x_rate_limit_remaining": "0", "x_rate_limit_reset": "1.5"}, ServerQuota("", "", 0, 1.5)),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // SECOND + 30)}, ServerQuota("", "", 0, 30)),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // 1000 + 30_000)}, ServerQuota("", "", 0, 30)),
        ({"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // SECOND - 30)}, ServerQuota("", "", 0, 0)),
        (
            {"x_ratelimit_remaining": "0", "x_ratelimit_reset": str(NOW // SECOND + 100), "date": LATER},
            ServerQuota("", "", 0, 10),
        ),
    ],
)
def test_dialects(fields: dict[str, str], quota: ServerQuota) -> None:
    assert said(**fields).quotas == (quota,)


@pytest.mark.parametrize(
    ("field", "date", "seconds"),
    [
        ("7", DATE, 7),
        (LATER, DATE, 90),
        (LATER, "", 90),
        (LATER, LATER, 0),
        (DATE, LATER, 0),
        (ASCTIME_LATER, DATE, 90),
        (LATER.removesuffix(" GMT"), DATE, 90),
        (str(NOW // SECOND + 90), DATE, 90),
        ("Sat, 99 Foo", DATE, None),
    ],
)
def test_retry_after(field: str, date: str, seconds: float | None) -> None:
    """A date is taken by the server's clock, where it tells that."""
    assert said(retry_after=field, date=date).retry_after == seconds


@pytest.mark.parametrize(
    "fields",
    [
        {"ratelimit": '"a";r=x;t=7'},
        {"ratelimit": '"a";r=-1;t=7'},
        {"ratelimit": '"a";r=3'},
        {"ratelimit": '"a";r=3;t=7, "b'},
        {"ratelimit": '"a";r=3;t=7', "ratelimit_policy": '"a";q=9;qu="content-bytes";w=60'},
        {"ratelimit": '"a";r=1', "ratelimit_policy": '"a";q=2;qu="concurrent-requests"'},
        {"ratelimit": "limit=100"},
        {"x_ratelimit_remaining": "soon", "x_ratelimit_reset": "5"},
        {"x_ratelimit_remaining": "5"},
        {"x_ratelimit_remaining": "٣", "x_ratelimit_reset": "5"},
    ],
)
def test_what_makes_no_sense_says_nothing(fields: dict[str, str]) -> None:
    assert said(**fields).quotas == ()


_NAMES = (
    *("ratelimit", "ratelimit-policy", "retry-after", "date"),
    *("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset", "x-ratelimit-remaining", "x-ratelimit-reset"),
)
_PIECES = st.sampled_from([*'"a;r=3t=7,\\:- ', "limit=1", "9" * 15, "9" * 400, "1e9", DATE, "\xff", ";pk=:a:"])


@given(st.dictionaries(st.sampled_from(_NAMES), st.one_of(st.lists(_PIECES).map("".join), st.text(max_size=60))))
def test_nothing_that_a_server_sends_raises(fields: dict[str, str]) -> None:
    limits = read_limits(fields, NOW)
    assert len(limits.quotas) <= MAX_ITEMS
    assert all(quota.remaining >= 0 and quota.reset_s >= 0 for quota in limits.quotas)
    assert limits.retry_after is None or limits.retry_after >= 0


def test_a_long_field_takes_no_time() -> None:
    for field in ('"' * 8000, ";a=" * 8000, "a;" * 8000, '"a";r=1;t=1,' * 8000, " ;\t" * 8000):
        read_limits({"ratelimit": field, "ratelimit-policy": field}, NOW)


@pytest.mark.parametrize("style", ["draft", "legacy"])
@pytest.mark.parametrize("quotas", ["20/hour", "5/second", "10/minute burst 25"])
def test_what_this_project_writes(style: HeaderStyle, quotas: str) -> None:
    (quota,) = to_quotas(quotas)
    state = QuotaState(quota, used=2, remaining=3, reset_after=6.5, retry_after=0.0)
    decision = Decision(True, "hint", 1, (state,), at_us=NOW)
    fields = {name.decode(): value.decode() for name, value in HeaderWriter(style).fields([decision])}
    name = "hint" if style == "draft" else ""
    assert read_limits(fields, NOW).quotas == (ServerQuota(name, "", 3, 7),)
