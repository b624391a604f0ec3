"""`docs/table.md` and `docs/cost.md` are true: their commands run, in their order."""

from __future__ import annotations

import re
import shlex
from uuid import uuid4

import pytest

from tests.cli.command import Command
from tests.docs.pages import ROOT
from tests.engines import Engine


@pytest.fixture(scope="module")
def engine(own_engine: Engine) -> Engine:
    """See `own_engine`."""
    return own_engine


def commands(page: str) -> list[list[str]]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def test_the_tables_commands_run(ratelimit: Command, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_STORE", engine.store_url(f"docs-{uuid4().hex[:8]}"))
    lines = commands("table.md")
    assert len(lines) == 10
    for command, *words in lines:
        assert command == "ratelimit"
        status, out, err = ratelimit(*words)
        assert status == 0, (words, err)
        assert out


def test_the_costs_commands_run_and_the_figures_are_these(ratelimit: Command) -> None:
    lines = commands("cost.md")
    assert len(lines) == 3
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    for command, *words in lines:
        assert command == "ratelimit"
        assert ratelimit(*words).status == 0
    shown = [squeezed(line) for line in page.split("US dollars\n", 1)[1].splitlines() if line.startswith("     ")]
    said = [squeezed(line) for line in ratelimit(*lines[0][1:]).out.splitlines()]
    assert len(shown) == 12
    assert [line for line in shown if "─" not in line] == [line for line in said[2:14] if "─" not in line]


def squeezed(line: str) -> str:
    """How wide a table is drawn is of no interest."""
    return " ".join(line.split())
