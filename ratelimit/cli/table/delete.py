"""`ratelimit table delete`: the table and all it holds, after asking."""

# No postponed annotations in the commands: typer reads them when the program runs.
import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ratelimit.cli.output import ALLOWED, REFUSED, complain, say, say_json
from ratelimit.cli.settings import ConfigOption, JsonOption, StoreOption
from ratelimit.cli.table.shared import TableArgument, settings_of
from ratelimit.errors import TableNotFound

if TYPE_CHECKING:
    from ratelimit.dynamodb import Settings


def delete(
    table: TableArgument = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; needed where there is no terminal.")] = False,
    as_json: JsonOption = False,
) -> int:
    """Delete the table and everything in it, after asking. A protected one is refused, with exit status 1.

    Example:

        ratelimit table delete limits --store 'dynamodb://limits?region=eu-west-1'
    """
    from ratelimit.dynamodb import TableProtected, delete_table, table_status

    settings = settings_of(table, store, config)
    try:
        found = asyncio.run(table_status(settings))
        if not yes and not found.protected:
            _ask(settings, found.region)
        was_there = asyncio.run(delete_table(settings))
    except TableNotFound:
        was_there = False
    except TableProtected as error:
        return complain(error, REFUSED)
    if as_json:
        say_json({"name": settings.table, "deleted": was_there})
    else:
        say(
            f"{settings.table}: deleted"
            if was_there
            else f"{settings.table}: there is no such table; nothing to delete"
        )
    return ALLOWED


def _ask(settings: "Settings", region: str) -> None:
    from ratelimit.dynamodb import count_items

    if not sys.stdin.isatty():
        raise typer.BadParameter("there is no terminal to ask on, and nothing was deleted; add --yes")
    count, is_all = asyncio.run(count_items(settings))
    holding = f"{'' if is_all else 'at least '}{count} item{'s' * (count != 1)}"
    typer.confirm(f"Delete table {settings.table} in {region}, with {holding}?", abort=True, err=True)
