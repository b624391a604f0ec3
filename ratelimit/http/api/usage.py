"""`Used`: what a user has used: events of the log, exact totals, a summary; and the end of it all."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

from msgspec import UNSET, UnsetType

from ratelimit.directory import Directory
from ratelimit.errors import ConfigError
from ratelimit.http.api.bodies import UserName
from ratelimit.http.api.operation import Operation, operation
from ratelimit.http.api.usage_bodies import (
    EraseAnswer,
    EraseBody,
    EventsAnswer,
    EventsQuery,
    SummaryAnswer,
    SummaryQuery,
    TotalsAnswer,
    TotalsQuery,
)
from ratelimit.usage.reports import Reports

_USER: Final = "/v1/users/{user}"
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_HINT: Final = "write 2026-01-05"
_HINT_OR_TIME: Final = "write 2026-01-05, or 2026-01-05T12:00:00Z"


class Used:
    """Days and times are those of UTC, unless a time says otherwise."""

    def __init__(self, reports: Reports, directory: Directory) -> None:
        self._reports = reports
        self._directory = directory

    def operations(self) -> list[Operation]:
        """All of them."""
        return [
            operation("GET", f"{_USER}/usage", self.summary, problems=[503]),
            operation("GET", f"{_USER}/usage/events", self.events, problems=[503]),
            operation("GET", f"{_USER}/usage/totals", self.totals, problems=[503]),
            operation("POST", f"{_USER}/erase", self.erase, problems=[503], repeatable=True),
        ]

    async def summary(self, user: UserName, query: SummaryQuery) -> SummaryAnswer:
        """Sum up what a user has used in the last days."""
        return SummaryAnswer.of(user, await self._reports.summary(user, query.days))

    async def events(self, user: UserName, query: EventsQuery) -> EventsAnswer:
        """List a user's events, newest first."""
        page = await self._reports.events(
            user,
            since=_moment("since", query.since),
            until=_moment("until", query.until, end=True),
            action=None if query.action is UNSET else query.action,
            allowed=None if query.allowed is UNSET else query.allowed == "true",
            limit=query.limit,
            cursor=None if query.cursor is UNSET else query.cursor,
        )
        return EventsAnswer.of(page)

    async def totals(self, user: UserName, query: TotalsQuery) -> TotalsAnswer:
        """Count what a user has used, by action and day or month."""
        actions = None if query.action is UNSET else [query.action]
        since, until = _day("since", query.since), _day("until", query.until)
        return TotalsAnswer(user, await self._reports.totals(user, since, until, per=query.per, actions=actions))

    async def erase(self, user: UserName, body: EraseBody) -> EraseAnswer:
        """Delete every trace of a user: events, counters, the entry, identities. Reads the whole table. Where it fails,
        repeat it."""
        erased = await self._reports.erase(user, actions=body.actions, quick=body.quick)
        # There is nothing left to remove: this has the directory forget what it remembers.
        await self._directory.remove_user(user)
        return EraseAnswer(user, int(erased), erased.found, erased.left)


def _day(path: str, text: str | UnsetType) -> date | None:
    if text is UNSET:
        return None
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise ConfigError(path, f"{text!r} is no day; {_HINT}")


def _moment(path: str, text: str | UnsetType, *, end: bool = False) -> datetime | None:
    """A day begins at midnight, and at its `end` is over."""
    if text is UNSET:
        return None
    try:
        if _DAY.fullmatch(text):
            return datetime.combine(date.fromisoformat(text), time(), UTC) + timedelta(days=1 if end else 0)
        if _DAY.match(text):  # ISO 8601 has other ways to write a day, which would be taken for its midnight
            # A query string's `+` is a space, where nobody took care to encode it.
            moment = datetime.fromisoformat(text.replace(" ", "+"))
            # In UTC from here on: near the ends of the calendar, where that cannot be, it is no moment.
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise ConfigError(path, f"{text!r} is no date; {_HINT_OR_TIME}")
