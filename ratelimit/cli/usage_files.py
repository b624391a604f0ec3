"""`ratelimit usage export|import|erase`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ratelimit.cli.options import ConfigOption, JsonOption, StoreOption
from ratelimit.cli.output import REFUSED, note, say, say_json
from ratelimit.cli.usage_options import (
    ActionOption,
    AllowedOption,
    PartsOption,
    SinceOption,
    UntilOption,
    UserArgument,
    name_of_store,
    run,
    to_moment,
)
from ratelimit.config import Config
from ratelimit.errors import InvalidInput, StoreUnavailable
from ratelimit.names import check_user
from ratelimit.store import TableStore
from ratelimit.usage import UsageLog
from ratelimit.usage.erasing import Erased
from ratelimit.usage.export import export_events
from ratelimit.usage.formats import FORMATS, Csv, FormatName, Jsonl
from ratelimit.usage.importing import OnError, import_events
from ratelimit.usage.lines import LineFormat
from ratelimit.usage.sinks import Asked, Checkpoint, File, Sink, Stream

# Progress of long work: on stderr, and only where somebody looks at it.


@contextmanager
def bar(verb: str, *, size: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """Call it with the events and the bytes so far; `size` is how many bytes there will be, where that is known."""
    if not sys.stderr.isatty():
        yield lambda events, done: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn(verb),
        *(() if size is None else (BarColumn(),)),
        TextColumn("{task.fields[events]:,} events, {task.fields[rate]}/s, {task.fields[shown]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(verb, total=size, events=0, rate="-", shown="")
        before: int | None = None

        def update(events: int, done: int) -> None:
            nonlocal before
            before = events if before is None else before  # an export that is gone on with did not begin at 0
            elapsed = progress.tasks[0].elapsed or 0.0
            rate = f"{(events - before) / elapsed:,.0f}" if elapsed > 1 else "-"
            progress.update(task, completed=done, events=events, rate=rate, shown=decimal(done))

        yield update


# No postponed annotations in the commands: typer reads them when the program runs.


_STDOUT = Path("-")
_SUFFIXES: dict[str, FormatName] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}


def export(
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Replaced when all is written; - is standard output.")
    ] = _STDOUT,
    format: Annotated[
        str | None, typer.Option(help="jsonl, csv or parquet; by default as FILE ends, and else jsonl.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only this user's, newest first.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    action: ActionOption = None,
    allowed: AllowedOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an export to FILE that was interrupted.")
    ] = False,
    parts: PartsOption = 1,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Write events to a file, or to standard output: all of them, or a user's.

    Everybody's events come in no order, and READ THE WHOLE TABLE: one read unit for 4 KB of it, some 0.03 USD for a GB.

    Until it is complete, FILE is FILE.part, and FILE.checkpoint says how far it came: the same command with --resume
    goes on from there. A Parquet file cannot be gone on with. In CSV, a text that a spreadsheet would run as a formula
    (=, +, -, @) has a ' before it; import takes it off again.

    Examples:

        ratelimit usage export --out events.csv --since 2026-01-01 --until 2026-01-31

        ratelimit usage export --user alice | jq .resource
    """
    chosen = _format(format, out)
    asked = Asked(
        store=name_of_store(store, config),
        format=chosen,
        user=user,
        since=_ms(to_moment("--since", since)),
        until=_ms(to_moment("--until", until, end=True)),
        action=action,
        allowed=allowed,
        parts=parts,
    )
    sink = _sink(chosen, out, resume=resume)
    try:
        with _explained(out, resumable=isinstance(sink, File)), bar("exporting") as progress:
            done = run(
                lambda table, _: export_events(table, asked, sink, progress=progress), store=store, config=config
            )
    except BrokenPipeError:  # whoever was reading, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return REFUSED
    _report_export(done, out, as_json=as_json)
    return 0


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, CSV or Parquet.", show_default=False)],
    format: Annotated[LineFormat | None, typer.Option(help="By default as FILE ends.")] = None,
    on_error: Annotated[
        OnError,
        typer.Option(help="stop: a bad line, and nothing is written. skip: bad lines go to FILE.rejected."),
    ] = "stop",
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Put the events of a file into the table. May be repeated: the same event is there once.

    Every line needs user, action, and time (or at, in milliseconds). One without an id gets one made of what it says.
    Lines that contradict themselves or one another (one id with two costs) are bad.
    Only events are written; the counters, and so totals and summaries, stay as they are.

    Exit status: 0 all lines are in the table, 1 some were rejected (with skip), 2 nothing was written.

    Examples:

        ratelimit usage import events.jsonl

        ratelimit usage import old-log.csv --on-error skip
    """
    with _explained(file), bar("importing", size=_size(file)) as heard:
        done = run(
            lambda table, _: import_events(table.events, file, format=format, on_error=on_error, heard=heard),
            store=store,
            config=config,
        )
    if as_json:
        rejects = None if done.rejects is None else str(done.rejects)
        say_json({"events": done.events, "rejected": done.rejected, "rejects": rejects})
    else:
        say(f"{done.events:,} events of {file} are in the table" if done.events else f"{file} held no events")
    if done.rejected:
        note(f"{done.rejected:,} lines were rejected; they are in {done.rejects}, with the reasons")
    return REFUSED if done.rejected else 0


def erase(
    user: UserArgument,
    action: Annotated[
        list[str] | None, typer.Option("--action", help="With --quick: erase the counters of this action too.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read the whole table: only what is found by its key.")
    ] = False,
    journal: Annotated[
        Path | None, typer.Option("--journal", metavar="DIR", help="By default the journal that `usage` is set to.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Delete every trace of a user, after asking: events, counters, the entry in the directory, e-mails and API keys.

    It READS THE WHOLE TABLE (and the mirror): one read unit for 4 KB of it, some 0.03 USD for a GB. With --quick it
    does not, and leaves the counters of actions that no policy, no plan, no event and no --action names.

    A journal on this machine is looked through as well: run it on each machine that has one. Where it is interrupted,
    repeat it. To remove the entry alone, and keep what was used: `ratelimit user remove`.

    Exit status: 0 nothing of the user is left, 1 a damaged file of the journal is left to be looked at.

    Example:

        ratelimit usage erase alice --yes
    """
    user = check_user(user)
    if not yes:
        typer.confirm(f"Erase all of {user}: events, counters, the entry in the directory?", abort=True, err=True)
    if journal is not None and not journal.is_dir():
        raise InvalidInput(f"--journal: {journal} is no directory")

    async def work(_: TableStore, log: UsageLog) -> Erased:
        try:
            return await log.erase(user, actions=action or (), quick=quick)
        finally:
            await log.close()

    looked: list[Path | None] = []

    def make(settings: Config, table: TableStore) -> UsageLog:
        directory = journal or _journal_of(settings)
        looked.append(directory)
        return UsageLog(
            table, actions=[policy.name for policy in settings.policies], journal_dir=directory, when_full="wait"
        )

    with bar("erasing"):
        erased = run(work, store=store, config=config, make=make)
    if as_json:
        say_json({"user": user, "erased": int(erased), "found": erased.found, "left": erased.left})
    else:
        say(_said_of(user, erased, quick=quick, journal=looked[0]))
    for file in erased.left:
        note(f"{file} is damaged, and names the user: what is in it is not written any more; look at it and delete it")
    return REFUSED if erased.left else 0


_NAMES: dict[str, str] = {
    "events": "events",
    "event_ids": "ids of events",
    "counters": "counters",
    "entries": "entries in the directory",
    "identities": "e-mails and API keys",
    "journal": "events in the journal",
}


def _journal_of(settings: Config) -> Path | None:
    """The one that is configured, if it is there."""
    durability, _, directory = settings.usage.partition(":")
    return Path(directory) if durability == "journal" and Path(directory).is_dir() else None


def _said_of(user: str, erased: Erased, *, quick: bool, journal: Path | None) -> str:
    found = ", ".join(f"{_NAMES[what]} {count:,}" for what, count in erased.found.items())
    said = f"{user}: {erased:,} items erased ({found})" if erased else f"{user}: nothing to erase"
    where = "found by key, the rest of the table was not read (--quick)" if quick else "the whole table was read"
    return f"{said}; {where}, " + ("no journal" if journal is None else f"and the journal in {journal}")


def _format(format: str | None, out: Path) -> FormatName:
    if format is None:
        return _SUFFIXES.get(out.suffix.lower(), "jsonl")
    if format not in FORMATS:
        raise InvalidInput(f"--format: unknown value {format!r}; use one of {', '.join(FORMATS)}")
    return format


def _sink(format: FormatName, out: Path, *, resume: bool) -> Sink:
    if resume and (out == _STDOUT or format == "parquet"):
        what = "standard output" if out == _STDOUT else "a Parquet file"
        raise InvalidInput(f"--resume: {what} cannot be gone on with; leave it out, or export to a JSONL or CSV file")
    if format == "parquet":
        from ratelimit.usage.parquet import ParquetFile

        if out == _STDOUT:
            raise InvalidInput("--format: Parquet needs a file; add --out events.parquet")
        return ParquetFile(out)
    encoder = Csv() if format == "csv" else Jsonl()
    return Stream(sys.stdout.buffer, encoder) if out == _STDOUT else File(out, encoder, resume=resume)


@contextmanager
def _explained(file: Path, *, resumable: bool = False) -> Iterator[None]:
    """A file that cannot be used is bad input; an export that broke off says how to go on."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise InvalidInput(f"{error.filename or file}: {error.strerror or error}{_again(resumable)}") from None
    except StoreUnavailable:
        if resumable:
            note(f"{file} is not complete{_again(resumable)}")
        raise
    except KeyboardInterrupt:
        note(f"{file} is not complete{_again(resumable)}")
        raise


def _again(resumable: bool) -> str:
    return "; the same command with --resume goes on where it broke off" if resumable else ""


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except OSError:
        return None


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.timestamp() * 1000)


def _report_export(done: Checkpoint, out: Path, *, as_json: bool) -> None:
    if out == _STDOUT:
        return
    if as_json:
        say_json({"events": done.events, "bytes": done.bytes, "file": str(out), "format": done.asked.format})
    else:
        say(f"{done.events:,} events in {out} ({done.bytes:,} bytes)")
        if not done.events:
            note("there are none in this range" + ("" if done.asked.user is None else ", or no such user"))
