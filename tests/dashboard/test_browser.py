"""The page in a real browser, on a real service: every view, every button; and nothing that is stored runs."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from ratelimit import Limiter, MemoryStore, Policy
from ratelimit.dashboard import dashboard
from tests.browser import REQUIRED
from tests.dashboard.clients import OPERATOR, READER
from tests.dashboard.driver import AXE, Tab
from tests.dashboard.ground import PLAN, RUNS, SCRIPT, Ground, configured, ground, serving
from tests.http.serving import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VIEWS = ["now", "refused", "users", "users/alice", "plans", "cost", "activity"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with ground(tmp_path_factory.mktemp("page")) as found:
        use(found)
        yield found


@pytest.fixture
def tab(window: Tab, place: Ground) -> Tab:
    """At the operator's desk, at 1280 px."""
    window.address = place.served.page
    window.page.resize(1280, 900)
    window.log_in(OPERATOR)
    return window


def use(place: Ground, times: int = 6) -> None:
    """Some checks by everybody."""
    with httpx.Client(base_url=place.served.api, trust_env=False, timeout=60) as client:
        for user in ("alice", SCRIPT, "user-1"):
            for action in ("hint", "chat", RUNS):
                for _ in range(times):
                    body = {"user": user, "action": action, "resource": RUNS, "metadata": {RUNS: SCRIPT}}
                    assert client.post("/v1/check", json=body).status_code == 200
            client.post("/v1/authz/hints", headers={"x-api-key": user})


@pytest.mark.parametrize("view", VIEWS)
def test_every_view(tab: Tab, view: str, tmp_path: Path) -> None:
    shots = Path(os.environ.get("RATELIMIT_TEST_SCREENSHOTS", tmp_path))
    for width in (390, 1280):
        tab.page.resize(width, 900)
        tab.open(view)
        tab.until("document.querySelector('.card')")
        tab.settle()
        for scheme in ("light", "dark"):
            tab.page.prefer(scheme)
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width, f"too wide at {width}"
            (shots / f"{view.replace('/', '-')}-{width}-{scheme}.png").write_bytes(tab.page.screenshot())
            if AXE.exists():
                assert tab.violations() == []
        tab.nothing_ran()


def test_axe_is_there() -> None:
    if not AXE.exists():
        (pytest.fail if os.environ.get(REQUIRED) == "required" else pytest.skip)("make test-dashboard fetches axe-core")


def test_who_is_not_let_in(window: Tab, place: Ground) -> None:
    window.address = place.served.page
    window.log_in(OPERATOR, "users/alice")
    window.press("Log out")
    window.fill("Token", "not the token at all")
    window.press("Log in")
    window.reads("This is not the token")
    assert "alice" not in window.text
    window.open("users/alice")
    window.reads("Token")
    assert "refused POST /session" in place.served.log.read_text()


def test_now_and_what_it_covers(tab: Tab, place: Ground) -> None:
    use(place)
    tab.go("now")
    tab.reads("The workers of this sidecar", "breaker closed", "store ok", "Checks a second", "Latency of a check")
    tab.until("[...document.querySelectorAll('td')].some((one) => one.textContent.trim() === 'hint')", "the policies")
    tab.press("As a table")
    tab.press("Pause")
    tab.press("Go on")
    tab.go("refused")
    tab.reads(SCRIPT)
    tab.press("alice")
    assert tab.page.evaluate("location.hash") == "#/users/alice"
    tab.nothing_ran()


def open_alice(tab: Tab, place: Ground) -> None:
    use(place)
    tab.go("users")
    tab.fill("User", "alice@example.com")
    tab.press("Open")


def test_what_a_user_has_used(tab: Tab, place: Ground) -> None:
    open_alice(tab, place)
    tab.reads("alice", f"plan {PLAN}", "email:alice@example.com")
    tab.shows("50/day")
    tab.press("Reset hint")
    tab.press("Cancel")
    tab.press("Reset hint")
    tab.press("Reset")
    tab.reads("hint of alice was reset.")
    tab.shows("0 / 50")
    use(place, 1)
    tab.press("Refund chat")
    tab.fill("Units", "2")
    tab.press("Refund")
    tab.reads("2 of chat were given back to alice.")
    tab.nothing_ran()


def test_what_a_user_may(tab: Tab, place: Ground) -> None:
    open_alice(tab, place)
    tab.press("Override hint")
    tab.fill("Quotas", "7 bananas")
    tab.press("Save")
    tab.until("document.getElementById('trouble').innerText.includes('bananas')", "what is wrong")
    tab.page._events.clear()  # the browser says that it was a 400
    tab.press("Override hint")
    tab.fill("Quotas", "8/day")
    tab.press("Save")
    tab.reads("hint of alice is 8/day: here from now on")
    tab.shows("/ 8")
    tab.press("Change the override of hint")
    tab.fill("Quotas", "9/day")
    tab.press("Save")
    tab.shows("/ 9")
    tab.press("Remove the override of hint")
    tab.reads("No overrides")
    tab.shows("/ 50")
    tab.fill("Plan", "")
    tab.fill("Role", "admin")
    tab.fill("State", "no")
    tab.press("Save")
    tab.reads("no plan", "role admin", "inactive")
    tab.fill("Plan", PLAN)
    tab.fill("Role", "user")
    tab.fill("State", "yes")
    tab.press("Save")
    tab.reads("role user", f"plan {PLAN}")
    tab.nothing_ran()


def test_the_events_of_a_user_by_every_filter(tab: Tab) -> None:
    tab.go("users/alice")
    tab.fill("Action", "hint")
    tab.fill("Outcome", "false")
    tab.press("Filter")
    assert tab.column("Action") == {"hint"}
    assert tab.column("Outcome") == {"refused"}
    tab.press("Clear")
    tab.fill("Resource", "problem-7")
    tab.fill("Status", "429")
    tab.press("Filter")
    assert tab.column("Resource") == {"problem-7"}
    assert tab.column("Status") == {"429"}
    tab.press("Clear")
    tab.fill("Before (UTC)", "2020-01-01T00:00")
    tab.press("Filter")
    tab.page._events.clear()
    tab.press("Clear")
    tab.press("Older events")
    tab.press("Details")
    tab.nothing_ran()


def test_lists_that_are_longer_than_a_page(tab: Tab) -> None:
    rows = "[...document.querySelectorAll('table')].at(-1).querySelectorAll('tbody tr').length"
    tab.go("users")
    assert tab.page.evaluate(rows) == 100
    tab.press("More users")
    tab.until(f"{rows} > 100", "all users")
    tab.go("plans")
    tab.press("More plans")
    tab.until("document.querySelector('table').querySelectorAll('tbody tr').length > 100", "all plans")
    tab.nothing_ran()


def test_who_is_named_to_run(tab: Tab) -> None:
    tab.go("users")
    tab.press(SCRIPT)
    tab.reads(SCRIPT, RUNS)
    tab.shows("9/day")
    assert tab.page.evaluate("document.querySelector('h1').textContent") == SCRIPT
    for summary in ("Details", "As a table"):
        tab.press(summary)
    tab.nothing_ran()


def test_a_user_whom_nobody_knows(tab: Tab) -> None:
    tab.go("users/nobody%2Fat%20all")
    tab.reads("nobody/at all", "no entry in the directory", "5/day", "No event is like that.")
    tab.nothing_ran()


def test_erasing_takes_the_name(tab: Tab, place: Ground) -> None:
    use(place, 1)
    tab.go("users/user-1")
    tab.press("Erase…")
    assert not tab.has("Erase", enabled=True)
    tab.fill("Type user-1 to go on", "user-")
    assert not tab.has("Erase", enabled=True)
    tab.fill("Type user-1 to go on", "user-1")
    tab.press("Erase")
    tab.reads("items of user-1 were erased.")
    tab.go("users/user-1")
    tab.reads("No event is like that.")
    tab.nothing_ran()


def test_several_workers_are_one_service(window: Tab, place: Ground, tmp_path: Path) -> None:
    with serving(configured(tmp_path, place.store), "--workers", "2") as served:
        window.address = served.page
        window.log_in(OPERATOR)
        for _ in range(6):
            window.open("now")  # on whichever connection
            window.reads("as of")
            assert window.has("Log out")
        workers = "[...document.querySelectorAll('table')].at(-1).querySelectorAll('tbody tr').length"
        assert window.page.evaluate(workers) == 2
        window.nothing_ran()


def test_plans_and_policies(tab: Tab, place: Ground) -> None:
    use(place)
    tab.go("plans")
    tab.reads(str(place.folder / "ratelimit.toml"), "would have refused", RUNS)
    tab.press("All settings")
    tab.press("New plan…")
    tab.fill("Name", "team")
    tab.fill("Quotas, an action a line", "hint: 60/day\nchat: unlimited")
    tab.press("Save")
    tab.reads("hint: 60/day\nchat: unlimited")
    tab.press("Change team")
    tab.fill("Quotas, an action a line", "hint: 61/day")
    tab.press("Save")
    tab.reads("hint: 61/day")
    tab.press("Delete team")
    tab.reads("Nobody has it.")
    tab.press("Delete")
    tab.reads("The plan team is gone.")
    tab.press("What would a reload change?")
    tab.reads("A reload would change nothing.")
    configured(place.folder, place.store, hint="6/day")
    tab.press("What would a reload change?")
    tab.reads("policies.hint", "6/day")
    tab.press("Reload…")
    tab.press("Reload")
    tab.reads("Reloaded: policies.hint.", "6/day; 3/minute")
    configured(place.folder, place.store)
    tab.press("Reload…")
    tab.press("Reload")
    tab.reads("5/day; 3/minute")
    tab.nothing_ran()


def test_what_everybody_did(tab: Tab, place: Ground) -> None:
    use(place)
    tab.go("activity")
    tab.until("document.getElementById('main').textContent.includes('/hints')", "events of an action")
    tab.fill("Resource", "/hints")
    tab.fill("Outcome", "false")
    tab.press("Filter")
    assert tab.column("Resource") <= {"/hints"}
    assert tab.column("Outcome") <= {"refused"}
    tab.press("Clear")
    tab.fill("Status", "200")
    tab.press("Filter")
    tab.press(SCRIPT)
    assert tab.page.evaluate("document.querySelector('h1').textContent") == SCRIPT
    tab.nothing_ran()


def test_a_plan_that_is_deleted_while_somebody_has_it(tab: Tab) -> None:
    tab.go("plans")
    tab.press(f"Delete {PLAN}")
    tab.reads("alice has it")
    tab.press("Delete")
    tab.go("users/alice")
    tab.reads(f"There is no plan {PLAN} any more")
    tab.nothing_ran()
    tab.go("plans")
    tab.press("New plan…")
    tab.fill("Name", PLAN)
    tab.fill("Quotas, an action a line", "hint: 50/day")
    tab.press("Save")


def test_who_may_only_look(tab: Tab) -> None:
    tab.log_in(READER)
    tab.go("users/alice")
    tab.reads("read only", "/day")
    for name in ("Reset hint", "Refund hint", "Override hint", "Save", "Erase…"):
        assert tab.has(name)
        assert not tab.has(name, enabled=True)
    tab.go("plans")
    assert not tab.has("Reload…", enabled=True)
    assert not tab.has("New plan…", enabled=True)
    tab.press("What would a reload change?")
    tab.nothing_ran()


def test_by_the_keyboard_alone(tab: Tab) -> None:
    tab.open("users/alice")
    tab.reads("Quotas")
    tab.settle()
    tab.page.evaluate("document.querySelector('.skip').focus()")
    tab.key("Enter", 13)
    assert tab.page.evaluate("document.activeElement.id + location.hash") == "main#/users/alice"
    for _ in range(60):
        tab.key("Tab", 9)
        if tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Reset hint":
            break
    tab.key("Enter", 13)
    tab.until("document.querySelector('dialog[open]')")
    tab.key("Escape", 27)
    tab.until("!document.querySelector('dialog')")
    assert tab.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Reset hint", "back where it was"
    tab.nothing_ran()


def test_a_clock_that_is_off(tab: Tab) -> None:
    script = "const real = Date.now; Date.now = () => real() + 300000"
    added = tab.page._ask("Page.addScriptToEvaluateOnNewDocument", source=script)
    try:
        tab.open("users/alice")
        tab.reads("clock is 300 s ahead of the service")
    finally:
        tab.page._ask("Page.removeScriptToEvaluateOnNewDocument", identifier=added["identifier"])


def test_what_was_done_is_in_the_log(tab: Tab, place: Ground) -> None:
    tab.open("users/alice")
    tab.reads("Quotas")
    tab.settle()
    tab.press("Reset hint")
    tab.press("Reset")
    tab.reads("hint of alice was reset.")
    log = place.served.log.read_text()
    assert re.search(r"operator \(operator\) POST /v1/reset: 204", log)
    assert "alice" not in log


# The page in a real browser, on services of its own: huge, without a store, in an app.


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
