"""What the pages show of apps and their data is true: Flask, Django, mounts, limits, first steps, metrics, items."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.test import Client, RequestFactory, override_settings
from django.urls import clear_url_caches, path
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from docs.hooks.items import NAMES, PLAN, USER, events, request_block, sample_block, samples, spend
from docs.hooks.pages import MARK
from ratelimit import Policy, configure, open_store
from ratelimit.clock import SystemClock
from ratelimit.testing import FakeClock
from tests.docs.pages import blocks, lay_out, run, text_of, titled
from tests.engines import Engine
from tests.http.apps import client_of
from tests.test_app_metrics import own_registry as own_registry
from tests.wsgi.apps import call


async def app_of(title: str) -> Any:
    return (await run(titled("docs/flask.md", title)))["app"]


@pytest.mark.usefixtures("noon")
async def test_the_app_of_flask_limits_by_path_and_in_a_view() -> None:
    client = (await app_of("hints.py")).test_client()
    assert [(await asyncio.to_thread(client.post, "/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
    answers = [await asyncio.to_thread(client.get, f"/exports/{pages}") for pages in (7, 4, 3)]
    assert [answer.status_code for answer in answers] == [200, 429, 200]


@pytest.mark.usefixtures("noon")
async def test_the_first_app_limits_by_path() -> None:
    app = await app_of("wsgi.py")
    assert [(await asyncio.to_thread(call, app)).status for _ in range(6)] == [200] * 5 + [429]


@pytest.mark.usefixtures("noon")
async def test_a_view_asks_by_itself() -> None:
    app = await app_of("views.py")
    replies = [await asyncio.to_thread(call, app, path=path) for path in ("/?all", "/?all", "/")]
    assert [reply.status for reply in replies] == [200, 429, 200]
    assert replies[0].body == b"3 left today\n"


# What `docs/django.md` says of a site.


@pytest.fixture
async def site() -> Any:
    """The settings and views of the page."""
    shown = await run(titled("docs/django.md", "settings.py"))
    asked = {name.rpartition(".middleware.")[0] for name in shown["MIDDLEWARE"]} - {""}
    assert asked <= set(shown["INSTALLED_APPS"])
    import django

    django.setup()
    views = await run(titled("docs/django.md", "views.py"))
    urls = ModuleType("urls_of_a_page")
    urls.urlpatterns = [  # type: ignore[attr-defined]
        path("hints", views["hint"]), path("exports/<int:pages>", views["export"]),
        path("report", views["Report"].as_view()),
    ]  # fmt: skip
    return {name: shown[name] for name in ("MIDDLEWARE", "RATELIMIT")} | {"ROOT_URLCONF": urls}


@pytest.fixture
def fresh() -> Iterator[None]:
    clear_url_caches()
    yield
    clear_url_caches()


@pytest.mark.usefixtures("noon")
def test_the_site_limits_by_path_and_in_views(site: dict[str, Any], fresh: None) -> None:
    with override_settings(**site):
        client = Client()
        assert [client.post("/hints").status_code for _ in range(6)] == [200] * 5 + [429]
        assert [client.get(f"/exports/{pages}").status_code for pages in (7, 4, "abc", 2)] == [200, 429, 404, 200]
        assert [client.get("/report").status_code for _ in range(2)] == [200, 429]


@pytest.mark.usefixtures("noon")
def test_every_message_of_the_check_is_on_the_page() -> None:
    import ratelimit.django.apps

    code = Path(ratelimit.django.apps.__file__).read_text(encoding="utf-8")
    wanted = set(re.findall(r"ratelimit\.[EW]\d+", code))
    assert wanted == set(re.findall(r"ratelimit\.[EW]\d+", text_of("docs/django.md")))


@pytest.mark.usefixtures("noon")
def test_views_call_what_they_called_before() -> None:
    limits = asyncio.run(run(titled("docs/django.md", "limits.py")))
    (block,) = [one for one in blocks("python", "docs/django.md") if "def hint_view" in one.text]
    view = asyncio.run(run(block))["hint_view"]
    request = RequestFactory().post("/hints")
    request.user = SimpleNamespace(pk=7)
    answers = [view(request, limits["check_rate_limit"], limits["log_usage"]) for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429]
    assert limits["check_rate_limit"](7, "hint", -1)[0]
    limits["usage"].close()
    assert [event.resource for event in limits["usage"].events(7).events] == ["/hints"] * 5


# What `docs/mounts.md` says of where patterns are compared.


@pytest.mark.usefixtures("noon")
async def test_a_mounted_app_is_limited_by_its_own_paths() -> None:
    app = (await run(titled("docs/mounts.md", "mounted.py")))["app"]
    async with client_of(app) as client:
        assert [(await client.post("/api/hints")).status_code for _ in range(6)] == [200] * 5 + [429]


# What `docs/limits.md` says of its apps, on an engine.


async def names_of(title: str, engine: Engine) -> dict[str, Any]:
    shown = titled("docs/limits.md", title).text
    url = engine.store_url(f"limits-{uuid4().hex[:8]}", create="true")
    return await run(shown.replace("dynamodb://my-table?region=eu-west-1", url))


async def test_flask_limiter_counts_in_the_table(engine: Engine) -> None:
    page = await names_of("flask_app.py", engine)
    client = page["app"].test_client()
    assert [(await asyncio.to_thread(client.post, "/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
    await asyncio.to_thread(page["limiter"].storage.close)


async def test_slowapi_counts_in_the_table(engine: Engine) -> None:
    page = await names_of("slowapi_app.py", engine)
    async with client_of(page["app"]) as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
    await asyncio.to_thread(page["limiter"]._storage.close)


async def test_limits_counts_in_the_table(engine: Engine) -> None:
    page = await names_of("by_itself.py", engine)
    assert [await page["hint"]("alice") for _ in range(6)] == [True] * 5 + [False]
    await page["limiter"].storage.close()


# What a newcomer types first answers as the pages say.


@pytest.mark.usefixtures("noon")
async def test_the_third_request_is_refused_as_shown() -> None:
    app = (await run(titled("docs/index.md", "app.py")))["app"]
    async with client_of(app) as client:
        *_, third = [await client.post("/hints") for _ in range(3)]
    (shown,) = blocks("http", "docs/index.md")
    head, _, body = shown.text.partition("\n\n")
    status, *fields = head.splitlines()
    assert status == f"HTTP/1.1 {third.status_code} {third.reason_phrase}"
    assert dict(field.split(": ", 1) for field in fields).items() <= dict(third.headers).items()
    assert third.text == body.strip()


@pytest.mark.usefixtures("noon")
async def test_the_app_of_getting_started_limits_by_path_and_in_a_view(tmp_path: Path) -> None:
    lay_out("docs/getting-started.md", tmp_path)
    app = (await run(titled("docs/getting-started.md", "app.py")))["app"]
    async with client_of(app) as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
        assert (await client.post("/exports?pages=7")).json() == {"left today": 3}
        assert (await client.post("/exports?pages=4")).status_code == 429
        wrong = ("-5", "0", "abc", "1.5", "100000000000000000000000", "٣")
        assert [(await client.post(f"/exports?pages={each}")).status_code for each in wrong] == [400] * len(wrong)
        assert (await client.post("/exports?pages=3")).json() == {"left today": 0}


# `docs/metrics.md` is true: the apps show their metrics where the page says.


@pytest.mark.usefixtures("own_registry")
@pytest.mark.parametrize("title", ["FastAPI", "Starlette"])
async def test_an_app_shows_its_metrics(title: str) -> None:
    app: Any = (await run(titled("docs/metrics.md", title)))["app"]
    async with client_of(app) as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
        shown = (await client.get("/metrics/")).text
    assert 'ratelimit_decisions_total{outcome="allowed",policy="hint",reason="none"} 5.0' in shown
    assert 'ratelimit_decisions_total{outcome="denied",policy="hint",reason="quota"} 1.0' in shown
    assert 'ratelimit_breaker_state{state="closed"} 1.0' in shown
    assert "ratelimit_check_seconds_count 6.0" in shown


def test_the_multi_process_mode_leaves_collectors_out(own_registry: CollectorRegistry, tmp_path: Path) -> None:
    configure(policies=[Policy("hint", quotas="5/day")], metrics=True)
    every_process = CollectorRegistry()
    MultiProcessCollector(every_process, path=str(tmp_path))
    assert b"ratelimit" in generate_latest(own_registry)
    assert b"ratelimit" not in generate_latest(every_process)


# The items that `docs/data-model.md` shows are those that an engine holds.


PAGE = text_of("docs/data-model.md")


async def test_an_engine_holds_just_these_items(engine: Engine) -> None:
    table = f"docs-{uuid4().hex[:8]}"
    # Not the moment of the page: what has expired by now an engine may delete.
    clock = FakeClock(SystemClock().now() // 1_000_000)
    await spend(await open_store(engine.store_url(table, create="true")), clock)
    async with open_store(engine.store_url(table)) as store:
        assert not await store.events.put(events(clock))
        assert await store.directory.replace(None, PLAN, now=clock.now())
        assert await store.directory.replace(None, USER, now=clock.now())
    found = engine.call("Scan", {"TableName": table, "ConsistentRead": True})["Items"]
    shown = list((await samples(clock)).values())
    # The event with an id of its own has an item too; the page shows only its note.
    (other,) = [item for item in found if item["tp"] == {"S": "ulog"} and item["SK"]["S"].endswith("#order-17")]
    assert sorted(map(plain, found), key=repr) == sorted(map(plain, [*shown, other]), key=repr)


def plain(item: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(item.items()))


def test_every_sample_is_on_the_page() -> None:
    assert {f"item-{name}" for name in NAMES} == {mark for mark in MARK.findall(PAGE) if mark.startswith("item-")}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_json_with_its_key(name: str) -> None:
    item = json.loads(sample_block(name).removeprefix("```json").removesuffix("```"))
    assert {"PK", "SK", "tp"} <= item.keys()


def test_the_request_has_the_conditions_that_the_page_explains() -> None:
    request = request_block()
    assert '":v3": {"N": "15"}' in request
    assert "attribute_not_exists(#f2) OR #f2 <= :v3" in request
