"""`ratelimit table status|verify`: how the table stands, and whether it stands as it should."""

# No postponed annotations in the commands: typer reads them when the program runs.
import asyncio
from dataclasses import asdict

from ratelimit.cli.output import say, say_json
from ratelimit.cli.settings import ConfigOption, JsonOption, StoreOption
from ratelimit.cli.table.reports import differences, in_short, report_lines, report_status, status_of
from ratelimit.cli.table.shared import (
    BillingOption,
    Gsi2Option,
    KmsKeyOption,
    ProtectOption,
    ReadOption,
    RecoveryOption,
    TableArgument,
    TagOption,
    WriteOption,
    settings_of,
    spec_of,
)


def status(
    table: TableArgument = None, store: StoreOption = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """How the table stands. Exit status 3 where it does not exist or cannot be reached.

    Example:

        ratelimit table status --store 'dynamodb://limits?region=eu-west-1' --json
    """
    from ratelimit.dynamodb import table_status

    found = asyncio.run(table_status(settings_of(table, store, config)))
    if as_json:
        say_json(asdict(found))
    else:
        report_status(found, found.status.lower())


def verify(
    table: TableArgument = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    gsi2: Gsi2Option = False,
    recovery: RecoveryOption = True,
    protect: ProtectOption = None,
    kms_key: KmsKeyOption = None,
    tag: TagOption = None,
    billing: BillingOption = None,
    read: ReadOption = None,
    write: WriteOption = None,
    as_json: JsonOption = False,
) -> int:
    """Compare the table with what it should be, line by line; changes nothing. Takes the options of `create`.

    Exit status: 0 as it should be, 1 there are differences, 3 a missing permission hides whether there are, or the
    table cannot be reached. What an engine for development does not know is named, and no difference.

    Examples:

        ratelimit table verify limits

        ratelimit table verify limits --protect --tag team=payments --json
    """
    from ratelimit.dynamodb import verify_table

    spec = spec_of(
        gsi2=gsi2, recovery=recovery, protect=protect, kms_key=kms_key, tag=tag, billing=billing, read=read, write=write
    )  # fmt: skip
    settings = settings_of(table, store, config)
    lines = asyncio.run(verify_table(settings, spec))
    if as_json:
        say_json({
            "name": settings.table,
            "differences": len(differences(lines)),
            "lines": [asdict(line) for line in lines],
        })  # fmt: skip
    else:
        say(f"{settings.table}: {in_short(lines)}", style="bold")
        report_lines(lines)
    return status_of(lines)
