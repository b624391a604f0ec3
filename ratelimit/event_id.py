"""Ids of usage events: UUIDv7 (RFC 9562), whose first 48 bits are the milliseconds since the epoch of the event.

Of the 74 bits that the RFC leaves to chance the last 24 are a checksum of the id. By it one that was made here is known
from a UUIDv7 of somebody else's: ours is of one event, any other may be given again with another time and action.
"""

from __future__ import annotations

import os
import re
from hashlib import blake2b
from random import Random
from typing import Final
from zlib import crc32

_UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_CHECK_BITS: Final = 24
_CHECK_MASK: Final = (1 << _CHECK_BITS) - 1
_RANDOM_BITS: Final = 74 - _CHECK_BITS
_RANDOM_MASK: Final = (1 << _RANDOM_BITS) - 1
# Below the version stand 12 bits of the random part; below the variant the others, and the checksum.
_LOW_BITS: Final = 62 - _CHECK_BITS
_LOW_MASK: Final = (1 << _LOW_BITS) - 1
_VERSION_AND_VARIANT: Final = 0x7 << 76 | 0b10 << 62
_MAX_RECENT: Final = 4096

# Their own, which no `random.seed` of an app's makes the same in several processes.
_steps = Random()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_steps.seed)


# The times of ids that were made a moment ago, which the store asks for next: they need no look at their checksum.
_recent: Final[dict[str, int]] = {}


class EventIds:
    """Makes ids that sort as they were made, as long as time does not step back.

    Within one millisecond the random part grows by a random step (RFC 9562, 6.2, method 2), so that processes forked
    in the middle of it do not go on alike.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = (-1, "", 0)

    def new(self, at: int) -> str:
        # Read once and written once: other threads may be in here, at another millisecond.
        last, prefix, random = self._last
        if at != last:
            prefix = _text_of_time(at)
            random = int.from_bytes(os.urandom(10)) & _RANDOM_MASK >> 1
        else:
            random = (random + 1 + _steps.getrandbits(32)) & _RANDOM_MASK
        self._last = (at, prefix, random)
        event_id = prefix + _text_of_rest(at, random)
        if len(_recent) >= _MAX_RECENT:
            _recent.clear()
        _recent[event_id] = at
        return event_id


def id_from(at: int, content: bytes) -> str:
    """Return the one id that an event of this time and content has: the same whenever it is asked for."""
    random = int.from_bytes(blake2b(content, digest_size=10).digest()) & _RANDOM_MASK
    return _text_of_time(at) + _text_of_rest(at, random)


def _text_of_time(at: int) -> str:
    return f"{at >> 16:08x}-{at & 0xFFFF:04x}-"


def _text_of_rest(at: int, random: int) -> str:
    bits = (random >> _LOW_BITS << 40 | random & _LOW_MASK) << _CHECK_BITS | _VERSION_AND_VARIANT | _check(at, random)
    text = bits.to_bytes(10).hex("-", 2)
    return f"{text[:14]}{text[15:19]}{text[20:]}"


def time_of(event_id: str) -> int | None:
    """Return the milliseconds since the epoch that a UUIDv7 carries; None for any other id."""
    if len(event_id) == 36 and _UUID7.fullmatch(event_id):
        return int(event_id[:8] + event_id[9:13], 16)
    return None


def made_at(event_id: str) -> int | None:
    """Return what `time_of` does, but None also for a UUIDv7 that was not made here (save one in 16 million)."""
    at = _recent.get(event_id)
    if at is not None:
        return at
    at = time_of(event_id)
    if at is None:
        return None
    bits = int(event_id.replace("-", ""), 16)
    random = (bits >> 64 & 0xFFF) << _LOW_BITS | bits >> _CHECK_BITS & _LOW_MASK
    return at if bits & _CHECK_MASK == _check(at, random) else None


def _check(at: int, random: int) -> int:
    return crc32((at << _RANDOM_BITS | random).to_bytes(13)) & _CHECK_MASK
