"""`UsageEvent`: one record of use. Checked and bounded here, once, so that what was accepted can always be stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

import msgspec

from ratelimit.clock import DAY, HOUR, instant, since_epoch
from ratelimit.errors import InvalidEvent
from ratelimit.event_id import EventIds, made_at, time_of
from ratelimit.names import UserId, check_action, check_user
from ratelimit.quota import MAX_LIMIT

RETENTION_DAYS: Final = 90
MAX_FUTURE_MS: Final = HOUR // 1000
MARK: Final = "…trimmed"

MAX_ID_BYTES: Final = 64
MAX_DURATION: Final = 10**15
"""Far beyond any answer, also of a clock that was set; and far below what DynamoDB's numbers can say."""
MAX_RESOURCE_BYTES: Final = 200
MAX_REQUEST_ID_BYTES: Final = 128
# With keys, numbers and attribute names this makes an item of less than 1,024 bytes, one write unit. Each `#` or `%`
# of a user or an action takes two bytes more in its key, so that no item at all is larger than 2 KB.
MAX_TEXT_BYTES: Final = 880

_RETENTION_MS: Final = RETENTION_DAYS * DAY // 1000
_MARK_BYTES: Final = len(MARK.encode())
_ids = EventIds()


class UsageEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One user did, or tried to do, one action. Made by `UsageEvent.of`, which checks every part."""

    id: str
    """A UUIDv7, or whatever the caller gave. The same id of the same user is the same event."""
    user: str
    action: str
    at_ms: int = msgspec.field(name="at")
    """When it happened, in milliseconds since the epoch: `at` as it is stored."""
    cost: int = 1
    """Units that it took, or, where it was refused, would have taken."""
    allowed: bool = True
    status: int | None = None
    """The HTTP status of the answer."""
    duration: float | None = None
    """Milliseconds until the answer was complete."""
    resource: str | None = None
    """What it was done to: a path, `problem-100`."""
    request_id: str | None = None
    metadata: dict[str, Any] = {}
    """Whatever else the caller wants to keep: a JSON object. `…trimmed` in it is its size before it was trimmed."""

    @classmethod
    def of(
        cls,
        user: UserId,
        action: str,
        *,
        now: int,
        id: str | None = None,
        at: datetime | None = None,
        at_ms: int | None = None,
        cost: int = 1,
        allowed: bool = True,
        status: int | None = None,
        duration: float | None = None,
        resource: str | None = None,
        request_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> UsageEvent:
        """Return an event that can be stored; what is too long is trimmed, with the mark `…trimmed`.

        `now` is in microseconds. The time is `at`, an aware `datetime`, or `at_ms`; by default what a UUIDv7 given as
        `id` carries, and else now. Raises `InvalidEvent`, `InvalidUser`, `InvalidAction`.
        """
        user = check_user(user)
        check_action(action)
        if at is not None:
            at_ms = _milliseconds(at)
        at_ms = _time(at_ms, id, now)
        event_id = _ids.new(at_ms) if id is None else _id(id)
        _check_outcome(cost, allowed, status)
        if duration is not None:
            duration = _duration(duration)
        draft = (user, action, at_ms, cost, allowed, status, duration, resource, request_id)
        return cls.of_decision(draft, metadata, id=event_id)

    @classmethod
    def of_decision(
        cls, draft: EventDraft, metadata: Mapping[str, Any] | None = None, *, id: str | None = None
    ) -> UsageEvent:
        """Return the event of a decision that was made just now, whose own parts are good ones; texts are trimmed.

        Raises `InvalidEvent`, for what else there is to keep with it.
        """
        user, action, at_ms, cost, allowed, status, duration, resource, request_id = draft
        event_id = _ids.new(at_ms) if id is None else id
        # Nearly all of them are short.
        if resource is not None and not is_short(resource, MAX_RESOURCE_BYTES):
            resource = _text("resource", resource, MAX_RESOURCE_BYTES)
        if request_id is not None and not is_short(request_id, MAX_REQUEST_ID_BYTES):
            request_id = _text("request_id", request_id, MAX_REQUEST_ID_BYTES)
        kept = {} if metadata is None else _metadata(metadata, _room(user, action, event_id, resource, request_id))
        return cls(event_id, user, action, at_ms, cost, allowed, status, duration, resource, request_id, kept)

    @property
    def at(self) -> datetime:
        """When it happened (UTC, to the millisecond): the event's own time, not that of its writing."""
        return instant(self.at_ms * 1000)

    @property
    def placed_by_id(self) -> bool:
        """Return whether the id was made for this event: nothing else can have it, and it is stored where that says.

        An id that was given is none of these, a UUIDv7 neither: it may have come before, with another time and action.
        """
        return made_at(self.id) == self.at_ms

    @property
    def expires_at(self) -> int:
        """Return the epoch seconds after which it is no longer kept."""
        return (self.at_ms + _RETENTION_MS) // 1000


EventDraft: TypeAlias = tuple[str, str, int, int, bool, int | None, float | None, str | None, str | None]
"""What an event of a decision is made of, before it has an id: `user`, `action`, `at_ms`, `cost`, `allowed`, `status`,
`duration`, `resource` and `request_id`, in the order of the event's own fields."""


def made(waiting: UsageEvent | EventDraft) -> UsageEvent:
    """Return the event of a draft, whose texts are short. Many are made at once: alone each takes twice as long."""
    return waiting if isinstance(waiting, UsageEvent) else UsageEvent(_ids.new(waiting[2]), *waiting)


def _milliseconds(at: object) -> int:
    if isinstance(at, datetime) and at.utcoffset() is not None:
        return since_epoch(at) // 1000
    hint = "add tzinfo=UTC" if isinstance(at, datetime) else "make one with datetime.fromtimestamp(seconds, UTC)"
    raise InvalidEvent(f"at must be an aware datetime, not {_shown(at)}; {hint}")


def _time(at: int | None, event_id: str | None, now: int) -> int:
    now //= 1000
    if at is None:
        carried = time_of(event_id) if type(event_id) is str else None
        at = now if carried is None else carried
    elif type(at) is not int:
        raise InvalidEvent(f"at must be whole milliseconds since the epoch, not {at!r}")
    if now - _RETENTION_MS <= at <= now + MAX_FUTURE_MS:
        return at
    raise InvalidEvent(_bad_time(at, now))


def _bad_time(at: int, now: int) -> str:
    for milliseconds, unit in ((at * 1000, "seconds"), (at // 1000, "microseconds")):
        if abs(milliseconds - now) < _RETENTION_MS:
            return f"at is in {unit}: give milliseconds since the epoch"
    if at < now:
        return f"at is {_shown((now - at) // (DAY // 1000))} days ago; events are kept {RETENTION_DAYS} days"
    return f"at lies {_shown((at - now) // 1000)} seconds in the future; an hour is the most"


def _id(event_id: str) -> str:
    if type(event_id) is not str or not event_id:
        raise InvalidEvent(f"id must be text, not {event_id!r}")
    if (size := len(_encoded("id", event_id))) > MAX_ID_BYTES:
        raise InvalidEvent(f"id takes {size} bytes, and {MAX_ID_BYTES} are the most; pass a digest of it")
    return event_id


def _duration(duration: float) -> float:
    if type(duration) not in (int, float) or not 0 <= duration <= MAX_DURATION:
        raise InvalidEvent(f"duration must be milliseconds from 0 to {MAX_DURATION}, not {_shown(duration)}")
    return round(float(duration), 3)


def _check_outcome(cost: object, allowed: object, status: object) -> None:
    if type(cost) is not int or not 0 <= cost <= MAX_LIMIT:
        raise InvalidEvent(f"cost must be a whole number from 0 to {MAX_LIMIT}, not {_shown(cost)}")
    if type(allowed) is not bool:
        raise InvalidEvent(f"allowed must be True or False, not {allowed!r}")
    if status is not None:
        check_status(status)


def check_status(status: object) -> None:
    """Raises `InvalidEvent`."""
    if type(status) is not int or not 100 <= status <= 599:
        raise InvalidEvent(f"status must be an HTTP status, not {_shown(status)}")


def _shown(value: object) -> str:
    """Return a value as a message shows it: Python refuses to spell out a number of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    return repr(value)


def is_short(text: object, most: int) -> bool:
    """Return whether nothing has to be cut off, nor looked for in it: it is ASCII."""
    return type(text) is str and len(text) <= most and text.isascii()


def _text(name: str, text: str, most: int) -> str:
    if type(text) is not str:
        raise InvalidEvent(f"{name} must be text, not {type(text).__name__}")
    return _trimmed(_encoded(name, text), text, most)


def _encoded(name: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidEvent(f"{name} is not valid Unicode at position {error.start}") from None


def resource_text(resource: str) -> str:
    return _text("resource", resource, MAX_RESOURCE_BYTES)


def _trimmed(encoded: bytes, text: str, most: int) -> str:
    if len(encoded) <= most:
        return text
    return encoded[: max(0, most - _MARK_BYTES)].decode(errors="ignore") + MARK


def _room(user: str, action: str, *others: str | None) -> int:
    """Return the bytes left for the metadata; at least 100, whatever the rest takes."""
    taken = len(user.encode()) + 2 * len(action.encode())
    return MAX_TEXT_BYTES - taken - sum(len(other.encode()) for other in others if other is not None)


def _metadata(metadata: object, room: int) -> dict[str, Any]:
    """A copy of it, so that the caller may go on using theirs; trimmed to `room` bytes of JSON."""
    if not isinstance(metadata, Mapping) or not all(type(key) is str for key in metadata):
        raise InvalidEvent("metadata must be a JSON object: a mapping whose keys are text")
    encoded = encode_metadata(metadata)
    if len(encoded) <= room:
        kept: dict[str, Any] = json.loads(encoded)
        return kept
    return _trimmed_metadata(json.loads(encoded), len(encoded), room)


def _trimmed_metadata(metadata: dict[str, Any], size: int, room: int) -> dict[str, Any]:
    """Return the entries that fit, in their order; a text that does not is cut, anything else left out."""
    metadata.pop(MARK, None)
    kept: dict[str, Any] = {}
    for key, value in metadata.items():
        left = room - len(encode_metadata({**kept, key: "", MARK: size}))
        if len(_json(value)) - 2 <= left:
            kept[key] = value
        elif isinstance(value, str) and left > 2 * _MARK_BYTES:
            kept[key] = _cut(value, left)
    return {**kept, MARK: size}


def _cut(value: str, left: int) -> str:
    """Return so much of a text that its JSON, without quotes, takes at most `left` bytes, the mark included."""
    most = left
    while len(_json(cut := _trimmed(value.encode(), value, most))) - 2 > left:
        most -= max(1, most // 8)
    return cut


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    try:
        return _json(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEvent(f"metadata is not JSON: {error}") from None


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
