"""A journal's bytes: frames of 4 bytes length, 4 bytes CRC-32 of the payload (both little-endian), and the payload.

Only the end of a segment can be torn: what failed to be written is cut off again, and a record counts as kept only
after everything before it is on the disk. So the first bad frame is where reading ends.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final
from zlib import crc32

import msgspec

from ratelimit.event import UsageEvent

_HEAD: Final = struct.Struct("<II")
HEAD_BYTES: Final = _HEAD.size
MAX_PAYLOAD: Final = 64 * 1024
"""More than any event takes: a length beyond it is damage."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UsageEvent).decode


def frame(event: UsageEvent) -> bytes:
    """The event as one frame."""
    payload = _encode(event)
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def unframe(data: bytes) -> Iterator[tuple[UsageEvent, int]]:
    """The events of the whole and sound frames at the start of `data`, each with the offset at which it ends."""
    end = 0
    while end + HEAD_BYTES <= len(data):
        length, checksum = _HEAD.unpack_from(data, end)
        start, end = end + HEAD_BYTES, end + HEAD_BYTES + length
        if length > MAX_PAYLOAD or end > len(data) or crc32(payload := data[start:end]) != checksum:
            return
        try:
            event = _decode(payload)
        except msgspec.DecodeError:
            return
        yield event, end
