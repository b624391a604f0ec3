"""Numbers in text: ASCII digits, and nothing else of all that Python would take (`1_000`, `٣`, ` 3`, `nan`).

What one program writes another one has to read the same: an underscore or a foreign digit is a mistake to be told.
"""

from __future__ import annotations

import re
from typing import Final

MAX_DIGITS: Final = 40
"""More than any number here has; Python refuses thousands of them, in a way of its own."""

_WHOLE = re.compile(rf"[+-]?[0-9]{{1,{MAX_DIGITS}}}")
_DECIMAL = re.compile(rf"[+-]?(?:[0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,3}})?")


def to_int(text: str) -> int:
    """Return a whole number. Raises `ValueError`."""
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{text[: 2 * MAX_DIGITS]!r} is not a whole number")
    return int(text)


def to_float(text: str) -> float:
    """Return a number. Raises `ValueError`."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"{text[: 2 * MAX_DIGITS]!r} is not a number")
    return float(text)
