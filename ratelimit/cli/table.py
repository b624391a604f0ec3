"""`ratelimit table create|status|verify|…`: the one table, made and kept as this project needs it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Final, cast

import typer

from ratelimit.cli.options import (
    ConfigOption,
    Configured,
    StoreOption,
    YesOption,
    answering,
    as_options,
    decimal,
    whole,
)
from ratelimit.cli.output import ALLOWED, REFUSED, UNAVAILABLE, Answer, complain, confirm, note, say, say_fields
from ratelimit.config import Config
from ratelimit.errors import ConfigError, TableNotFound
from ratelimit.factory import table_settings
from ratelimit.opening import over_regions, with_timelines
from ratelimit.policy import timelines_of
from ratelimit.regions import Regions
from ratelimit.regions.home import MOVES_IN_S, HomeStore

if TYPE_CHECKING:
    from ratelimit.dynamodb import Settings, TableDiff, TableSpec, TableStatus
    from ratelimit.dynamodb.table_diff import Billing

app: Final = typer.Typer(help="Create, look at, verify, upgrade or delete the DynamoDB table.")


@dataclass(frozen=True)
class TableTarget:
    """Which table."""

    table: Annotated[
        str | None,
        typer.Argument(metavar="[TABLE]", help="Its name, or its URL; by default that of --store or as configured."),
    ] = None
    store: StoreOption = None
    config: ConfigOption = None

    def settings(self) -> Settings:
        """Return its settings, with what a configured policy needs; a URL alone asks for no configuration."""
        settings = self._named()
        if self.is_url and self.config is None:
            return settings
        return with_timelines(settings, bool(timelines_of(self._configured().policies)))

    def _named(self) -> Settings:
        """Return them as named: a name alone takes the rest from the store that is configured, if that has a table."""
        if self.table is not None and self.is_url:
            return table_settings(self.table)
        config = self._configured()
        if self.table is None:
            return table_settings(config.store, config.regions)
        if config.store.startswith("memory://"):
            return table_settings(f"dynamodb://{self.table}", config.regions)
        settings = table_settings(f"dynamodb://{self.table}")
        return replace(table_settings(config.store, config.regions), table=settings.table)

    @property
    def is_url(self) -> bool:
        """Return whether the table is named by its URL."""
        return "://" in (self.table or "")

    def regions(self) -> Regions | None:
        """Return what is configured of regions; a table's URL says all by itself."""
        return None if self.is_url else self._configured().regions

    def _configured(self) -> Config:
        return Configured(self.store, self.config).load()


@dataclass(frozen=True)
class Wanted:
    """As what the table is wanted."""

    gsi2: Annotated[
        bool, typer.Option("--gsi2", help="Also the index of an action's timeline; a policy with one asks for it.")
    ] = False
    recovery: Annotated[bool, typer.Option("--recovery/--no-recovery", help="Point-in-time recovery.")] = True
    protect: Annotated[
        bool | None, typer.Option("--protect/--no-protect", help="Against deletion; by default not asked for.")
    ] = None
    kms_key: Annotated[
        str | None,
        typer.Option("--kms-key", metavar="ARN", help="Encrypt with this key in KMS; by default with DynamoDB's own."),
    ] = None
    tag: Annotated[
        list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="May be repeated; other tags stay.")
    ] = None
    billing: Annotated[
        str | None, typer.Option("--billing", metavar="MODE", help="on-demand (default) or provisioned.")
    ] = None
    read: Annotated[int | None, typer.Option("--read", **whole(), help="Provisioned read units a second.")] = None
    write: Annotated[int | None, typer.Option("--write", **whole(), help="Provisioned write units a second.")] = None

    def spec(self) -> TableSpec:
        """Return the options as a specification; units alone mean provisioned billing. Raises `ConfigError`."""
        from ratelimit.dynamodb import TableSpec

        is_provisioned = self.billing is None and (self.read is not None or self.write is not None)
        with as_options(tags="--tag"):
            return TableSpec(
                gsi2=self.gsi2,
                recovery=self.recovery,
                protected=self.protect,
                kms_key=self.kms_key,
                tags=dict(map(_tag, self.tag or ())),
                billing=cast("Billing | None", "provisioned" if is_provisioned else self.billing),
                read=self.read,
                write=self.write,
            )


def _tag(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ConfigError("--tag", f"{text!r} is no tag; write it like team=payments")
    return name, value


@app.command()
@answering
def create(*, target: TableTarget, wanted: Wanted) -> Answer:
    """Create the table, or complete one that is there: billed on demand, expiry, point-in-time recovery.

    May be run again at any time; what differs in a table that was there already is named, and `upgrade` mends it.
    What an engine for development lacks is named too.

    Examples:

        ratelimit table create limits --store 'dynamodb://limits?region=eu-west-1'

        AWS_REGION=eu-west-1 ratelimit table create limits --protect --tag team=payments

        ratelimit table create limits --read 50 --write 200 --kms-key alias/aws/dynamodb
    """
    from ratelimit.dynamodb import create_table, verify_table

    spec, settings = wanted.spec(), target.settings()
    with as_options():
        status = asyncio.run(create_table(settings, spec))
    verdict = "created" if status.created else "was there already"
    found = differences(asyncio.run(verify_table(settings, spec)))
    notes = [f"{line.name}: {line.found}; should be {line.wanted}; {line.remedy}" for line in found]
    return Answer(asdict(status), lambda: report_status(status, verdict), notes)


@app.command()
@answering
def status(*, target: TableTarget) -> Answer:
    """How the table stands. Exit status 3 where it does not exist or cannot be reached.

    Example:

        ratelimit table status --store 'dynamodb://limits?region=eu-west-1' --json
    """
    from ratelimit.dynamodb import table_status

    found = asyncio.run(table_status(target.settings()))
    return Answer(asdict(found), lambda: report_status(found, found.status.lower()))


@app.command()
@answering
def verify(*, target: TableTarget, wanted: Wanted) -> Answer:
    """Compare the table with what it should be, line by line; changes nothing. Takes the options of `create`.

    Exit status: 0 as it should be, 1 there are differences, 3 a missing permission hides whether there are, or the
    table cannot be reached. What an engine for development does not know is named, and no difference.

    Examples:

        ratelimit table verify limits

        ratelimit table verify limits --protect --tag team=payments --json
    """
    from ratelimit.dynamodb import verify_table

    spec, settings = wanted.spec(), target.settings()
    lines = asyncio.run(verify_table(settings, spec))
    document = {"name": settings.table, "differences": len(differences(lines)), "lines": [*map(asdict, lines)]}
    return Answer(document, lambda: report_lines(f"{settings.table}:", lines), status=status_of(lines))


@app.command()
@answering
def upgrade(
    *,
    target: TableTarget,
    wanted: Wanted,
    wait: Annotated[float, typer.Option(**decimal(), help="How long to wait for each change, at most.")] = 600,
) -> Answer:
    """Mend what `verify` finds, as far as it can be mended in place; says what cannot. Takes the options of `create`.

    Turns on what is off, makes the index that is missing, and changes billing, encryption, protection and tags as the
    options say; what they do not name stays. Exit status 1 where a difference is left.

    Examples:

        ratelimit table upgrade limits

        ratelimit table upgrade limits --gsi2 --wait 3600

        ratelimit table upgrade limits --no-protect
    """
    from ratelimit.dynamodb import upgrade_table

    spec, settings = wanted.spec(), target.settings()
    upgraded = asyncio.run(upgrade_table(settings, spec, tell=note, within=wait))
    title = f"{settings.table}: {len(upgraded.mended)} mended," if upgraded.mended else f"{settings.table}:"
    document = {"name": settings.table, **asdict(upgraded)}
    return Answer(document, lambda: report_lines(title, upgraded.lines), status=status_of(upgraded.lines))


@app.command()
@answering
def regions(
    *,
    target: TableTarget,
    change: Annotated[
        bool, typer.Option("--change", help="Count as configured from now on; with every process stopped.")
    ] = False,
    away: Annotated[
        str | None,
        typer.Option(
            metavar="REGIONS|none", help="With `failover`: the regions that are to count nobody, with commas."
        ),
    ] = None,
) -> Answer:
    """How the regions of a table with replicas count, and how they are configured to; exit status 1 where that differs.

    The first process that opens the table records it there, and who is configured otherwise does not start.

    Examples:

        ratelimit table regions --config ratelimit.toml

        ratelimit table regions --config ratelimit.toml --change

        ratelimit table regions --config ratelimit.toml --away us-east-1
    """
    from ratelimit.dynamodb import regions_of_table

    settings = target.settings()
    if settings.mode is None:
        raise ConfigError("regions", "is off: set it to how the regions are to count")
    if away is not None:
        return _moved(settings, target.regions(), away)
    recorded, wanted = asyncio.run(regions_of_table(settings, change=change))
    lost = asyncio.run(_homes(settings, target.regions())) if settings.failover else []
    nobody = f"; nobody is at home in {', '.join(lost)}" if lost else ""
    said = f"{settings.table}: {recorded or 'not recorded'}; {'now' if change else 'configured is'} {wanted}{nobody}"
    document = {"name": settings.table, "recorded": recorded, "configured": wanted, "away": lost}
    same = change or recorded in (None, wanted)
    return Answer(document, lambda: say(said), status=ALLOWED if same else REFUSED)


def _moved(settings: Settings, regions: Regions | None, away: str) -> Answer:
    moved = asyncio.run(_homes(settings, regions, [] if away == "none" else away.split(",")))
    who = "every region is a home again" if away == "none" else f"nobody is at home in {away}"
    told = f"{settings.table}: {who}; who is moved is counted again in {MOVES_IN_S:g} seconds"
    return Answer({"name": settings.table, "away": moved}, lambda: say(told))


async def _homes(settings: Settings, regions: Regions | None, away: list[str] | None = None) -> list[str]:
    """Return the regions that count nobody, which may be told so before."""
    from ratelimit.dynamodb import DynamoDBStore

    store = over_regions(settings, regions, DynamoDBStore)
    if not isinstance(store, HomeStore) or store.homes is None:
        raise ConfigError("regions.failover", "is off, and without it no process would stop counting where it does")
    try:
        if away is not None:
            await store.homes.move(away)
        await store.homes.ask()
        return store.homes.away
    finally:
        await store.close()


@app.command()
@answering
def sweep(*, target: TableTarget) -> Answer:
    """Delete what has expired, where the table does not do it by itself. Reads the whole table; may be repeated.

    A table that is strongly consistent over its regions has no expiry: run this once a day.

    Example:

        ratelimit table sweep limits
    """
    from ratelimit.dynamodb import sweep_table

    settings = target.settings()
    swept = asyncio.run(sweep_table(settings))
    said = f"{settings.table}: {swept} expired item{'s' * (swept != 1)} deleted"
    return Answer({"name": settings.table, "swept": swept}, lambda: say(said))


@app.command()
@answering
def delete(*, target: TableTarget, yes: YesOption = False) -> Answer:
    """Delete the table and everything in it, after asking. A protected one is refused, with exit status 1.

    Example:

        ratelimit table delete limits --store 'dynamodb://limits?region=eu-west-1'
    """
    from ratelimit.dynamodb import TableProtected, delete_table, table_status

    settings = target.settings()
    try:
        found = asyncio.run(table_status(settings))
        if not yes and not found.protected:
            _ask(settings, found.region)
        was_there = asyncio.run(delete_table(settings))
    except TableNotFound:
        was_there = False
    except TableProtected as error:
        raise typer.Exit(complain(error, REFUSED)) from None
    said = "deleted" if was_there else "there is no such table; nothing to delete"
    return Answer({"name": settings.table, "deleted": was_there}, lambda: say(f"{settings.table}: {said}"))


def _ask(settings: Settings, region: str) -> None:
    from ratelimit.dynamodb import count_items

    count, is_all = asyncio.run(count_items(settings))
    holding = f"{'' if is_all else 'at least '}{count} item{'s' * (count != 1)}"
    confirm(f"Delete table {settings.table} in {region}, with {holding}?", yes=False)


# How a table's status and its comparison are shown.

_STYLES: Final = {"ok": "green", "differs": "bold red", "unknown": "yellow", "not asked for": "dim"}


def report_status(status: TableStatus, verdict: str) -> None:
    """Print all of it, and below what it lacks."""
    unknown = status.unknown
    recovery = {True: "on", False: "off", None: unknown.get("recovery", "not known")}
    units = f", {status.read_units} read and {status.write_units} write units a second" if status.read_units else ""
    expiry = f"by {status.ttl}" if status.ttl else unknown.get("expiry", "off")
    tags = [f"{name}={value}" for name, value in (status.tags or {}).items()]
    say(f"{status.name}: {verdict}", style="bold green")
    say_fields({
        "region": status.region,
        "endpoint": status.endpoint,
        "status": status.status,
        "keys": ", ".join(status.keys),
        "indexes": ", ".join(status.indexes) or "none",
        "billing": status.billing + units,
        "items": f"{status.items} ({status.size_bytes} bytes; counted every six hours or so)",
        "expiry": expiry,
        "recovery": recovery[status.point_in_time_recovery],
        "encryption": status.encrypted_with,
        "protection": "on" if status.protected else "off",
        "tags": ", ".join(tags) or unknown.get("tags", "none"),
    })  # fmt: skip
    if status.missing:
        note(f"it lacks {', '.join(status.missing)}")


def report_lines(title: str, lines: Sequence[TableDiff]) -> None:
    """Print all in short, and a line each: the verdict, the part, what is, what should be, what to do."""
    found, unknown = len(differences(lines)), sum(line.verdict == "unknown" for line in lines)
    text = f"{found} difference{'s' * (found != 1)}" if found else "as it should be"
    say(f"{title} {text}, {unknown} not known" if unknown else f"{title} {text}", style="bold")
    width = max(len(line.name) for line in lines)
    for line in lines:
        text = line.found if line.verdict in ("ok", "not asked for") else f"{line.found}; should be {line.wanted}"
        remedy = f"\n  {'':13}  {'':{width}}  {line.remedy}" if line.remedy else ""
        say(f"  {line.verdict:<13}  {line.name:<{width}}  {text}{remedy}", style=_STYLES[line.verdict])


def differences(lines: Sequence[TableDiff]) -> list[TableDiff]:
    """Return those that are not as they should be."""
    return [line for line in lines if line.verdict == "differs"]


def status_of(lines: Sequence[TableDiff]) -> int:
    """Return the exit status: 1 for a difference, 3 where a missing permission hides whether there is one."""
    if differences(lines):
        return REFUSED
    return UNAVAILABLE if any(line.permission for line in lines) else ALLOWED
