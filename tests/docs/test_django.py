"""What `docs/django.md` says of a site."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from django.test import Client, RequestFactory, override_settings
from django.urls import clear_url_caches, path

from tests.docs.pages import blocks, run, text_of, titled

pytestmark = pytest.mark.usefixtures("noon")


@pytest.fixture
async def site() -> Any:
    """The settings and views of the page."""
    shown = await run(titled("docs/django.md", "settings.py"))
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


def test_the_site_limits_by_path_and_in_views(site: dict[str, Any], fresh: None) -> None:
    with override_settings(**site):
        client = Client()
        assert [client.post("/hints").status_code for _ in range(6)] == [200] * 5 + [429]
        assert [client.get(f"/exports/{pages}").status_code for pages in (7, 4, "abc", 2)] == [200, 429, 404, 200]
        assert [client.get("/report").status_code for _ in range(2)] == [200, 429]


def test_every_message_of_the_check_is_on_the_page() -> None:
    import ratelimit.django.apps

    code = Path(ratelimit.django.apps.__file__).read_text(encoding="utf-8")
    wanted = set(re.findall(r"ratelimit\.[EW]\d+", code))
    assert wanted == set(re.findall(r"ratelimit\.[EW]\d+", text_of("docs/django.md")))


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
