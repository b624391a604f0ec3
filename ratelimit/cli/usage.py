"""`ratelimit usage …`: ask the usage log, take it out, bring it in, erase a user."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import typer

from ratelimit import numerals
from ratelimit.algorithms.fields import Per
from ratelimit.cli.options import Configured, YesOption, answering, whole
from ratelimit.cli.output import ALLOWED, REFUSED, Answer, confirm, explained, note, say, say_rows
from ratelimit.cli.progress import progress_bar
from ratelimit.clock import SystemClock
from ratelimit.config import Config, masked
from ratelimit.errors import InvalidInput
from ratelimit.names import check_user
from ratelimit.policy import timelines_of
from ratelimit.store import TableStore
from ratelimit.usage import EventPage, UsageLog
from ratelimit.usage.export import ExportCheckpoint, ExportQuery, File, Sink, StreamSink, export_events
from ratelimit.usage.formats import SUFFIXES, Csv, FormatName, Jsonl, document, text_of_time
from ratelimit.usage.importing import OnError, import_events
from ratelimit.usage.reports import DATE_RANGE, Erased, Reports

app: Final = typer.Typer(
    help="The usage log: events and exact totals, read, exported, imported, erased.",
    epilog="Days are UTC. Events are kept for 90 days, daily totals for 35.",
)
T = TypeVar("T")

UserArgument: TypeAlias = Annotated[str, typer.Argument(metavar="USER", help="Whose.", show_default=False)]
SinceOption: TypeAlias = Annotated[
    str | None, typer.Option("--since", metavar="DAY|TIME", help="2026-01-05 or 2026-01-05T12:00:00Z, included.")
]
UntilOption: TypeAlias = Annotated[
    str | None, typer.Option("--until", metavar="DAY|TIME", help="A day is included, a time is not.")
]
SinceDayOption: TypeAlias = Annotated[
    str | None, typer.Option("--since", metavar="DAY", help="2026-01-05, today or yesterday, included.")
]
UntilDayOption: TypeAlias = Annotated[str | None, typer.Option("--until", metavar="DAY", help="Included.")]
ActionOption: TypeAlias = Annotated[str | None, typer.Option("--action", help="Of this action only.")]
AllowedOption: TypeAlias = Annotated[
    bool | None, typer.Option("--allowed/--denied", help="Of this answer only.", show_default=False)
]
PartsOption: TypeAlias = Annotated[int, typer.Option(**whole(), help="Parts of the table read side by side, up to 64.")]
DayOption: TypeAlias = Annotated[
    str, typer.Option("--day", metavar="DAY", help="2026-01-05, today or yesterday.", show_default=False)
]
_STDOUT = Path("-")
_UNKNOWN: Final = "or is not known"
_RESUME: Final = "the same command with --resume goes on where it broke off"


@dataclass(frozen=True)
class PageOptions:
    """Which events, and where to begin."""

    since: SinceOption = None
    until: UntilOption = None
    allowed: AllowedOption = None
    status: Annotated[
        int | None, typer.Option("--status", **whole(100, 599), help="With this HTTP status only.", show_default=False)
    ] = None
    resource: Annotated[str | None, typer.Option("--resource", help="Done to this only: a path.")] = None
    limit: Annotated[int, typer.Option("--limit", **whole(), help="Events at most, up to 1000.")] = 100
    cursor: Annotated[
        str | None, typer.Option("--cursor", help="Where the page before ended, as it was printed there.")
    ] = None

    def read(self) -> dict[str, Any]:
        """Return them as the reports take them. Raises `InvalidInput`."""
        since, until = to_moment("--since", self.since), to_moment("--until", self.until, end=True)
        return {**asdict(self), "since": since, "until": until}


@app.command("events")
@answering
def events(*, user: UserArgument, action: ActionOption = None, which: PageOptions, at: Configured) -> Answer:
    """A user's events, newest first.

    Examples:

        ratelimit usage events alice --since 2026-01-05 --action hint --denied

        ratelimit usage events alice --limit 1000 --json
    """
    asked = which.read()
    page = _ask(at, lambda reports: reports.events(user, action=action, **asked))
    return _answer_of(page, "action", f"no events of {user} in this range, or no such user")


@app.command("timeline")
@answering
def timeline(
    *,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="Of which action.", show_default=False)],
    which: PageOptions,
    at: Configured,
) -> Answer:
    """An action's events of all users, newest first; without --since, of the last seven days.

    It has what was written while its policy had `timeline = true`, and reads the table's index GSI2 (`ratelimit table
    upgrade --gsi2` makes it).

    Examples:

        ratelimit usage timeline hint --denied --since today

        ratelimit usage timeline hint --status 500 --resource /hints --json
    """
    asked = which.read()
    page = _ask(at, lambda reports: reports.timeline(action, **asked))
    nothing = f"no events of {action} in this range, or it had no timeline = true as they were written"
    return _answer_of(page, "user", nothing)


@app.command("summary")
@answering
def summary(
    *,
    user: UserArgument,
    days: Annotated[int, typer.Option(**whole(), help="So many days, today included; up to 35.")] = 7,
    at: Configured,
) -> Answer:
    """What a user has used in the last days, per action: the total, and the daily average. Exact.

    Example:

        ratelimit usage summary alice --days 30
    """
    report = _ask(at, lambda reports: reports.summary(user, days))
    first, last = report[DATE_RANGE]
    totals = {action: row for action, row in report.items() if action != DATE_RANGE}
    rows = [(action, row["total"], row["daily_avg"]) for action, row in totals.items() if row["total"]]

    def show() -> None:
        if rows:
            say(f"{user}, {first} to {last}")
        say_rows(
            ("action", "total", "daily average"), rows, f"{user} has used nothing from {first} to {last}, {_UNKNOWN}"
        )

    return Answer(report, show, _overlooked(at))


@app.command("totals")
@answering
def totals(
    *,
    user: UserArgument,
    since: SinceDayOption = None,
    until: UntilDayOption = None,
    action: ActionOption = None,
    per: Annotated[Per, typer.Option(help="For each of the last 35 days, or of the last 13 calendar months.")] = "day",
    at: Configured,
) -> Answer:
    """What a user has used, per action and day or month, from the limiter's own counters. Exact.

    The actions are those of the configured policies; without a configuration, those of the user's events.

    Examples:

        ratelimit usage totals alice --since 2026-01-01 --until 2026-01-31

        ratelimit usage totals alice --per month
    """
    first = None if since is None else to_day("--since", since)
    last = None if until is None else to_day("--until", until)
    actions = None if action is None else [action]
    found = _ask(at, lambda reports: reports.totals(user, first, last, per=per, actions=actions))
    document = {name: {day.isoformat(): units for day, units in days.items()} for name, days in found.items()}
    rows = [(name, day, units) for name, days in found.items() for day, units in days.items() if units]
    columns = ("action", "month, from" if per == "month" else "day", "units")
    nothing = f"{user} has used nothing in these {per}s, {_UNKNOWN}"
    return Answer(document, lambda: say_rows(columns, rows, nothing), [] if actions else _overlooked(at))


@app.command("top")
@answering
def top(
    *,
    day: DayOption,
    action: Annotated[str, typer.Option("--action", help="Of this action.", show_default=False)],
    count: Annotated[int, typer.Option(**whole(), help="So many users, up to 1000.")] = 10,
    parts: PartsOption = 4,
    at: Configured,
) -> Answer:
    """Who used an action most on a day. Exact, and it READS THE WHOLE TABLE: there is no index for it.

    That costs one read unit for 4 KB of table, about 0.03 USD for a GB on demand, whatever is found.

    Example:

        ratelimit usage top --day yesterday --action hint
    """
    chosen = to_day("--day", day)
    found = _ask(at, lambda reports: reports.top(chosen, action, count=count, parts=parts))
    document = [one._asdict() for one in found]
    nothing = f"nobody used {action} on {chosen}, as far as was counted"
    return Answer(document, lambda: say_rows(("user", "units"), found, nothing))


@app.command("reconcile")
@answering
def reconcile(*, user: UserArgument, day: DayOption, at: Configured) -> Answer:
    """A user's events of a day against the counters. A difference is what was counted and not logged.

    Refunds and what a policy does not log make one as well; below zero, more was logged than counted.

    Example:

        ratelimit usage reconcile alice --day yesterday
    """
    chosen = to_day("--day", day)
    found = _ask(at, lambda reports: reports.reconcile(user, chosen))
    document = {
        action: {"events": one.events, "total": one.total, "difference": one.difference}
        for action, one in found.items()
    }
    rows = [(name, *row.values()) for name, row in document.items()]
    nothing = f"{user} has neither events nor totals on {chosen}, {_UNKNOWN}"
    return Answer(
        document, lambda: say_rows(("action", "events", "total", "difference"), rows, nothing), _overlooked(at)
    )


@app.command("export")
@answering
def export(
    *,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Replaced when all is written; - is standard output.")
    ] = _STDOUT,
    format: Annotated[FormatName | None, typer.Option(help="By default as FILE ends, and else jsonl.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only this user's, newest first.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    action: ActionOption = None,
    allowed: AllowedOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an export to FILE that was interrupted.")
    ] = False,
    parts: PartsOption = 1,
    at: Configured,
) -> Answer:
    """Write events to a file, or to standard output: all of them, or a user's.

    Everybody's events come in no order, and READ THE WHOLE TABLE: one read unit for 4 KB of it, some 0.03 USD for a GB.

    Until it is complete, FILE is FILE.part, and FILE.checkpoint says how far it came: the same command with --resume
    goes on from there. A Parquet file cannot be gone on with. In CSV, a text that a spreadsheet would run as a formula
    (=, +, -, @) has a ' before it; import takes it off again.

    Examples:

        ratelimit usage export --out events.csv --since 2026-01-01 --until 2026-01-31

        ratelimit usage export --user alice | jq .resource
    """
    chosen = format or SUFFIXES.get(out.suffix.lower(), "jsonl")
    out = out.resolve() if out.is_file() else out  # of a link its file is replaced, and not the link
    asked = ExportQuery(
        store=masked(at.load().store), format=chosen, user=user, since=to_moment("--since", since),
        until=to_moment("--until", until, end=True), action=action, allowed=allowed, parts=parts,
    )  # fmt: skip
    done = _exported(asked, _sink(chosen, out, resume=resume), out, at)
    document = {"events": done.events, "bytes": done.bytes, "file": str(out), "format": chosen}
    notes = [] if done.events else ["there are none in this range" + ("" if user is None else ", or no such user")]
    return Answer(document, lambda: say(f"{done.events:,} events in {out} ({done.bytes:,} bytes)"), notes)


def _exported(asked: ExportQuery, sink: Sink, out: Path, at: Configured) -> ExportCheckpoint:
    """Export, and leave where that went to standard output: nothing more is to be said there."""
    try:
        with explained(str(out), _RESUME if isinstance(sink, File) else ""), progress_bar("exporting") as progress:
            done = at.run(lambda table, _: export_events(table, asked, sink, progress=progress))
    except BrokenPipeError:  # whoever was reading, `head` for one, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(REFUSED) from None
    if out == _STDOUT:
        raise typer.Exit
    return done


@app.command("import")
@answering
def import_(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL, CSV or Parquet.", show_default=False)],
    format: Annotated[FormatName | None, typer.Option(help="By default as FILE ends.")] = None,
    on_error: Annotated[
        OnError, typer.Option(help="stop: a bad line, and nothing is written. skip: bad lines go to FILE.rejected.")
    ] = "stop",
    at: Configured,
) -> Answer:
    """Put the events of a file into the table. May be repeated: the same event is there once.

    Every line needs user, action, and time (or at, in milliseconds). One without an id gets one made of what it says.
    Lines that contradict themselves, one another, or the table (one id with two costs) are bad.
    Only events are written; the counters, and so totals and summaries, stay as they are.

    Exit status: 0 all lines are in the table, 1 some were rejected (with skip), 2 nothing was written.

    Examples:

        ratelimit usage import events.jsonl

        ratelimit usage import old-log.csv --on-error skip
    """
    size = file.stat().st_size if file.is_file() else None
    with explained(str(file), "the same command brings the rest"), progress_bar("importing", size=size) as heard:
        done = at.run(
            lambda table, settings: import_events(
                table.events, file, format=format, on_error=on_error, timelines=timelines_of(settings.policies),
                progress=heard,
            )
        )  # fmt: skip
    rejects = None if done.rejects is None else str(done.rejects)
    document = {"events": done.events, "rejected": done.rejected, "conflicting": done.conflicting, "rejects": rejects}
    said = f"{done.events:,} events of {file} are in the table" if done.events else f"{file} held no events"
    notes = []
    if done.rejected:
        conflicts = f" ({done.conflicting:,} conflict with what is in the table)" if done.conflicting else ""
        where = f"they are in {done.rejects}, with the reasons"
        notes = [f"{done.rejected:,} lines were rejected{conflicts}; {where}", *done.first_rejected]
    return Answer(document, lambda: say(said), notes, REFUSED if done.rejected else ALLOWED)


@app.command("erase")
@answering
def erase(
    *,
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
    yes: YesOption = False,
    at: Configured,
) -> Answer:
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
    confirm(f"Erase all of {user}: events, counters, the entry in the directory?", yes=yes)
    if journal is not None and not journal.is_dir():
        raise InvalidInput(f"--journal: {journal} is no directory")
    settings = at.load()
    journal = journal or _journal_of(settings)
    with explained(f"erasing {user}", "repeat the command"), progress_bar("erasing"):
        erased = at.run(partial(_erase, user=user, actions=action or (), quick=quick, journal=journal))
    document = {"user": user, "erased": int(erased), "found": erased.found, "left": erased.left}
    notes = [
        f"{file} is damaged, and names the user: what is in it is not written any more; look at it and delete it"
        for file in erased.left
    ]
    if journal is None and settings.usage not in ("off", "memory"):
        notes.append(f"there is no {settings.usage} here, which `usage` is set to: what waits there is not erased")
    said = _said_of(user, erased, quick=quick, journal=journal)
    return Answer(document, lambda: say(said), notes, REFUSED if erased.left else ALLOWED)


async def _erase(
    table: TableStore, settings: Config, *, user: str, actions: Sequence[str], quick: bool, journal: Path | None
) -> Erased:
    known = [policy.name for policy in settings.policies]
    log = UsageLog(table, actions=known, journal_dir=journal, durability="memory", when_full="wait")
    try:
        return await log.erase(user, actions=actions, quick=quick)
    finally:
        await log.close()


def _ask(at: Configured, question: Callable[[Reports], Awaitable[T]]) -> T:
    """Return the answer of the reports on the configured table."""
    return at.run(
        lambda table, settings: question(Reports(table, [policy.name for policy in settings.policies], SystemClock()))
    )


def _overlooked(at: Configured) -> list[str]:
    """Return what to note of an answer about all of a user's actions, where no policy names any."""
    if at.load().policies:
        return []
    return ["no policies are configured (--config FILE): of actions that no event of the user names, nothing is seen"]


def _answer_of(page: EventPage, whose: Literal["user", "action"], nothing: str) -> Answer:
    columns = ("time", whose, "cost", "answer", "status", "ms", "resource", "id")
    rows = [
        (
            text_of_time(event), getattr(event, whose), event.cost, "allowed" if event.allowed else "denied",
            _or_dash(event.status), _or_dash(event.duration), _or_dash(event.resource), event.id,
        )
        for event in page.events
    ]  # fmt: skip

    def show() -> None:
        if rows or page.cursor is None:
            say_rows(columns, rows, nothing)
        if page.cursor is not None:
            note(f"there may be more: repeat the command with --cursor {page.cursor}")

    return Answer({"events": [document(event) for event in page.events], "cursor": page.cursor}, show)


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


# Files: how they are told of, and what becomes of them.

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


def _sink(format: FormatName, out: Path, *, resume: bool) -> Sink:
    if out.is_dir():
        raise InvalidInput(f"--out: {out} is a folder; name a file in it")
    if not out.parent.is_dir():
        raise InvalidInput(f"--out: there is no folder {out.parent}")
    # A pipe or a device (`/dev/stdout`) is written to: a file that took its place would reach nobody.
    is_stream = out == _STDOUT or (out.exists() and not out.is_file())
    if resume and (is_stream or format == "parquet"):
        what = "a Parquet file" if not is_stream else "standard output" if out == _STDOUT else str(out)
        raise InvalidInput(f"--resume: {what} cannot be gone on with; leave it out, or export to a JSONL or CSV file")
    if format == "parquet":
        from ratelimit.usage.parquet import ParquetFile

        if is_stream:
            raise InvalidInput("--format: Parquet needs a file; add --out events.parquet")
        return ParquetFile(out)
    encoder = Csv() if format == "csv" else Jsonl()
    if is_stream:
        return StreamSink(sys.stdout.buffer if out == _STDOUT else out.open("wb"), encoder)
    return File(out, encoder, resume=resume)


# How days and moments are typed.

_DAYS_AGO: Final = {"today": 0, "yesterday": 1}


def to_day(option: str, text: str) -> date:
    """Read `2026-01-05`, `today`, `yesterday`. Raises `InvalidInput` naming the option."""
    try:
        return numerals.to_day(_date_of(text))
    except ValueError:
        raise InvalidInput(f"{option}: {text!r} is no day; write 2026-01-05, today or yesterday") from None


def to_moment(option: str, text: str | None, *, end: bool = False) -> datetime | None:
    """Read a day, which begins at midnight UTC and at its `end` is over, or a time. Raises as `to_day`."""
    try:
        return None if text is None else numerals.to_moment(_date_of(text), end=end)
    except ValueError:
        raise InvalidInput(f"{option}: {text!r} is no date; write 2026-01-05, or 2026-01-05T12:00:00Z") from None


def _date_of(text: str) -> str:
    if text not in _DAYS_AGO:
        return text
    today = datetime.fromtimestamp(SystemClock().now() / 1_000_000, UTC).date()
    return str(today - timedelta(days=_DAYS_AGO[text]))
