"""Options that several commands share, and the configuration they lead to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from ratelimit.config import Config
from ratelimit.factory import load_checked
from ratelimit.numerals import to_int

StoreOption: TypeAlias = Annotated[
    str | None,
    typer.Option("--store", metavar="URL", help="memory:// or dynamodb://TABLE?region=…; by default as configured."),
]
ConfigOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="The TOML file; by default the one that RATELIMIT_CONFIG names."),
]
JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def whole(text: str | int) -> int:
    """Read an option: `typer.Option(parser=whole, metavar="INTEGER")`. A default comes as it is."""
    try:
        return to_int(text) if isinstance(text, str) else text
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def load(path: Path | None, store: str | None = None) -> Config:
    """The configuration; a store named on the command line goes over `RATELIMIT_STORE` too. Raises `ConfigError`."""
    if store is None:
        return load_checked(path)
    env = {name: value for name, value in os.environ.items() if name != "RATELIMIT_STORE"}
    return load_checked(path, env=env, store=store)
