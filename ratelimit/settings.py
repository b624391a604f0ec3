"""The table of a configuration's settings: a field of `Policy` or `Config` says its type, default, check and meaning.

    mode: Mode = setting("enforce", one_of(Mode))
    \"\"\"`"shadow"` decides and records, but never blocks.\"\"\"

Everything else follows from the field: the keyword argument, the key of the file, the environment variable, the row of
the reference and the line of the shown document. What a class takes in other forms than it keeps is `Converted`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    NamedTuple,
    TypeVar,
    cast,
    dataclass_transform,
    get_args,
    overload,
)
from urllib.parse import SplitResult, urlsplit

from ratelimit.errors import ConfigError, nearest
from ratelimit.numerals import to_float, to_int

In = TypeVar("In", contravariant=True)
Out = TypeVar("Out", covariant=True)
T = TypeVar("T")
_KEY: Final = "ratelimit"


class Converted(Generic[In, Out]):
    """The type of a field that takes `In` and keeps `Out`. It exists for type checkers alone."""

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type[object]) -> Converted[In, Out]: ...
        @overload
        def __get__(self, instance: object, owner: type[object]) -> Out: ...
        def __get__(self, instance: object, owner: type[object]) -> Any: ...
        def __set__(self, instance: object, value: In) -> None: ...


@dataclass_transform(frozen_default=True)
def converting_dataclass(kind: type[T]) -> type[T]:
    """Make a frozen dataclass whose fields may be `Converted`: mypy takes a needed one for no field of `dataclass`."""
    return dataclass(frozen=True, slots=True)(kind)


def plain(value: object) -> object:
    """Return a value as JSON and TOML have it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return f"function {getattr(value, '__qualname__', value)}" if callable(value) else value


def as_is(value: Any) -> Any:
    """Take any value: what it means is checked elsewhere."""
    return value


class Setting(NamedTuple):
    """What a field says about itself besides its type and default.

    `check`      gives the value to keep, or raises `ConfigError` with the path below the setting
    `from_text`  reads an environment variable; it never raises, and leaves odd text to `check`
    `from_file`  reads what a file has in a way of its own (`{limit = 5, window = "day"}`); it may raise `ConfigError`
    `shown`      gives what people may see; None for nothing
    """

    check: Callable[[Any], object]
    from_text: Callable[[str], object] = str
    from_file: Callable[[Any], object] = as_is
    shown: Callable[[Any], object] = plain


def setting(default: Any, check: Callable[[Any], object], from_text: Callable[[str], object] = str, **more: Any) -> Any:
    """Declare a field with its default and the parts of its `Setting`."""
    return field(default=default, metadata={_KEY: Setting(check, from_text, **more)})


def settings_of(kind: type[Any]) -> dict[str, Setting]:
    """Return the settings of a dataclass by name, in their order."""
    return {each.name: found for each in fields(kind) if (found := _setting_of(each)) is not None}


def _setting_of(each: Field[Any]) -> Setting | None:
    return cast("Setting | None", each.metadata.get(_KEY))


def keep(instance: object, name: str, check: Callable[[Any], object]) -> None:
    """Put the checked value of a frozen instance's field in the place of the given one."""
    try:
        object.__setattr__(instance, name, check(getattr(instance, name)))
    except ConfigError as error:
        raise error.under(name) from error.__cause__


# What is counted: a field of a class of sums says the text of its metric, too.

_METRIC: Final = "metric"


def stat(text: str, *, gauge: bool = False) -> int:
    """Declare a number that begins at 0, by what it says as a metric: a counter, or with `gauge` how it stands now."""
    found: int = field(default=0, metadata={_METRIC: (text, gauge)})
    return found


def stats_of(kind: type[Any]) -> dict[str, tuple[str, bool]]:
    """Return the text of each number of a class of sums, and whether it is a gauge, by name."""
    return {each.name: each.metadata[_METRIC] for each in fields(kind) if _METRIC in each.metadata}


# How a setting is written in an environment variable.


def number(text: str) -> object:
    """Read a number if it is one; give back the text otherwise, for the check to complain about."""
    for read in (to_int, to_float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def boolean(text: str) -> object:
    """Read `true`, `on`, `1` or an opposite; give back other text, for the check to complain about."""
    words = {"true": True, "on": True, "1": True, "yes": True, "false": False, "off": False, "0": False, "no": False}
    return words.get(text.strip().lower(), text)


def items(text: str) -> list[str]:
    """Read `a, b` as a list."""
    return [item.strip() for item in text.split(",") if item.strip()]


def numbers(text: str) -> list[object]:
    """Read `0.8, 1.0` as a list."""
    return [number(item) for item in items(text)]


def patterns(text: str) -> list[str]:
    """Read `POST /a, GET,HEAD /b`: a comma may also part methods, so what has no path belongs to the next that does."""
    found: list[str] = []
    methods = ""
    for item in items(text):
        if "/" in item:
            found.append(methods + item)
            methods = ""
        else:
            methods += f"{item},"
    return found + items(methods)


def number_or_items(text: str) -> object:
    """Read `2`, or `10.0.0.0/8, 192.168.0.0/16`."""
    value = number(text)
    return items(text) if isinstance(value, str) else value


# Checks that several settings share.


def one_of(literal: object) -> Callable[[object], str]:
    """Return a check that takes the values of a `Literal` (or of a tuple)."""
    choices: tuple[str, ...] = literal if isinstance(literal, tuple) else get_args(literal)

    def check(value: object) -> str:
        if isinstance(value, str) and value in choices:
            return value
        near = nearest(str(value), choices, f"use one of {', '.join(map(repr, choices))}")
        raise ConfigError("", f"unknown value {value!r}; {near}")

    return check


def truth(value: object) -> bool:
    """Take True or False."""
    if type(value) is not bool:
        raise ConfigError("", f"must be true or false, not {value!r}")
    return value


def texts(value: object) -> tuple[object, ...]:
    """Take one text or many."""
    return _several(value, "text", functions=False)


def texts_or_functions(value: object) -> tuple[object, ...]:
    """Take texts or functions of the request, one or many; what a text means is checked where it is used."""
    return _several(value, "text or a function", functions=True)


def _several(value: object, expected: str, *, functions: bool) -> tuple[object, ...]:
    found = [value] if isinstance(value, str) or callable(value) else value
    if not isinstance(found, Iterable) or isinstance(found, Mapping):
        raise ConfigError("", f"expected text or a list of text, not {value!r}")
    found = tuple(found)
    for position, item in enumerate(found):
        if not (isinstance(item, str) and item.strip()) and not (functions and callable(item)):
            raise ConfigError(f"[{position}]", f"expected {expected}, not {item!r}")
    return found


def http_url(text: str) -> SplitResult | None:
    """Return the parts of a URL of HTTP with a host, and with a port that there can be; None where it is none."""
    try:
        parts = urlsplit(text)
        fine = parts.port != 0 and parts.scheme in ("http", "https") and parts.hostname
    except ValueError:
        return None
    return parts if fine else None


def unknown(path: str, name: str, known: Iterable[str]) -> ConfigError:
    """Return the error for a name that is no setting, with the nearest that is one."""
    return ConfigError(path, f"unknown setting; {nearest(name.lower(), known, cutoff=0.5)}")
