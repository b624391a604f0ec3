"""`Converter`: from a row of a relational source, or of a JSON file with the same names, to what it is here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import Any, Final
from uuid import RFC_4122, UUID
from zoneinfo import ZoneInfo

from ratelimit.cache import LRUCache
from ratelimit.clock import DAY, Clock
from ratelimit.errors import InvalidInput, UnknownAction
from ratelimit.event import MARK, RETENTION_DAYS, UsageEvent
from ratelimit.event_id import id_from
from ratelimit.migrate import mapping as names
from ratelimit.migrate.rows import Entity, Entry, Expired, SourceRow
from ratelimit.names import check_action, check_user
from ratelimit.quota import MAX_LIMIT
from ratelimit.store.directory import Identity, Plan, User

# Single values as sources write them, as this project needs them: times, texts, truths, numbers, JSON objects.

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# An epoch of so many digits before the point is in these parts of a second: good from 1973 to 5138. What has fewer is
# none: 0 for no time, the number of a day (2461374.9).
_FEWEST_DIGITS: Final = 9
_UNITS: Final = ((11, 1000), (14, 1), (17, 0.001))
_UUID_BYTES: Final = 16
_PLAIN_UUID = re.compile(r"[0-9a-f]{32}")
_DATE_DIGITS: Final = 8
# Strictly: what reads RFC 2822 in the standard library passes over whatever it does not know, `PM` too.
_RFC_2822 = re.compile(
    r"((Mon|Tue|Wed|Thu|Fri|Sat|Sun), ?)?\d{1,2} (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} "
    r"\d\d:\d\d(:\d\d)? ([+-]\d{4}|UTC?|GMT|Z|[ECMP][SD]T)( \([^()]*\))?",
    re.ASCII | re.IGNORECASE,
)
# Deeper than anybody's data, and far from where Python stops.
_DEEPEST: Final = 100
# Not all that Python takes: no `1_000`, no `٣`.
_WHOLE = re.compile(r"\s*[+-]?\d{1,40}\s*", re.ASCII)
_FLOAT_DIGITS: Final = 308
_TRUTH: Final = {
    "true": True, "t": True, "yes": True, "y": True, "1": True,
    "false": False, "f": False, "no": False, "n": False, "0": False,
}  # fmt: skip


class Zone:
    """The zone of times that have none; `used` tells whether there were any."""

    def __init__(self, timezone: str) -> None:
        self._timezone = ZoneInfo(timezone)
        self.used = False

    def of(self, value: datetime) -> datetime:
        """Return the same time, aware."""
        if value.tzinfo is not None:
            return value
        self.used = True
        return value.replace(tzinfo=self._timezone)


def milliseconds(value: object, *, zone: Zone, format: str = "") -> int:
    """Read a time: a datetime, an epoch (s, ms or µs), ISO 8601, RFC 2822, or by `format` (strptime).

    Raises `InvalidInput`.
    """
    if isinstance(value, datetime):
        return _of_datetime(value, zone)
    if isinstance(value, date):
        raise InvalidInput(f"time {value} has no time of day")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _of_epoch(float(value), value)
    if not isinstance(value, str):
        raise InvalidInput(f"time {value!r} cannot be read")
    return _of_text(value.strip(), zone, format)


def text(name: str, value: object) -> str:
    """Read a user's id or an action, whether the source has it as text, as a number or as a UUID, and however wide its
    column is (`CHAR(36)`). Raises `InvalidInput`."""
    if isinstance(value, bytes):
        value = _of_bytes(name, value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InvalidInput(f"{name} is missing")
    if isinstance(value, dict | list | tuple | set | frozenset):
        raise InvalidInput(f"{name} must be text or a whole number, not {value!r}")
    return str(whole(name, value)) if isinstance(value, bool | float | Decimal) else str(value).strip()


def truth(name: str, value: object) -> bool:
    """Read MySQL's 0 and 1, bits, `t`, `yes`. Raises `InvalidInput`."""
    if isinstance(value, bytes):
        value = int.from_bytes(value)
    if value in (0, 1):  # True and False too
        return bool(value)
    found = _TRUTH.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None:
        raise InvalidInput(f"{name} must be true or false, not {value!r}")
    return found


def whole(name: str, value: object) -> int:
    """Raises `InvalidInput`."""
    try:
        is_number = isinstance(value, int | float | Decimal) or (isinstance(value, str) and _WHOLE.fullmatch(value))
        number: int | None = int(value) if is_number else None  # type: ignore[call-overload]
    except (ValueError, OverflowError):
        number = None
    if number is None or isinstance(value, bool) or (isinstance(value, float | Decimal) and number != value):
        raise InvalidInput(f"{name} must be a whole number, not {value!r}")
    return number


def decimal(name: str, value: object) -> float:
    """Raises `InvalidInput`."""
    try:
        is_number = isinstance(value, int | float | Decimal) or (isinstance(value, str) and _is_plain(value))
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InvalidInput(f"{name} must be a number, not {value!r}")
    return number


def mapping(value: object) -> dict[str, Any]:
    """Read a JSON object, from one or from its text; anything else is kept under `value`, so that nothing is lost."""
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
    found = value if isinstance(value, dict) else {"value": value}
    kept: dict[str, Any] = plain(found)
    return kept


def plain(value: object, *, deepest: int = _DEEPEST) -> Any:
    """Return what JSON and Unicode can say: half an emoji as its escape, `…trimmed` for what is nested 100 deep."""
    if isinstance(value, dict | list | tuple | set | frozenset) and not deepest:
        return MARK
    if isinstance(value, dict):
        return {_unicode(str(key)): plain(item, deepest=deepest - 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item, deepest=deepest - 1) for item in value]
    if isinstance(value, Decimal):
        return _of_decimal(value)
    if value is None or isinstance(value, int | float):
        return None if isinstance(value, float) and not math.isfinite(value) else value
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else _unicode(str(value))


def _of_bytes(name: str, value: bytes) -> str:
    """Of 16 bytes a UUID has bits that no text has there."""
    if len(value) == _UUID_BYTES and (found := UUID(bytes=value)).variant == RFC_4122:
        return str(found)
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"{name} is binary, and neither a UUID nor text") from None


def _is_plain(text: str) -> bool:
    return text.isascii() and "_" not in text


def _unicode(text: str) -> str:
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def _of_decimal(value: Decimal) -> int | float | str | None:
    if not value.is_finite():
        return None
    if value.adjusted() >= _FLOAT_DIGITS:
        return str(value)
    return int(value) if value == value.to_integral_value() else float(value)


def _of_datetime(value: datetime, zone: Zone) -> int:
    return (zone.of(value) - _EPOCH) // timedelta(milliseconds=1)


def _of_epoch(value: float, shown: object) -> int:
    digits = len(str(int(abs(value)))) if math.isfinite(value) else 99
    for most, factor in _UNITS:
        if _FEWEST_DIGITS <= digits <= most:
            return int(value * factor)
    raise InvalidInput(f"time {shown} is no epoch in seconds, milliseconds or microseconds")


def _of_text(value: str, zone: Zone, format: str) -> int:
    if not value:
        raise InvalidInput("time is missing")
    if format:
        try:
            return _of_datetime(datetime.strptime(value, format), zone)  # noqa: DTZ007 (the next line's concern)
        except ValueError:
            raise InvalidInput(f"time {value!r} is not written as {format!r}") from None
    # Ten digits are an epoch, though `fromisoformat` might find a date in them.
    for read in (_epoch,) if value.isdecimal() and len(value) > _DATE_DIGITS else _READERS:
        try:
            found = read(value)
        except (ValueError, OverflowError):
            continue
        return _of_epoch(found, value) if isinstance(found, float) else _of_datetime(found, zone)
    raise InvalidInput(f"time {value!r} cannot be read; name its format in the mapping (events.time_format)")


def _rfc_2822(value: str) -> datetime:
    if not _RFC_2822.fullmatch(value):
        raise ValueError(value)
    found = parsedate_to_datetime(value)
    return found if found.tzinfo else found.replace(tzinfo=UTC)  # `-0000`: UTC, by somebody who is elsewhere


def _epoch(value: str) -> float:
    number = float(value)
    if not math.isfinite(number) or not _is_plain(value):
        raise ValueError(value)
    return number


_READERS: Final[tuple[Callable[[str], datetime | float], ...]] = (datetime.fromisoformat, _rfc_2822, _epoch)


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
        self._zone = Zone(mapping.events.timezone)
        self._has_plain_uuids = False

    def read(self, entity: Entity, where: str, row: Mapping[str, Any], *, nth: int = 0) -> SourceRow:
        """Return what the row is, or why it is nothing. `nth`: rows that said the same came before it."""
        try:
            return SourceRow(where, self._entry(entity, row, nth))
        # Whatever is wrong with a row, it is set aside: it would stop every run at the same place.
        except (UnknownAction, ValueError, ArithmeticError, RecursionError) as error:
            return SourceRow(where, None, str(error), shown(row))

    def notes(self) -> list[str]:
        notes = []
        if self._zone.used and not self.mapping.is_given("events.timezone"):
            notes.append(
                "some times have no zone and were read as UTC; where they are local times, say so in a mapping before "
                "they are brought: [events] timezone = 'Europe/Berlin' (or 'UTC', where that is right)"
            )
        if self._has_plain_uuids and not self.mapping.is_given("users.uuids"):
            notes.append(
                "some users' ids are UUIDs without dashes, as Django keeps them in MySQL and SQLite; where the app has "
                "them with dashes (str(user.pk)), say so in a mapping before they are brought: [users] uuids = "
                "'dashed' (or 'plain', where that is right)"
            )
        return notes

    def key(self, row: Mapping[str, Any]) -> Any:
        """Return what an event's row is known by; None where it has nothing of the kind."""
        key = _of(row, self.mapping.events.id)
        return None if key == "" else key

    def action(self, value: object) -> str:
        """Return an action under its new name. Raises `UnknownAction`, `InvalidInput`."""
        found = text("action", value)
        found = check_action(self.mapping.actions.get(found, found))
        if self._actions is not None and found not in self._actions:
            raise UnknownAction(f"unknown action {found!r}")
        return found

    def event(self, event_id: str, user: str, action: str, at: int, **rest: Any) -> UsageEvent | Expired:
        """Make one that can be kept, or else counted at least. Raises `InvalidInput`."""
        now = self._clock.now()
        rest.setdefault("cost", self._costs.get(action, 1))
        if at < now // 1000 - _RETENTION_MS:
            if not 0 <= (cost := rest["cost"]) <= MAX_LIMIT:
                raise InvalidInput(f"cost must be a whole number from 0 to {MAX_LIMIT}, not {cost}")
            return Expired(event_id, check_user(user), action, at, cost if rest.get("allowed", True) else 0)
        return UsageEvent.of(user, action, now=now, id=event_id, at_ms=at, **rest)

    def _user_id(self, name: str, value: object) -> str:
        found = text(name, value)
        if not _PLAIN_UUID.fullmatch(found):
            return found
        self._has_plain_uuids = True
        return str(UUID(found)) if self.mapping.users.uuids == "dashed" else found

    def _entry(self, entity: Entity, row: Mapping[str, Any], nth: int) -> Entry:
        if entity == "plans":
            return self._plan(row)
        return self._user(row) if entity == "users" else self._event(row, nth)

    def _plan(self, row: Mapping[str, Any]) -> Plan:
        columns = self.mapping.plans
        return Plan(text("id", _of(row, columns.id)), _quotas(row, columns.quotas))

    def _user(self, row: Mapping[str, Any]) -> User:
        columns = self.mapping.users
        names = ("plan", "email", "active", "admin")
        said = {name: _of(row, getattr(columns, name)) for name in names}
        return user_of(self._user_id("id", _of(row, columns.id)), _quotas(row, columns.quotas), **said)

    def _event(self, row: Mapping[str, Any], nth: int) -> UsageEvent | Expired:
        columns = self.mapping.events
        user = self._user_id("user", _of(row, columns.user))
        action = self.action(_of(row, columns.action))
        time = _of(row, columns.time)
        if time is None:
            raise InvalidInput("time is missing")
        at = milliseconds(time, zone=self._zone, format=columns.time_format)
        key = self.key(row)
        # Without a key of its own, a row is known by all that it says.
        said = (
            [shown(row)]
            if key is None
            else [str(key), text("user", _of(row, columns.user)), str(_of(row, columns.action))]
        )
        return self.event(derived_id(at, *said, nth=nth), user, action, at, **self._rest(row))

    def _rest(self, row: Mapping[str, Any]) -> dict[str, Any]:
        columns = self.mapping.events
        found: dict[str, Any] = {}
        for name, column, read in (
            ("cost", columns.cost, whole),
            ("allowed", columns.allowed, truth),
            ("status", columns.status, whole),
            ("duration", columns.duration, decimal),
            ("resource", columns.resource, text),
            ("request_id", columns.request_id, text),
        ):
            if (value := _of(row, column)) not in (None, ""):
                found[name] = read(name, value)
        if (metadata := _of(row, columns.metadata)) not in (None, "", b""):
            found["metadata"] = mapping(metadata)
        return found


def user_of(name: str, quotas: dict[str, str], *, plan: Any, email: Any, active: Any, admin: Any) -> User:
    """Make a user of what a row says; None, and no plan and no e-mail, is what it does not say."""
    return User(
        name,
        plan=None if plan in (None, "") else text("plan", plan),
        quotas=quotas,
        role="admin" if admin is not None and truth("admin", admin) else "user",
        active=True if active is None else truth("active", active),
        identities=() if email in (None, "") else (Identity.email(email),),
    )


def derived_id(at: int, *said: str, nth: int = 0) -> str:
    """Make the id of the event that a row is, the same in every run, of what the row says of itself, uninterpreted.

    The first bits are the event's time, so that writing it is one write unit; they are its place, and not its identity.

    Raises `InvalidInput` for a time that it cannot carry.
    """
    if not 0 <= at < _NO_TIME:
        raise InvalidInput("time lies before 1970" if at < 0 else "time lies in the far future")
    text = json.dumps(["ratelimit migrate", *said, nth], ensure_ascii=False)
    return id_from(at, blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest())


def shown(row: Mapping[str, Any]) -> str:
    """Return a row as text, for the file of rejected rows."""
    return json.dumps(plain(dict(row)), ensure_ascii=False)


def _of(row: Mapping[str, Any], columns: names.Names) -> Any:
    for column in columns:
        if column in row:
            return row[column]
    return None


def _quotas(row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, str]:
    """Read quotas. -1 is no limit; a column that is missing or null leaves the action to its policy."""
    found: dict[str, str] = {}
    for action, text in columns.items():
        column, _, window = text.partition("/")
        if (limit := row.get(column)) is None:
            continue
        number = whole(column, limit)
        if not -1 <= number <= MAX_LIMIT:
            raise InvalidInput(f"{column} must be from -1 (no limit) to {MAX_LIMIT}, not {number}")
        found[action] = "unlimited" if number == -1 else f"{number}/{window}"
    return found


_REMEMBERED: Final = 100_000


class DuplicateCounter:
    """Holds for rows up to 100,000 apart, read in the same order in every run."""

    def __init__(self) -> None:
        self._seen: LRUCache[bytes, int] = LRUCache(_REMEMBERED)

    def of(self, row: Mapping[str, Any]) -> int:
        """Return how many that say the same came before."""
        digest = blake2b(shown(row).encode(errors="surrogatepass"), digest_size=16).digest()
        before = self._seen.get(digest) or 0
        self._seen.put(digest, before + 1)
        return before
