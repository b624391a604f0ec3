"""The site is built without a warning, loads nothing from elsewhere, and holds every page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.docs.pages import PAGES

pytestmark = pytest.mark.process

# What a browser fetches by itself; a link that the reader follows is none of it.
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "link": "href",
    "source": "src",
    "video": "src",
    "audio": "src",
}


class Loaded(HTMLParser):
    """Addresses that a page makes a browser load, and the ids and classes in it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.classes |= set((named.get("class") or "").split())
        if address := named.get(LOADED.get(tag, "")):
            self.addresses.append(address)


def test_every_page_is_there(site: Path) -> None:
    pages = {Path(page).stem for page in PAGES if page.startswith("docs/")}
    assert {path.stem for path in site.glob("*.html")} == pages | {"404"}
    assert not (site / "hooks").exists()


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Loaded()
        page.feed(path.read_text(encoding="utf-8"))
        assert page.addresses
        assert [address for address in page.addresses if re.match(r"[a-z]+:|//", address)] == [], path.name
        # The theme would fetch what draws these.
        assert "mermaid" not in page.classes
    for path in site.rglob("*.css"):
        assert re.findall(r"url\([\"']?(?:https?:)?//", path.read_text(encoding="utf-8")) == [], path.name


def test_what_is_generated_is_on_its_pages(site: Path) -> None:
    text = {path.stem: path.read_text(encoding="utf-8") for path in site.glob("*.html")}
    assert '<code>"memory://"</code>' in text["configuration"].replace("&quot;", '"')
    assert 'id="ratelimit-usage-export"' in text["command-line"]
    assert 'id="ratelimit.Limiter.check"' in text["python-api"]
    assert "m29460240" in text["data-model"]
    assert "<svg" in text["concepts"]
    assert not [name for name, page in text.items() if "<!-- generated" in page]


def test_tables_lists_and_code_are_drawn(site: Path) -> None:
    for path in site.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<code>[^<]*\\\|", text), path.name
        page = re.sub(r"(?s)<(pre|code|script)\b.*?</\1>", "", text)
        assert not re.search(r"\|\s?-{3}|```|^\s*\|.*\|\s*$|^\s*(-|\d\.) ", page, re.MULTILINE), path.name
