"""Every block of code in the README and in `docs/` is true: Python runs, TOML loads, commands are understood."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from codeop import CommandCompiler
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from _pytest.mark import ParameterSet

from docs.hooks.commands import commands, program
from ratelimit.factory import load_checked
from tests.cli.command import Command
from tests.cli.command import ratelimit as ratelimit
from tests.docs.pages import (
    PAGES,
    ROOT,
    Block,
    Line,
    awaits,
    blocks,
    command_lines,
    lay_out,
    run,
    shown_lines,
    text_of,
    unquoted,
)
from tests.engines import Engine

# Pages whose commands need more than an empty table; each is named in the test that carries them out.
ELSEWHERE = {
    "docs/cost.md": "tests/cli/test_table_docs.py",
    "docs/migration.md": "tests/migrate",
    "docs/regions.md": "tests/regions/test_processes.py",
    "docs/table.md": "tests/cli/test_table_docs.py",
    "docs/testing.md": "tests/testing/test_limits.py",
    "docs/usage.md": "tests/usage/test_docs.py",
}


def _marked(block: Block) -> Block | ParameterSet:
    """What starts an engine starts a program."""
    return pytest.param(block, marks=pytest.mark.process) if "testing.engines" in block.text else block


PYTHON = [_marked(block) for block in blocks("python") if block.page != "docs/testing.md"]


@pytest.mark.parametrize("block", PYTHON, ids=str)
async def test_python_runs(block: Block, tmp_path: Path) -> None:
    lay_out(block.page, tmp_path)
    await run(block)


def test_no_file_hides_a_module_of_python() -> None:
    assert [block for block in blocks("python") if Path(block.title).stem in sys.stdlib_module_names] == []


@pytest.mark.parametrize("block", [block for block in blocks("python") if awaits(block)], ids=str)
def test_what_awaits_outside_of_a_function_can_be_typed(block: Block) -> None:
    assert "`python -m asyncio`" in text_of(block.page)
    compiler, typed = CommandCompiler(), ""
    compiler.compiler.flags |= PyCF_ALLOW_TOP_LEVEL_AWAIT
    for line in [*block.text.splitlines(), ""]:
        typed += f"\n{line}"
        typed = typed if compiler(typed) is None else ""


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml_loads(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "ratelimit.toml"
    path.write_text(block.text, encoding="utf-8")
    config = load_checked(path, env={})
    assert len(config.policies) == len(tomllib.loads(block.text).get("policies", {}))


@pytest.mark.parametrize("block", blocks("json") + blocks("yaml"), ids=str)
def test_data_can_be_read(block: Block) -> None:
    assert json.loads(block.text) if block.language == "json" else yaml.load(block.text, yaml.CSafeLoader)


@pytest.mark.heavy
@pytest.mark.parametrize("line", [line for page in PAGES for line in command_lines(page)], ids=str)
def test_the_program_reads_the_command(line: Line) -> None:
    found: list[str] = []
    assert _without_effect(found).main(line.words[1:], prog_name="ratelimit", standalone_mode=False) is None
    assert len(found) == 1


SHOWN = shown_lines()


@pytest.mark.parametrize("place", SHOWN)
def test_every_shell_takes_the_line_as_it_is_meant(place: str) -> None:
    assert unquoted(SHOWN[place]) == ""


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("ratelimit check --store dynamodb://t?region=x", "?"),
        ("ratelimit check --store 'dynamodb://t?region=x&create=true'", ""),
        ("ratelimit check --store dynamodb://t?region=x&create=true", "?&"),
        ('pip install "ratelimit[sidecar]" && ls 2>&1 | cat &', ""),
        ("pip install ratelimit[sidecar]  # why?", "["),
        ("RATELIMIT_STORE=dynamodb://t?region=x ratelimit check it\\?", ""),
        ("aws s3 ls *.json", "*"),
    ],
)
def test_what_a_shell_takes_for_something_else(line: str, found: str) -> None:
    assert unquoted(line) == found


def _without_effect(found: list[str]) -> Any:
    """The program, in which no command does anything but say that it was called."""
    root = program()
    below = list(root.commands.values())
    while below:
        one = below.pop()
        if hasattr(one, "commands"):
            below += one.commands.values()
        else:
            one.callback = lambda **_: found.append("called")
    return root


OPTIONS = {path: {option for one in command.params for option in (*one.opts, *one.secondary_opts)}
           for path, command, _ in commands()}  # fmt: skip

# The bytes that a digest begins with.
NO_COMMANDS = {"api key"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    for words in re.findall(r"(?<!`)`ratelimit ([^`|]+)`", text_of(page)):
        path = "ratelimit"
        for word in words.split():
            if f"{path} {word}" not in OPTIONS:
                break
            path = f"{path} {word}"
        assert path != "ratelimit" or words.startswith("-") or words in NO_COMMANDS, words
        # What a group of commands has in common may be said of the group.
        known = set().union(*(options for name, options in OPTIONS.items() if f"{name} ".startswith(f"{path} ")))
        assert set(re.findall(r"(?<!\S)--[a-z-]+", words)) <= known | {"--help"}, words


@pytest.mark.parametrize("page", PAGES)
def test_targets_in_the_text_exist(page: str) -> None:
    targets = set(re.findall(r"(?m)^([a-z][a-z-]*)\b[^=\n]*:", (ROOT / "Makefile").read_text(encoding="utf-8")))
    asked = set(re.findall(r"(?:`|^    )make ([a-z][a-z-]*)", text_of(page), re.MULTILINE))
    assert asked <= targets


RUN_HERE = [page for page in PAGES if page not in ELSEWHERE and command_lines(page, fenced_only=True)]


@pytest.mark.parametrize("page", RUN_HERE)
def test_the_commands_run(
    page: str, ratelimit: Command, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, on a table of their own, in a folder that holds the page's configuration."""
    monkeypatch.setenv("RATELIMIT_STORE", engine.store_url(f"docs-{uuid4().hex[:8]}", create="true"))
    lay_out(page, tmp_path)
    for line in command_lines(page, fenced_only=True):
        with monkeypatch.context() as variables:
            for name, value in line.env.items():
                variables.setenv(name, value)
            status, out, err = ratelimit(*line.words[1:])
        assert (status, err) == (0, ""), line
        assert out, line


@pytest.mark.parametrize("page", ELSEWHERE)
def test_the_other_commands_are_run_by_another_test(page: str) -> None:
    where = ROOT / ELSEWHERE[page]
    files = [where] if where.is_file() else where.glob("test_*.py")
    assert any(Path(page).name in file.read_text(encoding="utf-8") for file in files)
