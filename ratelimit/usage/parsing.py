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
from ratelimit.event import UsageEvent
from ratelimit.event_id import id_from, time_of
from ratelimit.usage.lines import FIELDS

_REMEMBERED: Final = 100_000
_CONTENT: Final = tuple(name for name in UsageEvent.__struct_fields__ if name != "id")


class Parser:
    """Reads the lines of one file, in their order.

    A line without an id gets one made of what it says, and so the same one in another run. Where lines say the same,
    the second of them is another event, the third yet another: that holds for lines up to 100,000 apart.
    """

    def __init__(self, now: int) -> None:
        self._now = now
        self._seen: OrderedDict[bytes, int] = OrderedDict()

    def event(self, fields: dict[str, Any]) -> UsageEvent:
        """Raises `InvalidEvent`, `InvalidUser`, `InvalidAction`."""
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
            given.setdefault("at", _time(time))
        event_id = given.get("id")
        event = UsageEvent.of(user, action, now=self._now, **given)
        if event_id is None:
            if "at" not in given:
                raise InvalidEvent("time is missing, as in 2026-01-05T12:00:00Z")
            return msgspec.structs.replace(event, id=self._id(event))
        if "at" not in given and time_of(event_id) is None:
            raise InvalidEvent("time is missing, as in 2026-01-05T12:00:00Z; only the id of a UUIDv7 carries it")
        return event

    def _id(self, event: UsageEvent) -> str:
        said = json.dumps([getattr(event, name) for name in _CONTENT], ensure_ascii=False).encode()
        digest = blake2b(said, digest_size=16).digest()
        nth = self._seen.pop(digest, 0) + 1
        self._seen[digest] = nth
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return id_from(event.at, digest + nth.to_bytes(4))


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
