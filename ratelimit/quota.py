"""`Quota`: an amount per time, or at the same time, in the text form people know (`5/day`, `10 per 5 minutes`,
`100/hour; 1000/day`, `10 concurrent`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from typing import Final, Literal, TypeAlias, cast, get_args

from ratelimit.clock import DAY, HOUR, MINUTE, SECOND
from ratelimit.errors import ConfigError, InvalidQuota, nearest

Unit: TypeAlias = Literal["second", "minute", "hour", "day", "week", "month", "year", "concurrent"]
UNITS: Final = cast(tuple[Unit, ...], get_args(Unit)[:-1])
"""Those of time."""
MAX_LIMIT: Final = 10**12
MAX_YEARS: Final = 10
_MOST_DIGITS: Final = 40

_FIXED: Final[dict[str, int]] = {"second": SECOND, "minute": MINUTE, "hour": HOUR, "day": DAY, "week": 7 * DAY}
_MONTHS: Final[dict[str, int]] = {"month": 1, "year": 12}
_SHORT: Final[dict[str, Unit]] = {
    "s": "second", "sec": "second", "secs": "second", "m": "minute", "min": "minute", "mins": "minute",
    "h": "hour", "hr": "hour", "hrs": "hour", "d": "day", "w": "week", "mo": "month", "mos": "month",
    "y": "year", "yr": "year", "yrs": "year",
}  # fmt: skip
_EPOCH_ORDINAL: Final = date(1970, 1, 1).toordinal()
# 1970-01-01 was a Thursday: windows of weeks start on Mondays, as ISO 8601 has it.
_MONDAY: Final = 3 * DAY


@dataclass(frozen=True, slots=True)
class Span:
    """One window on the time line: its `index`, counted from the epoch, and [start, end) in microseconds."""

    index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Window:
    """A length of time that repeats, aligned to UTC: seconds to weeks of fixed length, calendar months and years.

    `CONCURRENT` is none of these: what is limited by it is limited at every moment.
    """

    count: int
    unit: Unit

    def __post_init__(self) -> None:
        if self.unit not in UNITS and self.unit != "concurrent":
            raise InvalidQuota(_unknown_unit(self.unit))
        if self.unit == "concurrent" and self.count != 1:
            raise InvalidQuota("'concurrent' is no length of time; write '10 concurrent'")
        if type(self.count) is not int or self.count < 1:
            raise InvalidQuota(f"a window must last at least 1 {self.unit}, not {self.count!r}")
        if self.longest > MAX_YEARS * 366 * DAY:
            raise InvalidQuota(f"a window of {self} is longer than the {MAX_YEARS} years supported")

    @classmethod
    def parse(cls, text: str) -> Window:
        """`day`, `5 minutes`, `1h`. Raises `InvalidQuota`."""
        match = re.fullmatch(r"\s*([0-9]*)\s*([^\W\d_]+)\s*", text)
        if match is None:
            raise InvalidQuota(f"{text!r} is not a window; write 'day' or '5 minutes'")
        return cls(_whole(match[1]) if match[1] else 1, _unit(match[2]))

    @property
    def longest(self) -> int:
        """Return the most microseconds it can last: a month counts 31 days, a year 366; 0 where it is no time."""
        if self.unit == "concurrent":
            return 0
        if self.unit in _FIXED:
            return self.count * _FIXED[self.unit]
        return self.count * (31 if self.unit == "month" else 366) * DAY

    @property
    def seconds(self) -> int:
        """Return the whole seconds that it lasts at most, as headers show it."""
        return self.longest // SECOND

    def span(self, now: int) -> Span:
        """Return the window that `now` lies in; raise `InvalidQuota` where it is no time."""
        if self.unit == "concurrent":
            raise InvalidQuota("'concurrent' is no length of time")
        if self.unit in _FIXED:
            shift = _MONDAY if self.unit == "week" else 0
            length = self.count * _FIXED[self.unit]
            index = (now + shift) // length
            return Span(index, index * length - shift, (index + 1) * length - shift)
        today = date.fromordinal(now // DAY + _EPOCH_ORDINAL)
        months = self.count * _MONTHS[self.unit]
        index = (today.year * 12 + today.month - 1) // months
        return Span(index, _start_of_month(index * months), _start_of_month((index + 1) * months))

    def __str__(self) -> str:
        return self.unit if self.count == 1 else f"{self.count} {self.unit}s"


@dataclass(frozen=True, slots=True, init=False)
class Quota:
    """At most `limit` units in each `window`; with GCRA, at most `burst` (by default `limit`) at once.

    `window` may be given as text (`Quota(5, "day")`); with `"concurrent"`, so many at the same time, at any cost.
    A limit of 0 refuses everything. Raises `InvalidQuota`.
    """

    limit: int
    window: Window
    burst: int | None = None

    def __init__(self, limit: int, window: Window | str, burst: int | None = None) -> None:
        object.__setattr__(self, "limit", _amount("limit", limit, least=0))
        object.__setattr__(self, "window", _window(window))
        object.__setattr__(self, "burst", None if burst is None else _amount("burst", burst, least=1))
        if burst is not None and self.is_concurrent:
            raise InvalidQuota("burst is for amounts per time; of 'concurrent' the limit is the most at once")

    @classmethod
    def parse(cls, text: str) -> Quota:
        """One quota from its text form. Raises `InvalidQuota` for none, several, or `unlimited`."""
        quotas = parse_quotas(text)
        if len(quotas) != 1:
            raise InvalidQuota(f"{text!r} holds {len(quotas)} quotas where one is expected")
        return quotas[0]

    @property
    def is_concurrent(self) -> bool:
        """Return whether it limits what goes on at the same time."""
        return self.window.unit == "concurrent"

    def __str__(self) -> str:
        if self.is_concurrent:
            return f"{self.limit} concurrent"
        burst = "" if self.burst is None else f" burst {self.burst}"
        return f"{self.limit}/{self.window}{burst}"


Quotas: TypeAlias = tuple[Quota, ...]
QuotasLike: TypeAlias = "str | int | Quota | Iterable[str | Quota]"


class _Unlimited(tuple[Quota, ...]):
    """No quota at all: a type of its own, so that an empty tuple cannot mean it by accident."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNLIMITED"


UNLIMITED: Final[Quotas] = _Unlimited()

_QUOTA = re.compile(
    r"""\s*(?P<limit>[+-]?[0-9]+)\s*(?:/|\bper\b)\s*(?P<window>[0-9]*\s*[^\W\d_]+)\s*(?:\bburst\s+(?P<burst>[0-9]+)\s*)?""",
    re.IGNORECASE | re.VERBOSE,
)
_CONCURRENT_QUOTA = re.compile(r"\s*([+-]?[0-9]+)\s*concurrent\s*", re.IGNORECASE)


def to_quotas(value: QuotasLike) -> Quotas:
    """Return quotas from whatever a caller finds handy: text, one `Quota`, a list of either, or -1 for no limit.

    `UNLIMITED` is an empty tuple of its own; any other empty one is refused, so that nothing is unlimited by accident.
    Raises `InvalidQuota`, or `ConfigError` with the index when one of a list is wrong.
    """
    if isinstance(value, str):
        return parse_quotas(value)
    if isinstance(value, Quota):
        return (value,)
    if type(value) is int:
        if value == -1:
            return UNLIMITED
        if abs(value) <= MAX_LIMIT:
            raise InvalidQuota(f"{value} is not a quota: say per what, as in '{abs(value)}/day', or -1 for no limit")
        raise InvalidQuota(f"a number is not a quota: say per what, as in '5/day'; {MAX_LIMIT} is the most")
    if value is UNLIMITED or value is INACTIVE:
        return value
    if not isinstance(value, Iterable):
        raise InvalidQuota(f"{value!r} is not a quota; write '5/day' or Quota(5, 'day')")
    return _together(list(value))


def _together(items: list[str | Quota]) -> Quotas:
    if not items:
        raise InvalidQuota("no quota given; write 'unlimited' if there is to be no limit")
    quotas: list[Quota] = []
    for number, item in enumerate(items):
        try:
            if isinstance(item, str):
                quotas.append(Quota.parse(item))
            elif isinstance(item, Quota):
                quotas.append(item)
            else:
                raise InvalidQuota(f"{item!r} is not a quota; write '5/day' or Quota(5, 'day')")
        except InvalidQuota as error:
            raise ConfigError(f"[{number}]", str(error)) from error
    return _distinct(quotas)


@lru_cache(maxsize=1024)
def quotas_text(quotas: Quotas) -> str:
    """Return quotas as they may be given."""
    return "; ".join(map(str, quotas)) or "unlimited"


def quotas_texts(quotas: Mapping[str, Quotas]) -> dict[str, str]:
    """Return quotas as they may be given, by action."""
    return {action: quotas_text(several) for action, several in quotas.items()}


def parse_quotas(text: str) -> Quotas:
    """Read `5/day`, `10 per 5 minutes`, `100/hour; 1000/day` (`,` and `|` too), `10 concurrent`, `unlimited` or `-1`.

    Case does not matter, plurals are understood, `burst 20` may follow for GCRA. Raises `InvalidQuota`.
    """
    if text.strip().lower() in ("unlimited", "-1"):
        return UNLIMITED
    return _distinct([_parse_one(part) for part in re.split(r"[;,|]", text)])


def _parse_one(text: str) -> Quota:
    match = _CONCURRENT_QUOTA.fullmatch(text)
    if match is not None:
        return Quota(_whole(match[1]), CONCURRENT)
    match = _QUOTA.fullmatch(text)
    if match is None:
        hint = "'unlimited' stands alone" if text.strip().lower() in ("unlimited", "-1") else "write '5/day'"
        raise InvalidQuota(f"{text.strip()!r} is not a quota; {hint} or '10 per 5 minutes'")
    burst = _whole(match["burst"]) if match["burst"] else None
    window = Window.parse(match["window"])
    if window == CONCURRENT:
        raise InvalidQuota(f"{text.strip()!r} is not a quota; write '{match['limit']} concurrent'")
    return Quota(_whole(match["limit"]), window, burst)


def _distinct(quotas: list[Quota]) -> Quotas:
    """Refuse two quotas on one window, which would write one field twice: which is meant is the author's to say."""
    seen: set[Window] = set()
    for quota in quotas:
        if quota.window in seen:
            per = "'concurrent'" if quota.is_concurrent else f"per {quota.window}"
            raise InvalidQuota(f"two quotas {per}; keep the one that is meant")
        seen.add(quota.window)
    return tuple(quotas)


def _whole(digits: str) -> int:
    """Return the number that the text says, or refuse it: of thousands of digits Python reads none, in its own way."""
    if len(digits) > _MOST_DIGITS:
        raise InvalidQuota(f"a number of {len(digits)} digits is too large; {MAX_LIMIT} is the most")
    return int(digits)


def _amount(name: str, value: int, *, least: int) -> int:
    if type(value) is not int:
        raise InvalidQuota(f"{name} must be a whole number, not {value!r}")
    if not least <= value <= MAX_LIMIT:
        seen = f", not {value}" if abs(value) < 10**_MOST_DIGITS else ""
        unlimited = " (for no limit, write 'unlimited')" if value == -1 else ""
        raise InvalidQuota(f"{name} must be between {least} and {MAX_LIMIT}{seen}{unlimited}")
    return value


def _window(value: object) -> Window:
    if isinstance(value, Window):
        return value
    if isinstance(value, str):
        return Window.parse(value)
    hint = f"'{value} seconds'" if type(value) is int and 0 < value <= MAX_LIMIT else "'day' or '5 minutes'"
    raise InvalidQuota(f"a window must be text, not {type(value).__name__}; write {hint}")


def _unit(word: str) -> Unit:
    lower = word.lower()
    # Of short names the plurals stand in the list: one letter and an s may be another unit (ms).
    name = _SHORT.get(lower, lower.removesuffix("s"))
    if name in UNITS or lower == "concurrent":
        return cast(Unit, name)
    raise InvalidQuota(_unknown_unit(word))


def _unknown_unit(word: str) -> str:
    near = nearest(word.lower(), UNITS, f"use one of {', '.join(UNITS)}")
    return f"unknown unit {word!r}; {near}"


def _start_of_month(months: int) -> int:
    """Return the first microsecond of a month counted from the year 0."""
    year, month = divmod(months, 12)
    return (date(year, month + 1, 1).toordinal() - _EPOCH_ORDINAL) * DAY


CONCURRENT: Final = Window(1, "concurrent")

INACTIVE: Final[Quotas] = (Quota(0, "day"),)
"""What a user has who may do nothing at all; known by identity."""
