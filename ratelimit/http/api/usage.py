"""`UsageRoutes`: what a user has used: events of the log, exact totals, a summary; and the end of it all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ratelimit.algorithms.fields import DAYS_KEPT, Per
from ratelimit.directory import Directory
from ratelimit.errors import ConfigError
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.http.api.directory import PageQuery
from ratelimit.http.api.operation import Name, Operation, UserName
from ratelimit.numerals import to_day, to_moment
from ratelimit.usage import EventPage
from ratelimit.usage.formats import text_of_time
from ratelimit.usage.reports import DATE_RANGE, Reports

_USER: Final = "/v1/users/{user}"
_DAY_PATTERN: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME: Final = r"T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?"

Day: TypeAlias = Annotated[
    str, Meta(max_length=10, description="A UTC day, included.", extra_json_schema={"format": "date"})
]
Moment: TypeAlias = Annotated[
    str,
    Meta(
        max_length=40,
        description="A UTC day, included; or a time, where `since` is included and `until` is not.",
        extra_json_schema={
            "pattern": f"^{_DAY_PATTERN}({_TIME})?$",
            "examples": ["2026-01-05", "2026-01-05T12:00:00Z"],
        },
    ),
]

# No boolean, of which a query string knows many spellings.
Allowed: TypeAlias = Literal["true", "false"]


Status: TypeAlias = Annotated[int, Meta(ge=100, le=599, description="Only with this HTTP status.")]
Resource: TypeAlias = Annotated[str, Meta(max_length=200, description="Only what was done to this.")]


class SummaryQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of how long."""

    days: Annotated[int, Meta(ge=1, le=DAYS_KEPT, description="So many, today included.")] = 7


class ActionSummary(Struct, frozen=True):
    """One action's use."""

    total: int
    daily_avg: float


class SummaryAnswer(Struct, frozen=True):
    """What was used, by action, from the exact counters."""

    user: str
    since: date
    until: date
    """The last day, included."""
    actions: dict[str, ActionSummary]

    @classmethod
    def of(cls, user: str, report: dict[str, Any]) -> SummaryAnswer:
        first, last = map(date.fromisoformat, report[DATE_RANGE])
        actions = {action: ActionSummary(**sums) for action, sums in report.items() if action != DATE_RANGE}
        return cls(user, first, last, actions)


class TotalsQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which days or months, and of which action."""

    per: Annotated[Per, Meta(description="What each number is of: a day, or a calendar month.")] = "day"
    since: Day | UnsetType = UNSET
    until: Day | UnsetType = UNSET
    action: Name | UnsetType = UNSET


class TotalsAnswer(Struct, frozen=True):
    """Units used, by action and UTC day (or the first day of a month), from the exact counters; a day or month without
    any may be left out."""

    user: str
    totals: dict[str, dict[date, int]]


class TimelineQuery(PageQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which events of an action; without `since`, those of the last seven days."""

    since: Moment | UnsetType = UNSET
    until: Moment | UnsetType = UNSET
    allowed: Allowed | UnsetType = UNSET
    status: Status | UnsetType = UNSET
    resource: Resource | UnsetType = UNSET


class EventsQuery(TimelineQuery, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which events."""

    action: Name | UnsetType = UNSET


class EventAnswer(Struct, frozen=True, kw_only=True):
    """One event of the usage log."""

    id: str
    user: str
    action: str
    time: str
    """UTC, to the millisecond."""
    cost: int
    allowed: bool
    status: int | None
    duration: float | None
    """Milliseconds."""
    resource: str | None
    request_id: str | None
    metadata: Annotated[Raw, Meta(extra_json_schema={"type": "object"})]
    """As it is stored: whole numbers beyond 64 bits stay what they are."""

    @classmethod
    def of(cls, event: UsageEvent) -> EventAnswer:
        same = {name: getattr(event, name) for name in cls.__struct_fields__ if name not in ("time", "metadata")}
        return cls(**same, time=text_of_time(event), metadata=Raw(encode_metadata(event.metadata)))


class EventsAnswer(Struct, frozen=True):
    """Events, newest first."""

    events: list[EventAnswer]
    cursor: str | None
    """Where the next page begins: to be brought with the same query. Null on the last one."""

    @classmethod
    def of(cls, page: EventPage) -> EventsAnswer:
        return cls(list(map(EventAnswer.of, page.events)), page.cursor)


class EraseBody(Struct, frozen=True, forbid_unknown_fields=True):
    """Whose traces go is in the path."""

    actions: list[Name] = []
    """With `quick`, whose counters go too, if no policy, no plan and no event names them."""
    quick: bool = False
    """Do not read the whole table: counters of actions that nothing names may be left."""


class EraseAnswer(Struct, frozen=True):
    """How much there was."""

    user: str
    erased: int
    """Items."""
    found: Mapping[str, int]
    """How many of what: `events`, `event_ids`, `counters`, `entries`, `identities`, and `journal`, events that waited
    there."""
    left: Sequence[str]
    """Damaged files of the journal that name the user, for a person to look at."""


class UsageRoutes:
    """Days and times are those of UTC, unless a time says otherwise."""

    def __init__(self, reports: Reports, directory: Directory) -> None:
        self._reports = reports
        self._directory = directory

    def operations(self) -> list[Operation]:
        return [
            Operation("GET", f"{_USER}/usage", self.summary, problems=[503]),
            Operation("GET", f"{_USER}/usage/events", self.events, problems=[503]),
            Operation("GET", f"{_USER}/usage/totals", self.totals, problems=[503]),
            Operation("GET", "/v1/actions/{action}/timeline", self.timeline, problems=[404]),
            Operation("POST", f"{_USER}/erase", self.erase, problems=[503], repeatable=True),
        ]

    async def summary(self, user: UserName, query: SummaryQuery) -> SummaryAnswer:
        """Sum up what a user has used in the last days."""
        return SummaryAnswer.of(user, await self._reports.summary(user, query.days))

    async def events(self, user: UserName, query: EventsQuery) -> EventsAnswer:
        """List a user's events, newest first."""
        page = await self._reports.events(user, action=None if query.action is UNSET else query.action, **_asked(query))
        return EventsAnswer.of(page)

    async def timeline(self, action: Name, query: TimelineQuery) -> EventsAnswer:
        """List an action's events of all users, newest first: those written since its policy has `timeline = true`."""
        return EventsAnswer.of(await self._reports.timeline(action, **_asked(query)))

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


def _asked(query: TimelineQuery) -> dict[str, Any]:
    return {
        "since": _moment("since", query.since),
        "until": _moment("until", query.until, end=True),
        "allowed": None if query.allowed is UNSET else query.allowed == "true",
        "status": None if query.status is UNSET else query.status,
        "resource": None if query.resource is UNSET else query.resource,
        "limit": query.limit,
        "cursor": None if query.cursor is UNSET else query.cursor,
    }


def _day(path: str, text: str | UnsetType) -> date | None:
    try:
        return None if text is UNSET else to_day(text)
    except ValueError:
        raise ConfigError(path, f"{text!r} is no day; write 2026-01-05") from None


def _moment(path: str, text: str | UnsetType, *, end: bool = False) -> datetime | None:
    """Read a day or a time. A day begins at midnight, and at its `end` is over."""
    try:
        # A query string's `+` is a space, where nobody took care to encode it.
        return None if text is UNSET else to_moment(text.replace(" ", "+"), end=end)
    except ValueError:
        raise ConfigError(path, f"{text!r} is no date; write 2026-01-05, or 2026-01-05T12:00:00Z") from None
