"""`ratelimit table create|upgrade`: the table as it is wanted, from nothing or from what is there."""

# No postponed annotations in the commands: typer reads them when the program runs.
import asyncio
from dataclasses import asdict
from typing import Annotated

import typer

from ratelimit.cli.output import note, say, say_json
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


def create(
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
) -> None:
    """Create the table, or complete one that is there: billed on demand, expiry, point-in-time recovery.

    May be run again at any time; what differs in a table that was there already is named, and `upgrade` mends it.
    What an engine for development lacks is named too.

    Examples:

        ratelimit table create limits --store 'dynamodb://limits?region=eu-west-1'

        AWS_REGION=eu-west-1 ratelimit table create limits --protect --tag team=payments

        ratelimit table create limits --read 50 --write 200 --kms-key alias/aws/dynamodb
    """
    from ratelimit.dynamodb import create_table, verify_table

    spec = spec_of(
        gsi2=gsi2, recovery=recovery, protect=protect, kms_key=kms_key, tag=tag, billing=billing, read=read, write=write
    )  # fmt: skip
    settings = settings_of(table, store, config)
    status = asyncio.run(create_table(settings, spec))
    if as_json:
        say_json(asdict(status))
    else:
        report_status(status, "created" if status.created else "was there already")
    for line in differences(asyncio.run(verify_table(settings, spec))):
        note(f"{line.name}: {line.found}; should be {line.wanted}; {line.remedy}")


def upgrade(
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
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="How long to wait for each change, at most.")] = 600,
    as_json: JsonOption = False,
) -> int:
    """Mend what `verify` finds, as far as it can be mended in place; says what cannot. Takes the options of `create`.

    Turns on what is off, makes the index that is missing, and changes billing, encryption, protection and tags as the
    options say; what they do not name stays. Exit status 1 where a difference is left.

    Examples:

        ratelimit table upgrade limits

        ratelimit table upgrade limits --gsi2 --wait 3600

        ratelimit table upgrade limits --no-protect
    """
    from ratelimit.dynamodb import upgrade_table

    spec = spec_of(
        gsi2=gsi2, recovery=recovery, protect=protect, kms_key=kms_key, tag=tag, billing=billing, read=read, write=write
    )  # fmt: skip
    settings = settings_of(table, store, config)
    upgraded = asyncio.run(upgrade_table(settings, spec, tell=note, within=wait))
    if as_json:
        say_json({"name": settings.table, **asdict(upgraded)})
    else:
        done = f"{len(upgraded.mended)} mended, " if upgraded.mended else ""
        say(f"{settings.table}: {done}{in_short(upgraded.lines)}", style="bold")
        report_lines(upgraded.lines)
    return status_of(upgraded.lines)
