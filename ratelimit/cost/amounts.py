"""Amounts as people write them: `50M`, `1.5k`, `20%`; exact, and with an error that says what would be right."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from ratelimit.errors import ConfigError

_AMOUNT: Final = re.compile(r"([0-9]+(?:[_,][0-9]{3})*|[0-9]*)(\.[0-9]+)?\s*([kKmMgGbB]?)")
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_SHARE: Final = re.compile(rf"({_NUMBER})\s*(%?)")
_SCALES: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
_MOST: Final = 10**15


def amount(name: str, text: str) -> int:
    """A whole number of at least 0: `1500`, `1_500`, `1.5k`, `50M`, `2G` (or `2B`). Raises `ConfigError` on `name`."""
    match = _AMOUNT.fullmatch(text.strip())
    if match is None or not (match[1] or match[2]):
        raise ConfigError(name, f"{text!r} is no amount; write it like 1500, 1.5k, 50M or 2G")
    number = Fraction(re.sub("[_,]", "", match[1]) + (match[2] or "")) * _SCALES[match[3].lower()]
    if number.denominator != 1:
        raise ConfigError(name, f"{text!r} is not a whole number; write it like 1500, 1.5k, 50M or 2G")
    if number > _MOST:
        raise ConfigError(name, f"{text!r} is more than a month can hold")
    return int(number)


def share(name: str, text: str) -> Fraction:
    """A part of the whole, 0 to 1: `20%`, `0.2`. Raises `ConfigError` on `name`."""
    match = _SHARE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(name, f"{text!r} is no share; write it like 20% or 0.2")
    found = Fraction(match[1]) / (100 if match[2] else 1)
    if found > 1:
        hint = f"; did you mean {text.strip()}%?" if not match[2] and found <= 100 else ""
        raise ConfigError(name, f"{text!r} is more than the whole, 100%{hint}")
    return found


def number(name: str, text: str) -> Fraction:
    """A number of at least 0: `2`, `0.25`. Raises `ConfigError` on `name`."""
    if re.fullmatch(_NUMBER, text.strip()) is None:
        raise ConfigError(name, f"{text!r} is no number; write it like 2 or 0.5")
    return Fraction(text.strip())


def in_short(number: Fraction | int) -> str:
    """`50M`, `1.5k`, `12`: three digits, and more only beyond 999G."""
    for letter, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            whole = f"{round(number / scale):,}"
            return (f"{float(number / scale):.3g}" if number < 999 * scale else whole) + letter
    return f"{float(number):.3g}"
