"""Pages, and cursors: where one ended, as text for the caller to bring back, fit for a URL."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import msgspec

from ratelimit.errors import InvalidCursor, InvalidInput

T = TypeVar("T")

MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of a list, possibly nothing, and where the rest begins; `cursor` is None when there is no rest. The rest may
    prove empty."""

    entries: tuple[T, ...]
    cursor: str | None


async def each_page(ask: Callable[[str | None], Awaitable[Page[T]]]) -> AsyncGenerator[tuple[T, ...], None]:
    """Yield the entries of page after page; `ask` is given the cursor where each begins."""
    cursor = None
    while True:
        page = await ask(cursor)
        yield page.entries
        if (cursor := page.cursor) is None:
            return


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
