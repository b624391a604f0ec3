"""Django's middleware, decorator and system check, by its own test clients: sync as under WSGI, async as under ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
import pytest
from asgiref.sync import sync_to_async
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.checks import run_checks
from django.test import AsyncClient, Client, override_settings
from django.urls import clear_url_caches
from mangum import Mangum

from ratelimit import Alert, ConfigError, LimiterClosed, Policy, RateLimitError, UnknownAction
from ratelimit.django.middleware import surface
from tests.http.apps import LAMBDA_EVENT, client_of

MIDDLEWARE = ["tests.django.site.authentication", "ratelimit.django.RateLimitMiddleware"]
HINT = Policy("hint", "2/day", match="POST /hints")
EXPORT = Policy("export", "5/day")
ADDRESS = "ip:127.0.0.1"


@pytest.fixture(autouse=True)
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "tests.docs.django_site")
    django.setup()
    with override_settings(ROOT_URLCONF="tests.django.site", MIDDLEWARE=MIDDLEWARE, DEBUG=False):
        clear_url_caches()
        from tests.django.site import signed_in

        signed_in.clear()
        yield
    clear_url_caches()


@contextmanager
def limits(*policies: Policy, **more: Any) -> Iterator[None]:
    with override_settings(RATELIMIT={"policies": list(policies), **more}):
        yield


class Site:
    """Asks by one of the two ways."""

    def __init__(self, *, is_async: bool, tells: bool = False) -> None:
        self.is_async = is_async
        self._client = (AsyncClient if is_async else Client)(raise_request_exception=tells)

    async def ask(self, method: str, path: str, **options: Any) -> Any:
        if self.is_async:
            return await getattr(self._client, method.lower())(path, **options)
        # In a thread without an event loop, as a WSGI server has them.
        return await sync_to_async(getattr(self._client, method.lower()), thread_sensitive=False)(path, **options)

    async def statuses(self, *asks: str) -> list[int]:
        return [(await self.ask(*ask.split())).status_code for ask in asks]

    async def used(self, action: str = "hint", user: str = ADDRESS) -> int:
        limiter = surface(is_async=self.is_async).limiter
        if self.is_async:
            return int((await limiter.peek(user, action)).used)
        return int((await sync_to_async(limiter.peek, thread_sensitive=False)(user, action)).used)


@pytest.fixture(params=[False, True], ids=["sync", "async"])
def client(request: pytest.FixtureRequest) -> Site:
    return Site(is_async=request.param)


async def test_a_path_is_what_django_routes_by(client: Site) -> None:
    """By ASGI it takes off what FORCE_SCRIPT_NAME says, and the server knows nothing of that."""
    prefix = "/api" if client.is_async else ""
    with limits(HINT), override_settings(FORCE_SCRIPT_NAME="/api"):
        assert await client.statuses(*[f"POST {prefix}/hints"] * 3) == [200, 200, 429]


async def test_requests_are_limited_by_path(client: Site) -> None:
    with limits(HINT):
        answers = [await client.ask("POST", "/hints") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[0].content == b"1 checked"
        fields = [answer["ratelimit"].partition(";t=")[0] for answer in answers]
        assert fields == ['"hint";r=1', '"hint";r=0', '"hint";r=0']
        assert answers[2]["content-type"] == "application/problem+json"
        assert answers[2].json()["violated-policies"] == ["hint"]
        assert "ratelimit" not in (await client.ask("GET", "/hints"))


async def test_djangos_user_is_the_user(client: Site) -> None:
    from tests.django.site import signed_in

    with limits(HINT, EXPORT):
        signed_in.append("7")
        assert await client.statuses(*["POST /hints"] * 3, "GET /export?pages=2") == [200, 200, 429, 200]
        signed_in.clear()
        assert await client.statuses("POST /hints", "GET /export?pages=2") == [200, 200]
        assert (await client.used(user="7"), await client.used()) == (2, 1)
        assert (await client.used("export", "7"), await client.used("export")) == (2, 2)


async def test_who_is_found_out_in_a_view_is_the_user_from_then_on(client: Site) -> None:
    with limits(Policy("api", "9/day", match="/**"), EXPORT):
        assert await client.statuses("GET /export/known?pages=2") == [200]
        assert (await client.used("api"), await client.used("export", "9"), await client.used("export")) == (1, 2, 0)


async def test_what_counts_is_how_the_site_answers(client: Site) -> None:
    with limits(Policy("hint", "2/day", match="/**", count="success")):
        assert await client.statuses("GET /status/500", "GET /nothing", "GET /broken") == [500, 404, 500]
        assert await client.used() == 0
        assert await client.statuses(*["GET /status/200"] * 3) == [200, 200, 429]


@pytest.mark.parametrize("path", ["/export?pages=1", "/export/later", "/export/class", "/export/class/later"])
async def test_views_of_every_kind_are_limited(client: Site, path: str) -> None:
    with limits(Policy("api", "9/day", match="/**"), Policy("export", "2/day")):
        answers = [await client.ask("GET", path) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2]["ratelimit"].startswith('"export";r=0')
        assert answers[2].json()["status"] == 429
        assert (await client.used("api"), await client.used("export")) == (3, 2)


async def test_a_cost_is_a_function_of_djangos_request(client: Site) -> None:
    with limits(EXPORT):
        assert await client.statuses(*[f"GET /export?pages={pages}" for pages in (4, 2, 1)]) == [200, 429, 200]
        assert (await client.ask("GET", "/handled?pages=9")).json() == {"no more": "export"}


@pytest.mark.parametrize("path", ["/plan", "/plan/later"])
async def test_a_view_says_quotas_user_and_key(client: Site, path: str) -> None:
    from tests.django.site import signed_in

    with limits(HINT):
        asked = [f"GET {path}?quota={quota}&account=acme" for quota in (1, 1, 2)]
        assert await client.statuses(*asked) == [200, 429, 200]
        assert await client.statuses(f"GET {path}?quota=1&account=acme&team=sales") == [200]
        nobody = await client.ask("GET", f"{path}?quota=1")
        assert (nobody.status_code, nobody.json()["detail"]) == (401, "Who asks for 'plan' is not known.")
        signed_in.append("7")
        assert await client.statuses(*[f"GET {path}?quota=1"] * 2) == [200, 429]


async def test_an_answer_of_the_sites_own(client: Site) -> None:
    with limits(HINT, on_refused="tests.django.site.teapot"):
        *_, refused = [await client.ask("POST", "/hints") for _ in range(3)]
    assert (refused.status_code, refused.json()) == (418, {"no more": "hint", "on": "/hints"})
    assert refused["ratelimit"].startswith('"hint";r=0')


async def test_a_function_and_the_view_read_one_form(client: Site) -> None:
    from tests.django.site import account

    with limits(Policy("login", "1/day", match="POST /login", user_from=account)):
        answers = [await client.ask("POST", "/login", data={"name": name}) for name in ("alice", "alice", "bob")]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert [answers[0].content, answers[2].content] == [b"alice", b"bob"]


@pytest.mark.parametrize("path", ["/hints", "/stream", "/broken", "/export?pages=9"])
async def test_each_request_is_recorded_once(client: Site, path: str) -> None:
    with limits(Policy("api", "2/day", match="/**"), EXPORT, usage="memory"):
        await client.ask("GET", path)
        usage = surface(is_async=client.is_async).usage
        if client.is_async:
            await usage.flush()
            events = (await usage.events(ADDRESS)).events
            await usage.close()
        else:
            await sync_to_async(usage.close, thread_sensitive=False)()
            events = (await sync_to_async(usage.events, thread_sensitive=False)(ADDRESS)).events
    wanted = {"/broken": 500, "/export?pages=9": 429}.get(path, 200)
    seen = [(event.status, event.resource) for event in events if event.action == "api"]
    assert seen == [(wanted, path.partition("?")[0])]
    assert len(events) == (2 if wanted == 429 else 1)


async def test_what_a_request_holds_is_held_until_its_stream_has_ended(client: Site) -> None:
    """Until then, what it has reserved can be settled."""
    slots = Policy("slots", "1 concurrent", match=["GET /metered", "GET /status/**"])
    tokens = Policy("tokens", "100/day", match="GET /metered", cost=10, reserve=True)
    with limits(slots, tokens):
        answer = await client.ask("GET", "/metered")
        assert await client.statuses("GET /status/200") == [429]
        if client.is_async:
            assert [piece async for piece in answer] == [b"a", b"b"]
        else:
            assert await sync_to_async(lambda: list(answer), thread_sensitive=False)() == [b"a", b"b"]
        async with asyncio.timeout(30):
            while await client.statuses("GET /status/200") == [429]:
                pass  # it goes back behind the answer
        assert await client.statuses("GET /status/200") == [200]
        assert await client.used("tokens") == 3


async def test_what_is_not_there_is_told(client: Site) -> None:
    with limits(HINT), pytest.raises(UnknownAction, match="'nothing'"):
        await Site(is_async=client.is_async, tells=True).ask("GET", "/unknown")
    with override_settings(MIDDLEWARE=MIDDLEWARE[:1]), pytest.raises(RateLimitError, match="in MIDDLEWARE"):
        await Site(is_async=client.is_async, tells=True).ask("GET", "/export?pages=1")


async def test_a_closed_limiter_is_an_error(client: Site) -> None:
    with limits(HINT):
        assert await client.statuses("POST /hints") == [200]
        close = surface(is_async=client.is_async).limiter.close
        await (close() if client.is_async else sync_to_async(close, thread_sensitive=False)())
        with pytest.raises(LimiterClosed, match=r"limiter\.open\(\)"):
            await Site(is_async=client.is_async, tells=True).ask("POST", "/hints")


async def test_settings_that_make_no_sense_stop_the_start(client: Site) -> None:
    for given, told in (({"polices": {}}, "policies"), (["hint"], "as a dict"), ({"user_from": "heder:x"}, "heder")):
        with override_settings(RATELIMIT=given), pytest.raises(ConfigError, match=told):
            surface(is_async=client.is_async)


def ids(**given: Any) -> list[str]:
    from ratelimit.django.apps import check_settings

    with override_settings(**given):
        return [message.id for message in check_settings(None)]


AUTH = "django.contrib.auth.middleware.AuthenticationMiddleware"
OURS = "ratelimit.django.RateLimitMiddleware"
GOOD = {
    "policies": {"export": {"quotas": "5/day"}, "nothing": {"quotas": "5/day"}},
    "store": "dynamodb://my-table?region=eu-west-1",
}


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"RATELIMIT": GOOD}, []),
        ({"RATELIMIT": None}, ["ratelimit.E001"]),
        ({"RATELIMIT": {**GOOD, "user_from": "heder:x"}}, ["ratelimit.E001"]),
        ({"RATELIMIT": {**GOOD, "on_refused": "no.such.thing"}}, ["ratelimit.E001"]),
        ({"RATELIMIT": GOOD, "MIDDLEWARE": [AUTH]}, ["ratelimit.W001"]),
        ({"RATELIMIT": GOOD, "MIDDLEWARE": [OURS, AUTH]}, ["ratelimit.E002"]),
        ({"RATELIMIT": {**GOOD, "user_from": "address"}, "MIDDLEWARE": [OURS, AUTH]}, []),
        ({"RATELIMIT": {**GOOD, "policies": {"export": {"quotas": "5/day"}}}}, ["ratelimit.E003"]),
        ({"RATELIMIT": {**GOOD, "store": "memory://"}}, ["ratelimit.W002"]),
        ({"RATELIMIT": {**GOOD, "store": "memory://"}, "DEBUG": True}, []),
    ],
)
def test_the_system_check_finds_what_is_wrong(given: dict[str, Any], found: list[str]) -> None:
    assert ids(**given) == found


def test_the_app_registers_its_check() -> None:
    with override_settings(INSTALLED_APPS=[*settings.INSTALLED_APPS, "ratelimit.django"], RATELIMIT=None):
        assert "ratelimit.E001" in [message.id for message in run_checks()]


async def test_by_asgi_an_event_is_written_when_its_answer_is_there() -> None:
    """Django serves no lifespan."""
    with limits(HINT, usage="memory", user_from="address"):
        async with client_of(get_asgi_application(), address="127.0.0.1") as client:
            for number in (1, 2, 3):
                assert (await client.post("/hints")).status_code == (429 if number == 3 else 200)
                assert len(surface(is_async=True).limiter.store.events) == number


def test_on_lambda_nothing_is_left_to_do_when_the_answer_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "hints")
    told: list[float] = []

    async def tell(alert: Alert) -> None:
        for _ in range(5000):
            await asyncio.sleep(0)
        told.append(alert.threshold)

    hint = Policy("hint", "2/day", match="POST /hints", alert_at=[0.5])
    with limits(hint, usage="memory", on_alert=tell), asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        handler = Mangum(get_asgi_application(), lifespan="off")
        assert handler(LAMBDA_EVENT, {})["statusCode"] == 200  # type: ignore[arg-type]
        assert (told, len(surface(is_async=True).limiter.store.events)) == ([0.5], 1)
    asyncio.set_event_loop(None)
