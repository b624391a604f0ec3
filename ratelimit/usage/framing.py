"""A journal's bytes: frames of 4 bytes length, 4 bytes CRC-32 of the payload (both little-endian), and the payload.

A crash can tear the end of a segment only: what failed to be written is cut off again, and a record counts as kept
only after everything before it is on the disk. Any other bad frame is damage, and what is sound behind it is read.
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
MAX_FRAME: Final = HEAD_BYTES + MAX_PAYLOAD

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(UsageEvent).decode
# Every payload begins so.
_BEGINNING: Final = b'{"id":'


def frame(event: UsageEvent) -> bytes:
    """The event as one frame."""
    payload = _encode(event)
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def unframe(data: bytes) -> Iterator[tuple[UsageEvent, int]]:
    """The events of the whole and sound frames at the start of `data`, each with the offset at which it ends."""
    end = 0
    while (found := _frame_at(data, end)) is not None:
        yield found
        end = found[1]


def find_frame(data: bytes) -> int:
    """Where the first whole and sound frame begins; -1 where there is none.

    Nobody can plant one inside of an event: a length has a zero byte, and JSON has none.
    """
    at = data.find(_BEGINNING, HEAD_BYTES)
    while at >= 0 and _frame_at(data, at - HEAD_BYTES) is None:
        at = data.find(_BEGINNING, at + 1)
    return at - HEAD_BYTES if at >= 0 else -1


def is_cut_short(data: bytes) -> bool:
    """Whether a crash leaves such an end: a frame that goes on behind it, or zeros that were never written over."""
    if len(data) < HEAD_BYTES or not data.strip(b"\0"):
        return True
    length, _ = _HEAD.unpack_from(data)
    return bool(length <= MAX_PAYLOAD and HEAD_BYTES + length > len(data))


def _frame_at(data: bytes, at: int) -> tuple[UsageEvent, int] | None:
    """The event of the frame there, and the offset at which it ends."""
    if at + HEAD_BYTES > len(data):
        return None
    length, checksum = _HEAD.unpack_from(data, at)
    start, end = at + HEAD_BYTES, at + HEAD_BYTES + length
    if length > MAX_PAYLOAD or end > len(data) or crc32(payload := data[start:end]) != checksum:
        return None
    try:
        return _decode(payload), end
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
