"""`export_events`: all events, or a user's, into a sink. Memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final, TypeAlias

from ratelimit.clock import Clock, SystemClock
from ratelimit.errors import InvalidInput
from ratelimit.event import UsageEvent
from ratelimit.names import check_action, check_user
from ratelimit.store.base import MAX_PARTS, Ask, Part, ScanPage, TableStore, each_page, first_cursors
from ratelimit.store.retry import retry
from ratelimit.usage.queries import MAX_PAGE, EventQuery, page_of, range_of
from ratelimit.usage.sinks import Asked, Checkpoint, Sink

Progress: TypeAlias = Callable[[int, int], object]
"""Hears the events and the bytes so far."""

_SAVE_EVERY: Final = 20


async def export_events(
    store: TableStore,
    asked: Asked,
    sink: Sink,
    *,
    clock: Clock | None = None,
    progress: Progress = lambda events, size: None,
) -> Checkpoint:
    """Every event that is asked for, once; what the sink holds at the end.

    A user's events come newest first, everybody's in no order. Those that come while it runs may be in it, or not.
    Encoding and writing a page of 1,000 events blocks the event loop, for some 10 ms. Raises `StoreUnavailable`,
    `InvalidInput`, `OutOfRetention`, and `OSError` for the sink; a `File` can be gone on with afterwards.
    """
    reached = sink.begin(_beginning(asked, clock or SystemClock()))
    saved = True
    try:
        ask = _source(store, reached, clock or SystemClock())
        progress(reached.events, reached.bytes)
        async with aclosing(each_page(ask, reached.cursors.copy(), of=asked.parts)) as pages:
            count = 0
            async for part, page in pages:
                _take(sink, reached, part, page)
                progress(reached.events, reached.bytes)
                count += 1
                if saved := count % _SAVE_EVERY == 0:
                    sink.save(reached)
        reached.bytes = sink.finish()
    except BaseException:  # also when told to stop: what was written is worth keeping
        try:
            if not saved:
                sink.save(reached)
        finally:
            sink.abandon()
        raise
    return reached


def _beginning(asked: Asked, clock: Clock) -> Checkpoint:
    if asked.action is not None:
        check_action(asked.action)
    if type(asked.parts) is not int or not 1 <= asked.parts <= MAX_PARTS:
        raise InvalidInput(f"parts must be a whole number from 1 to {MAX_PARTS}, not {asked.parts!r}")
    if asked.user is not None and check_user(asked.user) and asked.parts > 1:
        raise InvalidInput("a user's events are read in their order: leave parts at 1")
    since, until = range_of(_aware(asked.since), _aware(asked.until), now=clock.now())
    return Checkpoint(asked=asked, since=since, until=until, cursors=first_cursors(asked.parts))


def _take(sink: Sink, reached: Checkpoint, part: int, page: ScanPage[UsageEvent]) -> None:
    asked = reached.asked
    events = [
        event
        for event in page.entries
        if asked.action in (None, event.action) and asked.allowed in (None, event.allowed)
    ]
    if events:
        reached.bytes += sink.write(events)
        reached.events += len(events)
    if page.cursor is None:
        del reached.cursors[part]
    else:
        reached.cursors[part] = page.cursor


def _source(store: TableStore, reached: Checkpoint, clock: Clock) -> Ask[UsageEvent]:
    user = reached.asked.user
    since, until = reached.since, reached.until

    async def of_all(part: Part, cursor: str | None) -> ScanPage[UsageEvent]:
        return await retry(lambda: store.scans.events(since=since, until=until, cursor=cursor, part=part))

    async def of_user(_: Part, cursor: str | None) -> ScanPage[UsageEvent]:
        assert user is not None
        query = EventQuery.of(
            user, now=clock.now(), since=_aware(reached.asked.since), until=_aware(reached.asked.until),
            action=None, allowed=None, cursor=cursor,
        )  # fmt: skip
        page = await retry(lambda: page_of(store.events, query, MAX_PAGE))
        return ScanPage(page.events, page.cursor)

    return of_all if user is None else of_user


def _aware(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)
