"""`import_events`: a file of events into the table. However often it is repeated, every event is there once.

A line whose id is in the table already, where it says something else, is a bad line: what is in the table stays.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec

from ratelimit.cache import LRUCache
from ratelimit.clock import Clock, SystemClock, since_epoch
from ratelimit.errors import InvalidEvent, InvalidInput, StoreThrottled, nearest
from ratelimit.event import UsageEvent
from ratelimit.event_id import id_from, time_of
from ratelimit.retry import STORE_BACKOFF, retry_store
from ratelimit.store.base import MAX_EVENTS_PER_PUT, EventStore, batches
from ratelimit.usage.export import Progress, beside
from ratelimit.usage.formats import FIELDS, FileLine, FormatName, format_of, read_lines
from ratelimit.usage.parquet import read_rows

OnError: TypeAlias = Literal["stop", "skip"]
_BATCHES_IN_FLIGHT: Final = 8
_MAX_REMEMBERED: Final = 100_000
_NAMED_LINES: Final = 5
_CONTENT: Final = tuple(name for name in UsageEvent.__struct_fields__ if name != "id")
_SAID: Final = {"at_ms": "time"}

T = TypeVar("T")


class Imported(msgspec.Struct, kw_only=True):
    """What came of a file."""

    events: int = 0
    """In the table now, those that were there before included."""
    rejected: int = 0
    conflicting: int = 0
    """Of the rejected ones, those whose id is in the table already with other content."""
    first_rejected: list[str] = []
    """The first few, with their numbers and reasons."""
    rejects: Path | None = None
    """Where the bad lines are, each with its number and the reason, as JSONL."""


class BadLines(InvalidInput):
    """A file with lines that cannot be taken, of which nothing was written; `first` is the first of them, and so many
    of the `count` are `conflicting`: their ids are in the table already with other content."""

    def __init__(self, path: Path, few: Sequence[FileLine], count: int, conflicting: int = 0) -> None:
        self.first = first = few[0]
        self.count = count
        self.conflicting = conflicting
        others = ", ".join(str(line.number) for line in few[1:]) + (", …" if count > len(few) else "")
        said = f", {conflicting} of all conflict with the table" if conflicting else ""
        more = "" if count == 1 else f" (and {count - 1} more lines are bad{said}: {others})"
        super().__init__(
            f"{path}, line {first.number}: {first.problem}{more}; nothing was written, --on-error skip takes the others"
        )


async def import_events(
    store: EventStore,
    path: Path,
    *,
    format: FormatName | None = None,
    on_error: OnError = "stop",
    timelines: Collection[str] = (),
    clock: Clock | None = None,
    progress: Progress = lambda events, size: None,
) -> Imported:
    """Put the events of a JSONL, CSV or Parquet file into the store; the counters are not touched.

    With `on_error="stop"` the whole file is looked at first, and one bad line raises `BadLines` before anything is
    written. With `"skip"` bad lines go to `FILE.rejected`. A line that has an id costs a read of the table. Events of
    the actions in `timelines` are put on their timeline, too. `progress` is told the bytes of the file that are behind
    what is written. Raise `InvalidInput` for a foreign file, `OSError`, and `StoreUnavailable`, after which it may
    simply be repeated.
    """
    chosen = format or format_of(path)
    now = (clock or SystemClock()).now()
    if on_error == "stop":
        await _check(store, path, chosen, now)
    done = Imported()
    with closing(_Rejects(path, kept=on_error == "skip")) as rejects:
        for lines in _batches(path, chosen, now):
            if on_error == "skip":
                lines = await _compared(store, lines)
            for line in lines:
                if line.event is None:
                    rejects.add(line.line)
                    done.conflicting += line.conflicts
            events = [line.event for line in lines if line.event is not None]
            await _side_by_side(lambda some: put_events(store, some, timelines), events)
            done.events += len(events)
            progress(done.events, lines[-1].line.end)
    done.rejected, done.first_rejected = rejects.count, rejects.first
    done.rejects = rejects.path if rejects.count else None
    return done


class _Read(NamedTuple):
    """A line, and the event in it; None where it is a bad one."""

    line: FileLine
    event: UsageEvent | None
    conflicts: bool = False


def _parsed(path: Path, format: FormatName, now: int) -> Iterator[_Read]:
    parser = EventParser(now)
    for line in read_rows(path) if format == "parquet" else read_lines(path, format):
        if line.problem:
            yield _Read(line, None)
            continue
        try:
            yield _Read(line, parser.event(line.fields, line.number))
        except InvalidInput as error:
            yield _Read(line._replace(problem=str(error)), None)


async def _check(store: EventStore, path: Path, format: FormatName, now: int) -> None:
    """Raise `BadLines` where there are any."""
    few: list[FileLine] = []
    count = conflicting = 0
    some = _batches(path, format, now)
    while lines := await asyncio.to_thread(next, some, None):
        for line in await _compared(store, lines):
            if line.event is None:
                few += [line.line] if len(few) < _NAMED_LINES else []
                count, conflicting = count + 1, conflicting + line.conflicts
    if few:
        raise BadLines(path, few, count, conflicting)


def _batches(path: Path, format: FormatName, now: int) -> Iterator[list[_Read]]:
    lines = _parsed(path, format, now)
    while batch := list(islice(lines, _BATCHES_IN_FLIGHT * MAX_EVENTS_PER_PUT)):
        yield batch


async def _compared(store: EventStore, lines: list[_Read]) -> list[_Read]:
    """Return the lines, as bad ones those whose id is in the table with other content.

    An id that was made of what a line says is not looked for: it says the same.
    """
    asked = [line for line in lines if line.event is not None and line.line.fields.get("id") is not None]
    there: dict[int, UsageEvent] = {}

    async def find(some: Sequence[_Read]) -> None:
        events = [line.event for line in some if line.event is not None]
        found = await retry_store(lambda: store.find(events))
        there.update({id(event): one for event, one in zip(events, found, strict=True) if one is not None})

    await _side_by_side(find, asked)
    return [_against(line, there.get(id(line.event))) for line in lines]


def _against(line: _Read, there: UsageEvent | None) -> _Read:
    if there is None or line.event is None or there == line.event:
        return line
    differ = [_SAID.get(name, name) for name in _CONTENT if getattr(there, name) != getattr(line.event, name)]
    problem = f"id {line.event.id!r} is in the table already, with another {', '.join(differ)}; that one stays"
    return _Read(line.line._replace(problem=problem), None, conflicts=True)


async def _side_by_side(work: Callable[[Sequence[T]], Awaitable[None]], items: Sequence[T]) -> None:
    """Do it to all of them, so many at a time as a store takes. Raise what one of them raised, when all have ended."""
    parts = batches(items, MAX_EVENTS_PER_PUT)
    for result in await asyncio.gather(*map(work, parts), return_exceptions=True):
        if result is not None:
            raise result


async def put_events(store: EventStore, events: Sequence[UsageEvent], timelines: Collection[str]) -> None:
    """Write as many as a store takes at once. Raise `StoreUnavailable` where one is not known to be in the table."""

    async def put() -> Sequence[UsageEvent]:
        left = await store.put(events, timelines=timelines)
        if len(left) == len(events):
            raise StoreThrottled("the store is throttled, and takes no events; the same command goes on later")
        return left

    while events := await retry_store(put):
        await STORE_BACKOFF.pause(1)


class _Rejects:
    """`FILE.rejected`, which is there only if a line is in it."""

    def __init__(self, source: Path, *, kept: bool) -> None:
        self.path = beside(source, ".rejected")
        self.count = 0
        self.first: list[str] = []
        self._source = source
        self._kept = kept
        self._file: BinaryIO | None = None
        if kept:  # what an earlier run left is not about this one
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, line: FileLine) -> None:
        """Keep a bad line, or raise `InvalidInput`: the file was looked at before, so it has changed."""
        if not self._kept:
            raise InvalidInput(
                f"{self._source} has changed while it was read (line {line.number}: {line.problem}); import it again"
            )
        if self._file is None:
            self._file = self.path.open("wb")
        reject = {"line": line.number, "reason": line.problem, "text": line.text}
        self._file.write(msgspec.json.encode(reject) + b"\n")
        self.count += 1
        if len(self.first) < _NAMED_LINES:
            self.first.append(f"line {line.number}: {line.problem}")


class EventParser:
    """Makes events of the lines of one file, in their order.

    A line without an id gets one made of what it says, and so the same one in another run. Where lines say the same,
    the second of them is another event, the third yet another. An id that comes again is the same event again, and has
    to say the same. Both holds for lines up to 100,000 apart.
    """

    def __init__(self, now: int) -> None:
        self._now = now
        self._seen: LRUCache[bytes, int] = LRUCache(_MAX_REMEMBERED)
        self._given: LRUCache[tuple[str, str], tuple[bytes, int]] = LRUCache(_MAX_REMEMBERED)

    def event(self, fields: dict[str, Any], number: int) -> UsageEvent:
        """Return what the line of this number says. Raise `InvalidEvent`, `InvalidUser`, `InvalidAction`."""
        given = {name: value for name, value in fields.items() if value is not None}
        for name in given:
            if name not in FIELDS:
                raise InvalidEvent(f"unknown field {name!r}; {nearest(name, FIELDS)}")
        for name in ("user", "action"):
            if name not in given:
                raise InvalidEvent(f"{name} is missing")
        user, action = given.pop("user"), given.pop("action")
        event_id, at = given.get("id"), _milliseconds(given.pop("time", None), given.pop("at", None))
        event = UsageEvent.of(user, action, now=self._now, at_ms=at, **given)
        if at is None and (event_id is None or time_of(event_id) is None):
            carries = "" if event_id is None else "; only the id of a UUIDv7 carries it"
            raise InvalidEvent(f"time is missing, as in 2026-01-05T12:00:00Z{carries}")
        digest = _digest(event)
        if event_id is None:
            return msgspec.structs.replace(event, id=self._id(event, digest))
        before, first = self._given.get((event.user, event.id)) or (digest, number)
        self._given.put((event.user, event.id), (before, first))
        if digest != before:
            raise InvalidEvent(f"id {event.id!r} is in line {first} already, which says something else of it")
        return event

    def _id(self, event: UsageEvent, digest: bytes) -> str:
        nth = (self._seen.get(digest) or 0) + 1
        self._seen.put(digest, nth)
        return id_from(event.at_ms, digest + nth.to_bytes(4))


def _digest(event: UsageEvent) -> bytes:
    said = json.dumps([getattr(event, name) for name in _CONTENT], ensure_ascii=False).encode()
    return blake2b(said, digest_size=16).digest()


def _milliseconds(time: object, at: object) -> Any:
    """Return the one moment that a line tells, in either way; None where it tells none."""
    if time is None:
        return at
    moment = since_epoch(_time(time)) // 1000
    if at not in (None, moment):
        raise InvalidEvent(f"time {time!r} and at {at!r} are two moments; leave one of them out")
    return moment if at is None else at


def _time(text: object) -> datetime:
    example = "write it like 2026-01-05T12:00:00Z, or give at, in milliseconds"
    if type(text) is not str:
        raise InvalidEvent(f"time must be text, not {text!r}; {example}")
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidEvent(f"time {text!r} cannot be read; {example}") from None
    if time.tzinfo is None:
        raise InvalidEvent(f"time {text!r} has no time zone; add Z for UTC")
    return time
