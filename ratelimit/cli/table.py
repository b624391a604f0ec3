"""`ratelimit table create|status|delete`: the one table, made as this project needs it."""

# No postponed annotations in the commands: typer reads them when the program runs.
import asyncio
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ratelimit.cli.output import note, say, say_fields, say_json
from ratelimit.cli.settings import ConfigOption, JsonOption, StoreOption, load
from ratelimit.errors import TableNotFound
from ratelimit.wiring import table_settings

if TYPE_CHECKING:
    from ratelimit.dynamodb import Settings, TableStatus

app = typer.Typer(help="Create, look at or delete the DynamoDB table.")

TableArgument: TypeAlias = Annotated[
    str | None,
    typer.Argument(metavar="[TABLE]", help="Its name, or its URL; by default that of --store or as configured."),
]


@app.command()
def create(
    table: TableArgument = None, store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Create the table, or complete one that is there: billing on demand, expiry, point-in-time recovery, encryption.

    May be run again at any time. What an engine for development lacks is named.

    Examples:

        ratelimit table create limits --store 'dynamodb://limits?region=eu-west-1'

        AWS_REGION=eu-west-1 ratelimit table create limits
    """
    from ratelimit.dynamodb import create_table

    status = asyncio.run(create_table(_settings(table, store, config)))
    _report(status, "created" if status.created else "was there already", as_json=as_json)


@app.command()
def status(
    table: TableArgument = None, store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """How the table stands. Exit status 3 where it does not exist or cannot be reached.

    Example:

        ratelimit table status --store 'dynamodb://limits?region=eu-west-1' --json
    """
    from ratelimit.dynamodb import table_status

    found = asyncio.run(table_status(_settings(table, store, config)))
    _report(found, found.status.lower(), as_json=as_json)


@app.command()
def delete(
    table: TableArgument = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete the table and everything in it, after asking.

    Example:

        ratelimit table delete limits --store 'dynamodb://limits?region=eu-west-1'
    """
    from ratelimit.dynamodb import delete_table, table_status

    settings = _settings(table, store, config)
    try:
        found = asyncio.run(table_status(settings))
    except TableNotFound:
        _deleted(settings.table, was_there=False, as_json=as_json)
        return
    if not yes:
        holding = f"items at the last count, some hours ago at most: {found.items}"
        typer.confirm(f"Delete table {found.name} in {found.region} ({holding})?", abort=True, err=True)
    was_there = asyncio.run(delete_table(settings))
    _deleted(found.name, was_there=was_there, as_json=as_json)


def _settings(table: str | None, store: str | None, config: ConfigOption) -> "Settings":
    """A name alone takes the rest (region, endpoint) from the store that is configured, if that has a table."""
    if table is not None and "://" in table:
        return table_settings(table)
    url = load(config, store).store
    if table is None:
        return table_settings(url)
    settings = table_settings(f"dynamodb://{table}")
    return settings if url.startswith("memory://") else replace(table_settings(url), table=settings.table)


def _report(status: "TableStatus", verdict: str, *, as_json: bool) -> None:
    if as_json:
        say_json(asdict(status))
        return
    recovery = {True: "on", False: "off", None: "not known"}[status.point_in_time_recovery]
    say(f"{status.name}: {verdict}", style="bold green")
    say_fields({
        "region": status.region,
        "endpoint": status.endpoint,
        "status": status.status,
        "keys": ", ".join(status.keys),
        "indexes": ", ".join(status.indexes) or "none",
        "billing": status.billing,
        "items": f"{status.items} ({status.size_bytes} bytes; counted every six hours or so)",
        "expiry": f"by {status.ttl}" if status.ttl else "off",
        "recovery": recovery,
        "encryption": status.encrypted_with,
    })  # fmt: skip
    if status.missing:
        note(f"it lacks {', '.join(status.missing)}")


def _deleted(name: str, *, was_there: bool, as_json: bool) -> None:
    if as_json:
        say_json({"name": name, "deleted": was_there})
    else:
        say(f"{name}: deleted" if was_there else f"{name}: there is no such table; nothing to delete")
