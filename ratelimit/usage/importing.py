"""`import_events`: a file of events into the table. However often it is repeated, every event is there once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from difflib import get_close_matches
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, TypeAlias

import msgspec

from ratelimit.cache import LRUCache
from ratelimit.clock import Clock, SystemClock, since_epoch
from ratelimit.errors import InvalidEvent, InvalidInput, StoreThrottled
from ratelimit.event import UsageEvent, id_from, time_of
from ratelimit.store.base import MAX_EVENTS_PER_PUT, EventStore
from ratelimit.store.retry import BACKOFF, retry
from ratelimit.usage.export import beside
from ratelimit.usage.formats import FIELDS, FileLine, FormatName, format_of, read_lines
from ratelimit.usage.parquet import read_rows

OnError: TypeAlias = Literal["stop", "skip"]
Progress: TypeAlias = Callable[[int, int], object]
"""Called with the events that are written by now, and the bytes of the file that are behind them."""

_BATCHES_IN_FLIGHT: Final = 8
_MAX_REMEMBERED: Final = 100_000
_CONTENT: Final = tuple(name for name in UsageEvent.__struct_fields__ if name != "id")


class Imported(msgspec.Struct, kw_only=True):
    """What came of a file."""

    events: int = 0
    """In the table now, those that were there before included."""
    rejected: int = 0
    rejects: Path | None = None
    """Where the bad lines are, each with its number and the reason, as JSONL."""


class BadLines(InvalidInput):
    """A file with lines that are no events, of which nothing was written; `first` is the first of them."""

    def __init__(self, path: Path, first: FileLine, count: int) -> None:
        self.first = first
        self.count = count
        more = "" if count == 1 else f" (and {count - 1} more lines are bad)"
        super().__init__(
            f"{path}, line {first.number}: {first.problem}{more}; nothing was written, --on-error skip takes the others"
        )


async def import_events(
    store: EventStore,
    path: Path,
    *,
    format: FormatName | None = None,
    on_error: OnError = "stop",
    clock: Clock | None = None,
    progress: Progress = lambda events, size: None,
) -> Imported:
    """Put the events of a JSONL, CSV or Parquet file into the store; the counters are not touched.

    With `on_error="stop"` the whole file is looked at first, and one bad line raises `BadLines` before anything is
    written. With `"skip"` bad lines go to `FILE.rejected`. Raise `InvalidInput` for a foreign file, `OSError`, and
    `StoreUnavailable`, after which it may simply be repeated.
    """
    chosen = format or format_of(path)
    now = (clock or SystemClock()).now()
    if on_error == "stop":
        await asyncio.to_thread(_check, path, chosen, now)
    done = Imported()
    with closing(_Rejects(path, kept=on_error == "skip")) as rejects:
        for batch, end in _batches(path, chosen, now, rejects):
            await _put(store, batch)
            done.events += len(batch)
            progress(done.events, end)
    done.rejected, done.rejects = rejects.count, rejects.path if rejects.count else None
    return done


def _parsed(path: Path, format: FormatName, now: int) -> Iterator[tuple[FileLine, UsageEvent | None]]:
    parser = EventParser(now)
    for line in read_rows(path) if format == "parquet" else read_lines(path, format):
        if line.problem:
            yield line, None
            continue
        try:
            yield line, parser.event(line.fields, line.number)
        except InvalidInput as error:
            yield line._replace(problem=str(error)), None


def _check(path: Path, format: FormatName, now: int) -> None:
    bad = (line for line, event in _parsed(path, format, now) if event is None)
    if (first := next(bad, None)) is not None:
        raise BadLines(path, first, 1 + sum(1 for _ in bad))


def _batches(path: Path, format: FormatName, now: int, rejects: _Rejects) -> Iterator[tuple[list[UsageEvent], int]]:
    """Yield so many events as go out at once, and where in the file the last of them ends."""
    batch: list[UsageEvent] = []
    end = 0
    for line, event in _parsed(path, format, now):
        end = line.end
        if event is None:
            rejects.add(line)
            continue
        batch.append(event)
        if len(batch) == _BATCHES_IN_FLIGHT * MAX_EVENTS_PER_PUT:
            yield batch, end
            batch = []
    yield batch, end


async def _put(store: EventStore, events: Sequence[UsageEvent]) -> None:
    """Write the events, side by side. Raise `StoreUnavailable` where one is not known to be in the table."""
    batches = [events[start : start + MAX_EVENTS_PER_PUT] for start in range(0, len(events), MAX_EVENTS_PER_PUT)]
    results = await asyncio.gather(*(_put_batch(store, batch) for batch in batches), return_exceptions=True)
    for result in results:  # none of them is left running behind the error of another
        if result is not None:
            raise result


async def _put_batch(store: EventStore, events: Sequence[UsageEvent]) -> None:
    async def put() -> Sequence[UsageEvent]:
        left = await store.put(events)
        if len(left) == len(events):
            raise StoreThrottled("the store is throttled, it takes no events; repeat the import later: it goes on")
        return left

    while events := await retry(put):
        await BACKOFF.pause(1)


class _Rejects:
    """`FILE.rejected`, which is there only if a line is in it."""

    def __init__(self, source: Path, *, kept: bool) -> None:
        self.path = beside(source, ".rejected")
        self.count = 0
        self._source = source
        self._kept = kept
        self._file: BinaryIO | None = None
        if kept:  # what an earlier run left is not about this one
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, if there is one."""
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
                raise InvalidEvent(_unknown(name))
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


def _unknown(name: str) -> str:
    near = get_close_matches(name, FIELDS, n=1)
    return f"unknown field {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(FIELDS)}")
