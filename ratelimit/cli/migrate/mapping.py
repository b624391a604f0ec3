"""`ratelimit migrate mapping`: the mapping that holds, as a file to begin one's own from."""

# No postponed annotations in the commands: typer reads them when the program runs.
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from ratelimit.cli.output import say


def mapping(
    file: Annotated[
        Path | None, typer.Option("--mapping", metavar="FILE", help="One's own; by default the built-in one.")
    ] = None,
) -> None:
    """Print the mapping as TOML: which tables and columns mean what. The first name of a list that exists is taken.

    Example:

        ratelimit migrate mapping > mapping.toml
    """
    from ratelimit.migrate import read_mapping

    found = read_mapping(file)
    for section in ("events", "users", "plans"):
        part = getattr(found, section)
        say(f"[{section}]")
        for each in fields(part):
            if each.name != "quotas":
                say(f"{each.name} = {_toml(getattr(part, each.name))}")
        if quotas := getattr(part, "quotas", None):
            say(f"\n[{section}.quotas]")
            for action, column in quotas.items():
                say(f"{_toml(action)} = {_toml(column)}")
        say("")
    say("[actions]")
    for old, new in found.actions.items():
        say(f"{_toml(old)} = {_toml(new)}")


def _toml(value: str | tuple[str, ...]) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
