"""What the migration commands share: options, and the way from a command line to a source and a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ratelimit.cli.output import note
from ratelimit.cli.settings import load
from ratelimit.config import masked
from ratelimit.errors import InvalidInput, StoreMisconfigured, StoreUnavailable
from ratelimit.wiring import table_settings

if TYPE_CHECKING:
    from ratelimit.migrate import Order

SourceArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="mysql://…, postgresql://…, sqlite:///FILE, a JSON, JSONL or CSV file (.gz too) or a folder of them, "
        "earlier://TABLE?… or dynamodb://TABLE?…",
        show_default=False,
    ),
]
EntityOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--entity", metavar="NAME", help="plans, users, events or counters; may be repeated. By default all."),
]
MappingOption: TypeAlias = Annotated[
    Path | None,
    typer.Option("--mapping", metavar="FILE", help="Other tables and columns: `ratelimit migrate mapping`."),
]
EncodingOption: TypeAlias = Annotated[
    str, typer.Option("--encoding", metavar="NAME", help="Of text files: latin-1, cp1252, utf-16, …")
]
WorkDirOption: TypeAlias = Annotated[
    Path, typer.Option(metavar="DIR", help="For the checkpoint, the rejected rows, and what a run has written.")
]
AnyActionOption: TypeAlias = Annotated[
    bool, typer.Option("--any-action", help="Take actions that no policy names, too.")
]


def ordered(
    source: str,
    *,
    store: str | None,
    config: Path | None,
    mapping: Path | None,
    entities: list[str] | None,
    **options: Any,
) -> Order:
    """What a command line asks for. Raises `ConfigError`."""
    # Imported here: AWS's client and SQLAlchemy take their time, and `--help` does not need them.
    from ratelimit.migrate import Order, read_mapping

    settings = load(config, store)
    return Order(
        source=source,
        target=table_settings(settings.store),
        config=settings,
        mapping=read_mapping(mapping),
        entities=tuple(entities or ()),
        **options,
    )


@contextmanager
def explained(spec: str, *, resumable: bool) -> Iterator[None]:
    """A file that cannot be used is bad input; what broke off says how to go on."""
    hint = "; the same command goes on where it stopped" if resumable else ""
    try:
        yield
    except OSError as error:
        raise InvalidInput(f"{error.filename or masked(spec)}: {error.strerror or error}{hint}") from None
    except StoreMisconfigured:
        raise
    except (StoreUnavailable, KeyboardInterrupt):
        if resumable:
            note("not complete; the same command goes on where it stopped")
        raise
