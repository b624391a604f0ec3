"""`ratelimit usage ...`: read the usage log, take it out, bring it in, erase a user."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

import typer

from ratelimit.algorithms.fields import Per
from ratelimit.cli import usage_files
from ratelimit.cli.options import ConfigOption, JsonOption, StoreOption, whole
from ratelimit.cli.output import note, say, say_json, say_table
from ratelimit.cli.usage_options import (
    ActionOption,
    AllowedOption,
    PartsOption,
    SinceDayOption,
    SinceOption,
    UntilDayOption,
    UntilOption,
    UserArgument,
    ask,
    to_day,
    to_moment,
)
from ratelimit.errors import InvalidInput
from ratelimit.usage import EventPage
from ratelimit.usage.formats import document, text_of_time
from ratelimit.usage.reports import DATE_RANGE, Reports

# `ratelimit usage events|summary|totals|top|reconcile`.

# No postponed annotations in the commands: typer reads them when the program runs.


DayOption = Annotated[
    str, typer.Option("--day", metavar="DAY", help="2026-01-05, today or yesterday.", show_default=False)
]


def events(
    user: UserArgument,
    since: SinceOption = None,
    until: UntilOption = None,
    action: ActionOption = None,
    allowed: AllowedOption = None,
    limit: Annotated[int, typer.Option(parser=whole, metavar="INTEGER", help="Events at most, up to 1000.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Where the page before ended, as it was printed there.")] = None,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """A user's events, newest first.

    Examples:

        ratelimit usage events alice --since 2026-01-05 --action hint --denied

        ratelimit usage events alice --limit 1000 --json
    """
    first, last = to_moment("--since", since), to_moment("--until", until, end=True)
    page = ask(
        lambda reports: reports.events(
            user, since=first, until=last, action=action, allowed=allowed, limit=limit, cursor=cursor
        ),
        store=store,
        config=config,
    )
    if as_json:
        say_json({"events": [document(event) for event in page.events], "cursor": page.cursor})
    else:
        _show_events(user, page)


def summary(
    user: UserArgument,
    days: Annotated[
        int, typer.Option(parser=whole, metavar="INTEGER", help="So many days, today included; up to 35.")
    ] = 7,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a user has used in the last days, per action: the total, and the daily average. Exact.

    Example:

        ratelimit usage summary alice --days 30
    """
    report = ask(lambda reports: reports.summary(user, days), store=store, config=config)
    if as_json:
        say_json(report)
        return
    first, last = report.pop(DATE_RANGE)
    rows = [(action, row["total"], row["daily_avg"]) for action, row in report.items() if row["total"]]
    if rows:
        say(f"{user}, {first} to {last}")
        say_table(("action", "total", "daily average"), rows)
    else:
        say(f"{user} has used nothing from {first} to {last}, or is not known")


def totals(
    user: UserArgument,
    since: SinceDayOption = None,
    until: UntilDayOption = None,
    action: ActionOption = None,
    per: Annotated[Per, typer.Option(help="For each of the last 35 days, or of the last 13 calendar months.")] = "day",
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a user has used, per action and day or month, from the limiter's own counters. Exact.

    The actions are those of the configured policies; without a configuration, those of the user's events.

    Examples:

        ratelimit usage totals alice --since 2026-01-01 --until 2026-01-31

        ratelimit usage totals alice --per month
    """
    first, last = to_day("--since", since), to_day("--until", until)
    actions = None if action is None else [action]

    async def read(reports: Reports) -> dict[str, dict[date, int]]:
        return await reports.totals(user, first, last, per=per, actions=actions)

    found = ask(read, store=store, config=config)
    if as_json:
        say_json({name: {day.isoformat(): units for day, units in days.items()} for name, days in found.items()})
        return
    rows = [(name, day, units) for name, days in found.items() for day, units in days.items() if units]
    if rows:
        say_table(("action", "month, from" if per == "month" else "day", "units"), rows)
    else:
        say(f"{user} has used nothing in these {per}s, or is not known")


def top(
    day: DayOption,
    action: Annotated[str, typer.Option("--action", help="Of this action.", show_default=False)],
    count: Annotated[int, typer.Option(parser=whole, metavar="INTEGER", help="So many users, up to 1000.")] = 10,
    parts: PartsOption = 4,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Who used an action most on a day. Exact, and it READS THE WHOLE TABLE: there is no index for it.

    That costs one read unit for 4 KB of table, about 0.03 USD for a GB on demand, whatever is found.

    Example:

        ratelimit usage top --day yesterday --action hint
    """
    chosen = to_day("--day", day)
    if chosen is None:
        raise InvalidInput("--day is missing")
    found = ask(lambda reports: reports.top(chosen, action, count=count, parts=parts), store=store, config=config)
    if as_json:
        say_json([one._asdict() for one in found])
    elif found:
        say_table(("user", "units"), found)
    else:
        say(f"nobody used {action} on {chosen}, as far as was counted")


def reconcile(
    user: UserArgument,
    day: DayOption,
    store: StoreOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """A user's events of a day against the counters. A difference is what was counted and not logged.

    Refunds and what a policy does not log make one as well; below zero, more was logged than counted.

    Example:

        ratelimit usage reconcile alice --day yesterday
    """
    chosen = to_day("--day", day)
    if chosen is None:
        raise InvalidInput("--day is missing")
    found = ask(lambda reports: reports.reconcile(user, chosen), store=store, config=config)
    rows: dict[str, Any] = {
        action: {"events": one.events, "total": one.total, "difference": one.difference}
        for action, one in found.items()
    }
    if as_json:
        say_json(rows)
    elif rows:
        say_table(("action", "events", "total", "difference"), [(name, *row.values()) for name, row in rows.items()])
    else:
        say(f"{user} has neither events nor totals on {chosen}, or is not known")


def _show_events(user: str, page: EventPage) -> None:
    if page.events:
        _show_table(page)
    elif page.cursor is None:
        say(f"no events of {user} in this range, or no such user")
    if page.cursor is not None:
        note(f"there may be more: repeat the command with --cursor {page.cursor}")


def _show_table(page: EventPage) -> None:
    say_table(
        ("time", "action", "cost", "answer", "status", "ms", "resource", "id"),
        (
            (
                text_of_time(event),
                event.action,
                event.cost,
                "allowed" if event.allowed else "denied",
                _or_dash(event.status),
                _or_dash(event.duration),
                _or_dash(event.resource),
                event.id,
            )
            for event in page.events
        ),
    )


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)


app = typer.Typer(
    help="The usage log: events and exact totals, read, exported, imported, erased.",
    epilog="Days are UTC. Events are kept for 90 days, daily totals for 35.",
)
app.command("events")(events)
app.command("summary")(summary)
app.command("totals")(totals)
app.command("top")(top)
app.command("reconcile")(reconcile)
app.command("export")(usage_files.export)
app.command("import")(usage_files.import_)
app.command("erase")(usage_files.erase)
