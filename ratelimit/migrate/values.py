"""Single values as sources write them, as this project needs them: times, texts, truths, numbers, JSON objects."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

from ratelimit.errors import InvalidInput
from ratelimit.event import MARK

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# An epoch of so many digits before the point is in these parts of a second: good from 1973 to 5138.
_UNITS: Final = ((11, 1000), (14, 1), (17, 0.001))
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
    """The zone of times that have none of their own; `used` tells whether there were any."""

    def __init__(self, timezone: str) -> None:
        self._timezone = ZoneInfo(timezone)
        self.used = False

    def of(self, value: datetime) -> datetime:
        """The same, aware."""
        if value.tzinfo is not None:
            return value
        self.used = True
        return value.replace(tzinfo=self._timezone)


def milliseconds(value: object, *, zone: Zone, format: str = "") -> int:
    """Since the epoch, from a datetime, an epoch (s, ms or µs), ISO 8601, RFC 2822, or the `format` (strptime).

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
    """A user's id or an action, whether the source has it as text or as a number. Raises `InvalidInput`."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InvalidInput(f"{name} is missing")
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return str(whole(name, value)) if isinstance(value, bool | float | Decimal) else str(value)


def truth(name: str, value: object) -> bool:
    """MySQL's 0 and 1, bits, `t`, `yes`. Raises `InvalidInput`."""
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
    """A JSON object, from one or from its text; anything else is kept under `value`, so that nothing is lost."""
    if isinstance(value, str | bytes):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
    found = value if isinstance(value, dict) else {"value": value}
    kept: dict[str, Any] = plain(found)
    return kept


def plain(value: object, *, deepest: int = _DEEPEST) -> Any:
    """As JSON and Unicode can say it: half an emoji as its escape, and `…trimmed` for what is nested 100 times deep."""
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
        if digits <= most:
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


_READERS: Final[tuple[Callable[[str], datetime | float], ...]] = (
    datetime.fromisoformat,
    _rfc_2822,
    _epoch,
)
