"""What the commands about usage share: the way to the table, and how days and moments are typed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Final, TypeAlias, TypeVar

import typer

from ratelimit.cli.options import load, whole
from ratelimit.clock import SystemClock
from ratelimit.config import Config, masked
from ratelimit.errors import InvalidInput
from ratelimit.factory import build_store, table_settings
from ratelimit.store import TableStore
from ratelimit.usage.reports import Reports

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
PartsOption: TypeAlias = Annotated[
    int, typer.Option(parser=whole, metavar="INTEGER", help="Parts of the table read side by side, up to 64.")
]

_WORDS: Final = {"today": 0, "yesterday": 1}
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_HINT: Final = "write 2026-01-05, today or yesterday"
_HINT_OR_TIME: Final = "write 2026-01-05, or 2026-01-05T12:00:00Z"


def reports_of(settings: Config, table: TableStore) -> Reports:
    """What can be asked of a table."""
    return Reports(table, [policy.name for policy in settings.policies], SystemClock())


R = TypeVar("R", bound=Reports)


def run(
    work: Callable[[TableStore, R], Awaitable[T]],
    *,
    store: str | None,
    config: Path | None,
    make: Callable[[Config, TableStore], R] = reports_of,  # type: ignore[assignment]
) -> T:
    """The result of `work` on the configured table, and on what `make` has of it."""
    settings = load(config, store)
    table_settings(settings.store)  # says what is wrong with a store that keeps nothing from one run to the next

    async def opened() -> T:
        table = build_store(settings)
        try:
            await table.open()
            return await work(table, make(settings, table))
        finally:
            await table.close()

    return asyncio.run(opened())


def ask(work: Callable[[Reports], Awaitable[T]], *, store: str | None, config: Path | None) -> T:
    """As `run`, for a question."""

    async def alone(_: TableStore, reports: Reports) -> T:
        return await work(reports)

    return run(alone, store=store, config=config)


def name_of_store(store: str | None, config: Path | None) -> str:
    """The configured store, without secrets."""
    return masked(load(config, store).store)


def to_day(option: str, text: str | None) -> date | None:
    """`2026-01-05`, `today`, `yesterday`. Raises `InvalidInput` naming the option."""
    if text is None:
        return None
    day = _read_day(text)
    if day is None:
        raise InvalidInput(f"{option}: {text!r} is no day; {_HINT}")
    return day


def to_moment(option: str, text: str | None, *, end: bool = False) -> datetime | None:
    """A day begins at midnight UTC, and at its `end` is over; a time without a zone is UTC. Raises as `to_day`."""
    if text is None:
        return None
    try:
        if day := _read_day(text):
            return datetime.combine(day, time(), UTC) + timedelta(days=1 if end else 0)
        if _DAY.match(text):  # ISO 8601 has other ways to write a day, which would be taken for its midnight
            moment = datetime.fromisoformat(text)
            # In UTC from here on: near the ends of the calendar, where that cannot be, it is no moment.
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise InvalidInput(f"{option}: {text!r} is no date; {_HINT_OR_TIME}")


def _read_day(text: str) -> date | None:
    if text in _WORDS:
        return _today() - timedelta(days=_WORDS[text])
    try:
        return date.fromisoformat(text) if _DAY.fullmatch(text) else None
    except ValueError:
        return None


def _today() -> date:
    return datetime.fromtimestamp(SystemClock().now() / 1_000_000, UTC).date()
