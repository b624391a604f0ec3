"""What was used, as the API gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Annotated, Any, Final, Literal, TypeAlias

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from ratelimit.algorithms.fields import DAYS_KEPT, Per
from ratelimit.event import UsageEvent, encode_metadata
from ratelimit.http.api.bodies import Name
from ratelimit.http.api.directory_bodies import Cursor, Limit
from ratelimit.usage import EventPage
from ratelimit.usage.formats import text_of_time
from ratelimit.usage.reports import DATE_RANGE

_DAY: Final = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME: Final = r"T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?(Z|[+-][0-9]{2}:[0-9]{2})?"

Day: TypeAlias = Annotated[
    str, Meta(max_length=10, description="A UTC day, included.", extra_json_schema={"format": "date"})
]
Moment: TypeAlias = Annotated[
    str,
    Meta(
        max_length=40,
        description="A UTC day, included; or a time, where `since` is included and `until` is not.",
        extra_json_schema={"pattern": f"^{_DAY}({_TIME})?$", "examples": ["2026-01-05", "2026-01-05T12:00:00Z"]},
    ),
]

# No boolean, of which a query string knows many spellings.
Allowed: TypeAlias = Literal["true", "false"]


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
        """From `Reports.summary`."""
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


class EventsQuery(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which events."""

    since: Moment | UnsetType = UNSET
    until: Moment | UnsetType = UNSET
    action: Name | UnsetType = UNSET
    allowed: Allowed | UnsetType = UNSET
    limit: Limit = 100
    cursor: Cursor | UnsetType = UNSET


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
        """As JSON says it."""
        return cls(
            id=event.id,
            user=event.user,
            action=event.action,
            time=text_of_time(event),
            cost=event.cost,
            allowed=event.allowed,
            status=event.status,
            duration=event.duration,
            resource=event.resource,
            request_id=event.request_id,
            metadata=Raw(encode_metadata(event.metadata)),
        )


class EventsAnswer(Struct, frozen=True):
    """Events, newest first."""

    events: list[EventAnswer]
    cursor: str | None
    """Where the next page begins: to be brought with the same query. Null on the last one."""

    @classmethod
    def of(cls, page: EventPage) -> EventsAnswer:
        """As JSON says it."""
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
