"""The site in a real browser: nothing is amiss, nothing is fetched from elsewhere, and the search finds things."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.browser import Page, browser

pytestmark = pytest.mark.slow

FOUND = """
new Promise((done, failed) => {
  const field = document.querySelector("[data-md-component=search-query]"), until = Date.now() + 30000
  const look = () => {
    const links = [...document.querySelectorAll(".md-search-result__link")].map(link => link.pathname)
    if (links.length) return done(links)
    if (Date.now() > until) return failed("nothing was found")
    field.dispatchEvent(new KeyboardEvent("keyup", {bubbles: true}))
    setTimeout(look, 100)
  }
  document.querySelector("[data-md-toggle=search]").checked = true
  field.focus()
  field.value = "QUERY"
  look()
})
"""


class Silent(SimpleHTTPRequestHandler):
    """Keeps its access log to itself."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site))) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("name", ["index", "concepts", "policies", "operations", "command-line", "python-api"])
def test_a_page_is_whole_in_light_and_dark(tab: Page, address: str, name: str) -> None:
    backgrounds = set()
    for scheme in ("light", "dark"):
        tab.open(f"{address}/{name}.html", scheme=scheme)
        backgrounds.add(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert tab.complaints == []
        assert tab.requests
        assert [url for url in tab.requests if not url.startswith((address, "data:"))] == []
    assert len(backgrounds) == 2


def test_the_search_finds_a_page(tab: Page, address: str) -> None:
    tab.open(f"{address}/index.html")
    assert "/simulator.html" in tab.evaluate(FOUND.replace("QUERY", "lease"))
    assert [url for url in tab.requests if not url.startswith((address, "data:", "blob:"))] == []
