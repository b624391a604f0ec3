"""`Parser`: from what a line says to the event that it is."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import datetime
from difflib import get_close_matches
from hashlib import blake2b
from typing import Any, Final

import msgspec

from ratelimit.errors import InvalidEvent
from ratelimit.event import UsageEvent, milliseconds
from ratelimit.event_id import id_from, time_of
from ratelimit.usage.lines import FIELDS

_REMEMBERED: Final = 100_000
_CONTENT: Final = tuple(name for name in UsageEvent.__struct_fields__ if name != "id")


class Parser:
    """Reads the lines of one file, in their order.

    A line without an id gets one made of what it says, and so the same one in another run. Where lines say the same,
    the second of them is another event, the third yet another. An id that comes again is the same event again, and has
    to say the same. Both holds for lines up to 100,000 apart.
    """

    def __init__(self, now: int) -> None:
        self._now = now
        self._seen: OrderedDict[bytes, int] = OrderedDict()
        self._given: OrderedDict[tuple[str, str], tuple[bytes, int]] = OrderedDict()

    def event(self, fields: dict[str, Any], number: int) -> UsageEvent:
        """What the line of this number says. Raises `InvalidEvent`, `InvalidUser`, `InvalidAction`."""
        given = {name: value for name, value in fields.items() if value is not None}
        for name in given:
            if name not in FIELDS:
                raise InvalidEvent(_unknown(name))
        for name in ("user", "action"):
            if name not in given:
                raise InvalidEvent(f"{name} is missing")
        user, action = given.pop("user"), given.pop("action")
        time = given.pop("time", None)
        if time is not None:
            at = _time(time)
            if given.setdefault("at", at) != at and given["at"] != milliseconds(at):
                raise InvalidEvent(f"time {time!r} and at {given['at']!r} are two moments; leave one of them out")
        event_id = given.get("id")
        event = UsageEvent.of(user, action, now=self._now, **given)
        if event_id is None:
            if "at" not in given:
                raise InvalidEvent("time is missing, as in 2026-01-05T12:00:00Z")
            return msgspec.structs.replace(event, id=self._id(event))
        if "at" not in given and time_of(event_id) is None:
            raise InvalidEvent("time is missing, as in 2026-01-05T12:00:00Z; only the id of a UUIDv7 carries it")
        self._check_again(event, number)
        return event

    def _check_again(self, event: UsageEvent, number: int) -> None:
        key, digest = (event.user, event.id), _digest(event)
        before, first = self._given.pop(key, (digest, number))
        self._given[key] = before, first
        if len(self._given) > _REMEMBERED:
            self._given.popitem(last=False)
        if digest != before:
            raise InvalidEvent(f"id {event.id!r} is in line {first} already, which says something else of it")

    def _id(self, event: UsageEvent) -> str:
        digest = _digest(event)
        nth = self._seen.pop(digest, 0) + 1
        self._seen[digest] = nth
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return id_from(event.at, digest + nth.to_bytes(4))


def _digest(event: UsageEvent) -> bytes:
    said = json.dumps([getattr(event, name) for name in _CONTENT], ensure_ascii=False).encode()
    return blake2b(said, digest_size=16).digest()


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
