"""`Tab`: the page as a person has it: what is pressed by its name, what is typed by its label, what can be read."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

from tests.browser import Page

WITHIN_S: Final = 90.0
AXE: Final = Path(__file__).parents[2] / ".cache/axe/axe_playwright_python/axe.min.js"
_FIND: Final = """
const shown = (one) => one.checkVisibility() && !one.closest("[inert]")
const top = document.querySelector("dialog[open]") ?? document
const named = (name) => [...top.querySelectorAll("button, a, summary")].filter(shown)
  .find((one) => (one.getAttribute("aria-label") ?? one.textContent).trim() === name)
const labelled = (name) => [...top.querySelectorAll("label")].filter(shown)
  .find((one) => one.textContent.trim() === name)?.control
"""


# Counted in the page: what the browser tells of its network may come later than what it does next.
_COUNT_REQUESTS: Final = """
window.underWay = 0
const ask = window.fetch
window.fetch = async (...what) => {
  window.underWay += 1
  try {
    const answer = await ask(...what)
    await answer.clone().arrayBuffer()
    return answer
  } finally { window.underWay -= 1 }
}
"""
_SETTLE: Final = """(async () => {
  for (let quiet = 0; quiet < 3; quiet = window.underWay ? 0 : quiet + 1) {
    await new Promise((done) => setTimeout(done, 20))
  }
})()"""


class Tab:
    """One tab on a page. `trouble` are console messages that a test has provoked, and does not want to hear of."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        page._ask("Page.addScriptToEvaluateOnNewDocument", source=_COUNT_REQUESTS)

    def open(self, view: str = "", *, scheme: str = "light") -> None:
        """Load the page anew."""
        self.page.open("about:blank")
        self.page.open(f"{self.address}#/{view}", scheme=scheme)

    def log_in(self, token: str, view: str = "") -> None:
        """Begin a session, after whatever there was."""
        self.page._ask("Network.clearBrowserCookies")
        self.open(view)
        self.fill("Token", token)
        self.press("Log in")
        self.until("!document.getElementById('viewer').hidden")
        self.settle()

    def go(self, view: str) -> None:
        """Open a view, and wait until it has what it asks for."""
        self.page.evaluate(f"location.hash = {json.dumps('#/' + view)}")
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is asked for any more."""
        self.page.evaluate(_SETTLE)

    def press(self, name: str) -> None:
        """Press the button or the link of this name."""
        self.until(f"(() => {{ {_FIND}; const one = named({json.dumps(name)}); return one && !one.disabled }})()")
        self.page.evaluate(f"(() => {{ {_FIND}; const one = named({json.dumps(name)}); one.focus(); one.click() }})()")
        self.settle()

    def has(self, name: str, *, enabled: bool = False) -> bool:
        """Tell whether there is such a button or link."""
        rest = " && !one.disabled" if enabled else ""
        return bool(self.page.evaluate(
            f"(() => {{ {_FIND}; const one = named({json.dumps(name)}); return Boolean(one){rest} }})()"
        ))  # fmt: skip

    def fill(self, label: str, text: str) -> None:
        """Type into a field, or choose."""
        self.until(f"(() => {{ {_FIND}; return labelled({json.dumps(label)}) }})()")
        self.page.evaluate(f"""(() => {{ {_FIND}
          const one = labelled({json.dumps(label)})
          one.focus(); one.value = {json.dumps(text)}
          for (const kind of ["input", "change"]) one.dispatchEvent(new Event(kind, {{bubbles: true}}))
        }})()""")

    def key(self, key: str, code: int = 0) -> None:
        """Press a key."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": code, "text": "\r" if key == "Enter" else ""}
        for kind in ("keyDown", "keyUp"):
            self.page._ask("Input.dispatchKeyEvent", type=kind, **pressed)

    def column(self, title: str) -> set[str]:
        """What stands in a column of the last table that has it."""
        cells = f"table.querySelectorAll('td[data-title={title}]')"
        return set(
            self.page.evaluate(f"""(() => {{
          const table = [...document.querySelectorAll("table")].filter((table) => {cells}.length).at(-1)
          return table ? [...{cells}].map((cell) => cell.textContent) : []
        }})()""")
        )

    @property
    def text(self) -> str:
        """What can be read."""
        return str(self.page.evaluate("document.body.innerText"))

    def reads(self, *texts: str) -> None:
        """Wait until all of this can be read."""
        for text in texts:
            self.until(f"document.body.innerText.includes({json.dumps(text)})", text)

    def shows(self, *quotas: str) -> None:
        """Wait until these quotas can be read, and draw the view again where they cannot: while the directory is late,
        it is the policies' own that hold."""
        until = time.monotonic() + WITHIN_S
        while not all(quota in self.text for quota in quotas):
            assert time.monotonic() < until, f"{quotas} did not come about in:\n{self.text[:900]}"
            self.page.evaluate("window.dispatchEvent(new Event('hashchange'))")
            self.settle()

    def until(self, condition: str, what: str = "") -> None:
        """Wait until something holds."""
        until = time.monotonic() + WITHIN_S
        while not self.page.evaluate(f"Boolean({condition})"):
            assert time.monotonic() < until, (
                f"{what or condition} did not come about in:\n{self.text[:900]} … {self.text[-900:]}"
            )
            time.sleep(0.05)

    def nothing_ran(self) -> None:
        """Assert that nothing stored has run, and that the console is silent: no violation of the CSP either."""
        assert self.page.evaluate("window.ran === undefined && !document.querySelector('script:not([src])')")
        found = self.page.complaints
        assert not found, found

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or worse."""
        self.page.evaluate(AXE.read_text(encoding="utf-8") + "; 0")
        found: list[dict[str, Any]] = self.page.evaluate("axe.run(document).then((found) => found.violations)")
        return [
            f"{one['id']}: {one['help']}: {[node['html'][:200] for node in one['nodes']][:3]}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]
