"""Options that are written once stand in every command that takes them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, get_type_hints

import typer

from ratelimit.cli.options import Configured, spread


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
