"""Everything there is, whoever it belongs to: the `Scans` contract, the one that needs no set-up, and the walk.

A scan reads the whole table. It comes in pages, each with a cursor to go on from, also in another process and another
day. What is there all the while is found exactly once; what comes or goes meanwhile may be found or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from heapq import nsmallest
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeAlias, TypeVar
from zlib import crc32

import msgspec

from ratelimit.errors import InvalidCursor
from ratelimit.event import UsageEvent
from ratelimit.names import Key
from ratelimit.store.write import Record

if TYPE_CHECKING:
    from ratelimit.store.events import MemoryEventStore

T = TypeVar("T")

SCAN_PAGE: Final = 1000
"""Items looked at for one page, those that are filtered out included."""
MAX_PARTS: Final = 64


@dataclass(frozen=True, slots=True)
class Part:
    """One of the parts that a scan may be divided into, to be read side by side."""

    index: int = 0
    of: int = 1


WHOLE: Final = Part()


@dataclass(frozen=True, slots=True)
class ScanPage(Generic[T]):
    """Some of it, possibly nothing, and where the rest begins; `cursor` is None when there is no rest."""

    entries: tuple[T, ...]
    cursor: str | None


class Scans(Protocol):
    """Both raise `InvalidCursor` for a cursor that is damaged, and `StoreUnavailable`."""

    async def events(
        self, *, since: int, until: int, cursor: str | None = None, part: Part = WHOLE
    ) -> ScanPage[UsageEvent]:
        """Events at `since` <= at < `until` (ms), of all users, in no order. Sees all that was written before."""
        ...

    async def records(
        self, *, field: str | None = None, cursor: str | None = None, part: Part = WHOLE
    ) -> ScanPage[tuple[Key, Record]]:
        """The counters of all users and actions; with `field`, of those only that have it, and only that one field."""
        ...


Ask: TypeAlias = Callable[[Part, str | None], Awaitable[ScanPage[T]]]
"""A question that is put again for every page: `ask(part, cursor)`."""


async def each_page(
    ask: Ask[T], cursors: Mapping[int, str | None], *, of: int
) -> AsyncGenerator[tuple[int, ScanPage[T]], None]:
    """The pages of the parts that are left, side by side, as they come; `cursors` says where each part begins.

    The next page of a part is on its way while one is used, and never more than that: at most two pages a part are in
    memory. Use it inside of `contextlib.aclosing`.
    """
    asked: dict[asyncio.Task[ScanPage[T]], int] = {}

    def ask_for(index: int, cursor: str | None) -> None:
        asked[asyncio.ensure_future(ask(Part(index, of), cursor))] = index

    try:
        for index, cursor in cursors.items():
            ask_for(index, cursor)
        while asked:
            done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index, page = asked.pop(task), task.result()
                if page.cursor is not None:
                    ask_for(index, page.cursor)
                yield index, page
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def first_cursors(parts: int) -> dict[int, str | None]:
    """For `each_page`: all parts, from their beginning."""
    return dict.fromkeys(range(parts))


class MemoryScans:
    """The `scans` of a `MemoryStore`: in the order of users."""

    def __init__(self, events: MemoryEventStore, records: Callable[[], Iterable[tuple[Key, Record]]]) -> None:
        self._events = events
        self._records = records

    async def events(
        self, *, since: int, until: int, cursor: str | None = None, part: Part = WHOLE
    ) -> ScanPage[UsageEvent]:
        """See `Scans.events`."""
        found = {(event.user, event.at_ms, event.action, event.id): event for event in self._events}
        page, rest = _page(found, tuple[str, int, str, str], cursor, part)
        return ScanPage(tuple(event for event in page if since <= event.at_ms < until), rest)

    async def records(
        self, *, field: str | None = None, cursor: str | None = None, part: Part = WHOLE
    ) -> ScanPage[tuple[Key, Record]]:
        """See `Scans.records`."""
        found = {tuple(key): (key, record) for key, record in self._records()}
        page, rest = _page(found, tuple[str, str], cursor, part)
        if field is not None:
            page = [(key, {field: record[field]}) for key, record in page if field in record]
        return ScanPage(tuple(page), rest)


def _page(
    entries: Mapping[tuple[Any, ...], T], kind: Any, cursor: str | None, part: Part
) -> tuple[list[T], str | None]:
    """By key and not by number, so that what goes meanwhile makes nothing else skipped."""
    after = None if cursor is None else decode_scan_cursor(cursor, kind)
    left = (key for key in entries if (after is None or key > after) and _part_of(key, part.of) == part.index)
    keys = nsmallest(SCAN_PAGE + 1, left)
    rest = encode_scan_cursor(keys[SCAN_PAGE - 1]) if len(keys) > SCAN_PAGE else None
    return [entries[key] for key in keys[:SCAN_PAGE]], rest


def _part_of(key: tuple[Any, ...], parts: int) -> int:
    return crc32(key[0].encode()) % parts if parts > 1 else 0


def encode_scan_cursor(place: Iterable[object]) -> str:
    """Text for a checkpoint; opaque to whoever keeps it."""
    return msgspec.json.encode(tuple(place)).decode()


def decode_scan_cursor(cursor: str, kind: Any) -> Any:
    """The place, of the type `kind`. Raises `InvalidCursor`."""
    try:
        return msgspec.json.decode(cursor, type=kind)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise InvalidCursor("the cursor of the scan is damaged; begin anew without one") from None
