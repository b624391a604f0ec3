"""The page in a real browser, on services of its own: huge, without a store, in an app."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from ratelimit import Limiter, MemoryStore, Policy
from ratelimit.dashboard import dashboard
from tests.dashboard.clients import OPERATOR
from tests.dashboard.driver import Tab
from tests.dashboard.ground import configured, ground, serving
from tests.http.serving import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_ten_thousand_policies(window: Tab, tmp_path: Path) -> None:
    config = configured(tmp_path, "memory://")
    config.write_text(config.read_text() + "".join(f'[policies.p{n}]\nquotas = "{n + 1}/day"\n' for n in range(10_000)))
    with serving(config) as served:
        window.address = served.page
        window.log_in(OPERATOR, "plans")
        window.fill("Find one of 10,003", "p99")
        window.reads("p9901")
        window.press("86 more")
        window.go("users/alice")
        window.reads("9,978 more")
        window.fill("Find an action", "p7777")
        window.reads("7778/day")
        window.go("now")
        window.reads("9,953 more")
        window.nothing_ran()


def test_a_store_that_is_down_while_the_page_is_open(window: Tab, tmp_path: Path) -> None:
    with ground(tmp_path, events=50) as place:
        window.address = place.served.page
        window.log_in(OPERATOR)
        window.go("users/alice")
        window.reads("refused")
        place.engine.close()
        window.press("Filter")
        window.until("document.getElementById('trouble').innerText.includes('may be old')", "that the store is away")
        window.reads("refused", "Quotas")
        for view in ("now", "refused", "plans", "users", "cost", "users/bob"):
            window.go(view)
            assert window.page.evaluate("document.querySelector('h1').textContent")
        window.go("now")
        window.until("/store (unavailable|late)/.test(document.body.innerText)", "the state of the store")
        assert window.page.evaluate("window.ran === undefined")


async def test_a_page_in_an_app(window: Tab) -> None:
    limiter = Limiter(MemoryStore(), [Policy("hint", "2/day")])
    app = Starlette(routes=[Mount("/limits", dashboard(limiter, auth="none"))])
    for _ in range(3):
        await limiter.check("alice", "hint")
    await limiter.check("bob", "run", quotas="9/day")
    async with served(app) as address:
        await asyncio.to_thread(_look, window, f"http://{address}/limits/")


def _look(window: Tab, address: str) -> None:
    window.address = address
    window.open("now")
    window.reads("This process of the app; others are not among them.", "store ok", "hint", "as each call says")
    window.go("refused")
    window.reads("alice", "Checks")
    window.go("cost")
    window.reads("memory:// costs nothing.")
    window.go("plans")
    window.reads("directory is off in the configuration", "2/day")
    assert not window.has("Reload…")
    window.nothing_ran()
