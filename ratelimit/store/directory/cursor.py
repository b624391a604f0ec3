"""Where a page ended, as text for the caller to bring back: opaque, and good for the list it came from only."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Final

import msgspec

from ratelimit.errors import InvalidCursor

_decode: Final = msgspec.json.Decoder(tuple[str, tuple[str, ...]]).decode


def encode_cursor(listing: str, *place: str) -> str:
    """`listing` names the list; `place` is all that the store needs to go on."""
    return urlsafe_b64encode(msgspec.json.encode((listing, place))).decode().rstrip("=")


def decode_cursor(cursor: str, listing: str, *, parts: int) -> tuple[str, ...]:
    """The place. Raises `InvalidCursor`."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        made_for, place = _decode(urlsafe_b64decode(padded))
    except ValueError:
        raise InvalidCursor("the cursor is damaged; begin anew without one") from None
    if made_for != listing or len(place) != parts:
        raise InvalidCursor("the cursor came from another list; begin anew without one")
    return place
