"""`docs/table.md` and `docs/cost.md` are true: their commands run, in their order."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.cli.command import Command
from tests.docs.pages import command_lines, text_of
from tests.engines import Engine


@pytest.fixture(scope="module")
def engine(own_engine: Engine) -> Engine:
    """See `own_engine`."""
    return own_engine


def test_the_tables_commands_run(ratelimit: Command, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_STORE", engine.store_url(f"docs-{uuid4().hex[:8]}"))
    lines = command_lines("docs/table.md", fenced_only=True)
    assert len(lines) == 10
    for line in lines:
        status, out, err = ratelimit(*line.words[1:])
        assert status == 0, (str(line), err)
        assert out


def test_the_costs_commands_run_and_the_figures_are_these(ratelimit: Command) -> None:
    lines = command_lines("docs/cost.md", fenced_only=True)
    assert len(lines) == 3
    page = text_of("docs/cost.md")
    for line in lines:
        assert ratelimit(*line.words[1:]).status == 0
    shown = [squeezed(line) for line in page.split("US dollars\n", 1)[1].splitlines() if line.startswith("     ")]
    said = [squeezed(line) for line in ratelimit(*lines[0].words[1:]).out.splitlines()]
    assert len(shown) == 12
    assert [line for line in shown if "─" not in line] == [line for line in said[2:14] if "─" not in line]


def squeezed(line: str) -> str:
    """How wide a table is drawn is of no interest."""
    return " ".join(line.split())
