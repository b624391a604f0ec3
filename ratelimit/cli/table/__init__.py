"""`ratelimit table create|status|verify|upgrade|delete`: the one table, made and kept as this project needs it."""

from __future__ import annotations

from typing import Final

import typer

from ratelimit.cli.table.delete import delete
from ratelimit.cli.table.looking import status, verify
from ratelimit.cli.table.making import create, upgrade

app: Final = typer.Typer(help="Create, look at, verify, upgrade or delete the DynamoDB table.")
for command in (create, status, verify, upgrade, delete):
    app.command()(command)

__all__ = ["app"]
