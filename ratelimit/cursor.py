"""Pages: how long they may be; and cursors: where one ended, as text for the caller to bring back, fit for a URL."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final, TypeVar

import msgspec

from ratelimit.errors import InvalidCursor, InvalidInput

T = TypeVar("T")

MAX_PAGE: Final = 1000


def encode_cursor(place: object) -> str:
    """Return a place, anything that JSON can say, as a cursor."""
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(cursor: str, kind: type[T]) -> T:
    """Return the place, of the type `kind`. Raises `InvalidCursor`."""
    try:
        return msgspec.json.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
    except (ValueError, TypeError):
        raise InvalidCursor("the cursor is damaged; take `page.cursor` as it is, or start without one") from None


def check_count(name: str, value: object, most: int) -> None:
    """Raise `InvalidInput` unless it is a whole number from 1 to `most`."""
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidInput(f"{name} must be a whole number from 1 to {most}, not {value!r}")
