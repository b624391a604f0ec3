"""`Converter`: from a row of a relational source, or of a JSON file with the same names, to what it is here."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from hashlib import blake2b
from typing import Any, Final

from ratelimit.clock import DAY, Clock
from ratelimit.errors import InvalidInput, UnknownAction
from ratelimit.event import RETENTION_DAYS, UsageEvent
from ratelimit.event_id import id_from
from ratelimit.migrate import mapping as names
from ratelimit.migrate import values
from ratelimit.migrate.rows import Entity, Entry, Expired, Read
from ratelimit.names import check_action, check_user
from ratelimit.quota import MAX_LIMIT
from ratelimit.store.directory import Identity, Plan, User

_RETENTION_MS: Final = RETENTION_DAYS * DAY // 1000
_NO_TIME: Final = 2**48


class Converter:
    """Reads rows by a mapping. `clock` says what is too old, and what lies in the future.

    `actions` are those that may be used; None takes all. `costs`, by action, are those of rows that do not say theirs.
    A row's event has an id made of what the row itself says (its key, user and action, as they are written there): the
    same whenever it is read, from a database or from a dump of it, and however a setting interprets it.
    """

    def __init__(
        self,
        mapping: names.Mapping,
        *,
        clock: Clock,
        actions: Collection[str] | None = None,
        costs: Mapping[str, int] | None = None,
    ) -> None:
        self.mapping = mapping
        self._clock = clock
        self._actions = actions
        self._costs = costs or {}
        self._zone = values.Zone(mapping.events.timezone)

    def read(self, entity: Entity, where: str, row: Mapping[str, Any], *, nth: int = 0) -> Read:
        """What the row is, or why it is nothing. `nth`: rows that said the same came before it."""
        try:
            return Read(where, self._entry(entity, row, nth))
        # Whatever is wrong with a row, it is set aside: it would stop every run at the same place.
        except (UnknownAction, ValueError, ArithmeticError, RecursionError) as error:
            return Read(where, None, str(error), shown(row))

    def notes(self) -> list[str]:
        """What a reader of the report should know of the rows that were read."""
        if not self._zone.used or self.mapping.is_given("events.timezone"):
            return []
        return [
            "some times have no zone and were read as UTC; where they are local times, say so in a mapping before they "
            "are brought: [events] timezone = 'Europe/Berlin' (or 'UTC', where that is right)"
        ]

    def key(self, row: Mapping[str, Any]) -> Any:
        """What an event's row is known by; None where it has nothing of the kind."""
        key = _of(row, self.mapping.events.id)
        return None if key == "" else key

    def action(self, value: object) -> str:
        """Under its new name. Raises `UnknownAction`, `InvalidInput`."""
        found = values.text("action", value)
        found = check_action(self.mapping.actions.get(found, found))
        if self._actions is not None and found not in self._actions:
            raise UnknownAction(f"unknown action {found!r}")
        return found

    def event(self, event_id: str, user: str, action: str, at: int, **rest: Any) -> UsageEvent | Expired:
        """One that can be kept, or else counted at least. Raises `InvalidInput`."""
        now = self._clock.now()
        rest.setdefault("cost", self._costs.get(action, 1))
        if at < now // 1000 - _RETENTION_MS:
            if not 0 <= (cost := rest["cost"]) <= MAX_LIMIT:
                raise InvalidInput(f"cost must be a whole number from 0 to {MAX_LIMIT}, not {cost}")
            return Expired(event_id, check_user(user), action, at, cost if rest.get("allowed", True) else 0)
        return UsageEvent.of(user, action, now=now, id=event_id, at=at, **rest)

    def _entry(self, entity: Entity, row: Mapping[str, Any], nth: int) -> Entry:
        if entity == "plans":
            return self._plan(row)
        return self._user(row) if entity == "users" else self._event(row, nth)

    def _plan(self, row: Mapping[str, Any]) -> Plan:
        columns = self.mapping.plans
        return Plan(values.text("id", _of(row, columns.id)), _quotas(row, columns.quotas))

    def _user(self, row: Mapping[str, Any]) -> User:
        columns = self.mapping.users
        plan, email = _of(row, columns.plan), _of(row, columns.email)
        active, admin = _of(row, columns.active), _of(row, columns.admin)
        return User(
            values.text("id", _of(row, columns.id)),
            plan=None if plan in (None, "") else values.text("plan", plan),
            quotas=_quotas(row, columns.quotas),
            role="admin" if admin is not None and values.truth("admin", admin) else "user",
            active=True if active is None else values.truth("active", active),
            identities=() if email in (None, "") else (Identity.email(email),),
        )

    def _event(self, row: Mapping[str, Any], nth: int) -> UsageEvent | Expired:
        columns = self.mapping.events
        user = values.text("user", _of(row, columns.user))
        action = self.action(_of(row, columns.action))
        time = _of(row, columns.time)
        if time is None:
            raise InvalidInput("time is missing")
        at = values.milliseconds(time, zone=self._zone, format=columns.time_format)
        key = self.key(row)
        # Without a key of its own, a row is known by all that it says.
        said = [shown(row)] if key is None else [str(key), user, str(_of(row, columns.action))]
        return self.event(derived_id(at, *said, nth=nth), user, action, at, **self._rest(row))

    def _rest(self, row: Mapping[str, Any]) -> dict[str, Any]:
        columns = self.mapping.events
        found: dict[str, Any] = {}
        for name, column, read in (
            ("cost", columns.cost, values.whole),
            ("allowed", columns.allowed, values.truth),
            ("status", columns.status, values.whole),
            ("duration", columns.duration, values.decimal),
            ("resource", columns.resource, values.text),
            ("request_id", columns.request_id, values.text),
        ):
            if (value := _of(row, column)) not in (None, ""):
                found[name] = read(name, value)
        if (metadata := _of(row, columns.metadata)) not in (None, "", b""):
            found["metadata"] = values.mapping(metadata)
        return found


def derived_id(at: int, *said: str, nth: int = 0) -> str:
    """The id of the event that a row is, the same in every run, by what the row says of itself, uninterpreted.

    The first bits are the event's time, so that writing it is one write unit; they are its place, and not its identity.

    Raises `InvalidInput` for a time that it cannot carry.
    """
    if not 0 <= at < _NO_TIME:
        raise InvalidInput("time lies before 1970" if at < 0 else "time lies in the far future")
    text = json.dumps(["ratelimit migrate", *said, nth], ensure_ascii=False)
    return id_from(at, blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest())


def shown(row: Mapping[str, Any]) -> str:
    """A row as text, for the file of rejected rows."""
    return json.dumps(values.plain(dict(row)), ensure_ascii=False)


def _of(row: Mapping[str, Any], columns: names.Names) -> Any:
    for column in columns:
        if column in row:
            return row[column]
    return None


def _quotas(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """-1 is no limit; a column that is missing or null leaves the action to its policy."""
    found: dict[str, str] = {}
    for action, text in columns.items():
        column, _, window = text.partition("/")
        if (limit := row.get(column)) is None:
            continue
        number = values.whole(column, limit)
        if not -1 <= number <= MAX_LIMIT:
            raise InvalidInput(f"{column} must be from -1 (no limit) to {MAX_LIMIT}, not {number}")
        found[action] = "unlimited" if number == -1 else f"{number}/{window}"
    return found
