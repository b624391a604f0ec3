"""`Write`: the one thing a store is ever asked to do, a few field operations that apply all or none.

A record is a flat mapping of field names to integers. Every store runs the same `Write` with the same outcome; a
differential test holds them to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

Record: TypeAlias = Mapping[str, int]


class Add(msgspec.Struct, frozen=True, gc=False):
    """`field += amount`, a missing field counting as 0; with `at_most`, only if the sum stays at or below it."""

    field: str
    amount: int
    at_most: int | None = None


class Put(msgspec.Struct, frozen=True, gc=False):
    """`field = value`. `at_most` is no condition: it says what the most is that is ever put there."""

    field: str
    value: int
    at_most: int | None = None


class Drop(msgspec.Struct, frozen=True, gc=False):
    """Remove the field, if it is there."""

    field: str


class Expect(msgspec.Struct, frozen=True, gc=False):
    """Only if `low <= field <= high` (either bound may be left open), or the field is missing and that is fine."""

    field: str
    low: int | None = None
    high: int | None = None
    or_missing: bool = False


Op: TypeAlias = Add | Put | Drop | Expect


class Write(msgspec.Struct, frozen=True, eq=False):
    """Operations that apply all or none. Each field is changed by at most one of them, and may be expected by one more.

    Compared by identity, so that a store may keep what it prepared for a `Write` that is used again.
    """

    ops: tuple[Op, ...]
    expires_at: int
    """Epoch seconds after which the record may be forgotten by garbage collection."""
    whole: bool = False
    """Ask for the whole record after the write, not only for what was touched."""
    counts_until: int = 0
    """Epoch seconds after which what it spends does not count any more; 0 where it spends nothing. For a store that has
    to choose what to forget first: each field that it spends from says by `at_most` how much there is."""


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """What a `Write` did: when applied, the new values of the touched fields (of all of them with `Write.whole`);
    when refused, the whole record as it is, untouched."""

    applied: bool
    record: Record
