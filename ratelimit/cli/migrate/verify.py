"""`ratelimit migrate verify`: is it all there?"""

# No postponed annotations in the commands: typer reads them when the program runs.
import asyncio
from pathlib import Path
from typing import Annotated

import typer

from ratelimit.cli.migrate.progress import progress
from ratelimit.cli.migrate.report import say_verdict
from ratelimit.cli.migrate.shared import (
    AnyActionOption,
    EncodingOption,
    EntityOption,
    MappingOption,
    SourceArgument,
    explained,
    ordered,
)
from ratelimit.cli.output import REFUSED
from ratelimit.cli.settings import ConfigOption, JsonOption, StoreOption


def verify(
    source: SourceArgument,
    entity: EntityOption = None,
    batch_size: Annotated[int, typer.Option(help="Rows read at a time.")] = 1000,
    more_is_fine: Annotated[
        bool, typer.Option("--more-is-fine", help="The table is in use already: what it has besides is no difference.")
    ] = False,
    mapping: MappingOption = None,
    any_action: AnyActionOption = False,
    encoding: EncodingOption = "utf-8",
    work_dir: Annotated[Path, typer.Option(metavar="DIR", help="For a scratch file.")] = Path("."),
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Compare source and table, both ways: counts and ids per user, day and action, a sample of events in whole, every
    user and plan, and every counter. Reads both sides completely; give the options that the run had.

    Exit status: 0 all of it is there, 1 it is not, 2 bad input, 3 source or table unavailable.

    Examples:

        ratelimit migrate verify mysql://app@db/app

        ratelimit migrate verify usage.jsonl --entity events --more-is-fine
    """
    order = ordered(
        source, store=store, config=config, mapping=mapping, entities=entity, any_action=any_action,
        batch_size=batch_size, encoding=encoding, work_dir=work_dir,
    )  # fmt: skip
    from ratelimit import migrate

    with explained(source, resumable=False), progress() as tell:
        verdict = asyncio.run(migrate.verify(order, listener=tell, more_is_fine=more_is_fine))
    say_verdict(verdict, as_json=as_json)
    return 0 if verdict.same else REFUSED
