"""Cursors: where a page ended, as text for the caller to bring back. Opaque, and fit for a URL or a file."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TypeVar

import msgspec

from ratelimit.errors import InvalidCursor

T = TypeVar("T")


def encode_cursor(place: object) -> str:
    """Return a place, anything that JSON can say, as a cursor."""
    return urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def decode_cursor(cursor: str, kind: type[T]) -> T:
    """Return the place, of the type `kind`. Raises `InvalidCursor`."""
    try:
        return msgspec.json.decode(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)), type=kind)
    except (ValueError, TypeError):
        raise InvalidCursor("the cursor is damaged; take `page.cursor` as it is, or start without one") from None
