"""Options that are written once stand in every command that takes them."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_type_hints

import pytest
import typer

from ratelimit.cli.options import Configured, spread
from tests.cli.command import Command

NUMBER_OPTION = re.compile(r"\b(int|float)( \| None)?, *typer\.(Option|Argument)\(")


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--width")] = 80
    height: Annotated[int, typer.Option("--height")] = 24


@spread
def draw(*, name: str, size: Size, at: Configured, quiet: bool = False) -> str:
    return f"{name} {size.width}x{size.height} {at.store} {quiet}"


def test_a_group_of_options_stands_where_its_parameter_does() -> None:
    parameters = inspect.signature(draw).parameters
    assert list(parameters) == ["name", "width", "height", "store", "config", "quiet"]
    assert parameters["height"].default == 24
    assert get_type_hints(draw)["width"] is int


def test_the_command_is_given_the_group() -> None:
    given = {"width": 3, "height": 2, "store": "memory://", "config": None}
    assert draw(name="a", **given, quiet=True) == "a 3x2 memory:// True"


NUMBERS = [
    ("serve", "--workers", "1_0", "'1_0' is not a whole number"),
    ("serve", "--port", "٣", "'٣' is not a whole number"),
    ("serve", "--workers", "257", "257 is not between 1 and 256"),
    ("serve", "--connect-timeout", "1_0.5", "'1_0.5' is not a number"),
    ("serve", "--linger", "nan", "'nan' is not a number"),
    ("serve", "--grace", "-1", "-1.0 is not between 0 and 3,600"),
    ("table", "create", "--read", "1_0", "'1_0' is not a whole number"),
    ("table", "upgrade", "--wait", "inf", "'inf' is not a number"),
    ("migrate", "run", "sqlite:///x.db", "--batch-size", "1_000", "'1_000' is not a whole number"),
    ("migrate", "undo", "x", "--rate", "1_0", "'1_0' is not a number"),
    ("demo", "seed", "--users", "0", "0 is not between 1 and 10,000"),
    ("loadtest", "run", "--seed", " 1", "' 1' is not a whole number"),
    ("loadtest", "run", "--duration", "0", "0.0 is not 1 at least"),
]


@pytest.mark.parametrize("line", NUMBERS, ids=lambda line: " ".join(line[:-1]))
def test_a_number_is_read_as_everywhere_and_within_its_bounds(ratelimit: Command, line: tuple[str, ...]) -> None:
    *args, told = line
    status, out, err = ratelimit(*args)
    assert (status, out) == (2, "")
    assert f"'{args[-2]}': {told}; see:" in err


def test_no_option_takes_a_number_in_another_way() -> None:
    """Typer's own numbers are Python's: 1_0, nan, digits of any script."""
    files = Path("ratelimit/cli").glob("*.py")
    plain = [line for file in files for line in file.read_text().splitlines() if NUMBER_OPTION.search(line)]
    assert plain
    assert [line for line in plain if "**whole(" not in line and "**decimal(" not in line] == []
