"""The messages of `envoy.service.ratelimit.v3`, read from and written to the wire of protobuf by hand.

A request of one descriptor takes 5 µs, where protobuf's own library takes 3; but one that was read before is not read
again (`RateLimitService`), and so nobody has to install it. The tests hold both against the real descriptors. Fields
have the numbers of `rls.proto` and `ratelimit.proto`.
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

from ratelimit.errors import InvalidInput

OK: Final = 1
OVER_LIMIT: Final = 2

Fields: TypeAlias = list[tuple[int, "int | bytes"]]

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5
_UINT32: Final = 2**32 - 1
_UINT64: Final = 2**64 - 1


class Override(NamedTuple):
    """A limit that the request brings with it."""

    requests_per_unit: int
    unit: int
    multiplier: int


class Descriptor(NamedTuple):
    """What is to be limited. `hits` is None where the request's own number holds."""

    entries: tuple[tuple[str, str], ...]
    limit: Override | None = None
    hits: int | None = None
    negative: bool = False


class RateLimitRequest(NamedTuple):
    """A call's question. `hits` is 0 where it says nothing."""

    domain: str
    descriptors: tuple[Descriptor, ...]
    hits: int = 0


class CurrentLimit:
    """A `RateLimitResponse.RateLimit`. `wire` is what it is in a status, always the same."""

    __slots__ = ("multiplier", "name", "requests_per_unit", "unit", "wire")

    def __init__(self, requests_per_unit: int, unit: int, multiplier: int = 1, name: str = "") -> None:
        self.requests_per_unit = requests_per_unit
        self.unit = unit
        self.multiplier = multiplier
        self.name = name
        wire = _number(1, requests_per_unit) + _number(2, unit) + (_message(3, name.encode()) if name else b"")
        if multiplier != 1:
            wire += _message(4, _number(1, multiplier))
        self.wire = _message(2, wire)


class DescriptorStatus(NamedTuple):
    """The answer for one descriptor. `reset` is in whole seconds, and there where a limit is."""

    code: int
    limit: CurrentLimit | None = None
    remaining: int = 0
    reset: int = 0


class RateLimitResponse(NamedTuple):
    """Its answer; the headers are those that the client is to see."""

    code: int
    statuses: tuple[DescriptorStatus, ...]
    headers: tuple[tuple[bytes, bytes], ...] = ()


def read_request(data: bytes) -> RateLimitRequest:
    """Read a `RateLimitRequest`. Raises `InvalidInput` for what is none."""
    domain, descriptors, hits = "", [], 0
    for number, value in _fields(data):
        if number == 1:
            domain = _text(value)
        elif number == 2:
            descriptors.append(_descriptor(_bytes(value)))
        elif number == 3:
            hits = _int(value) & _UINT32
    return RateLimitRequest(domain, tuple(descriptors), hits)


def _descriptor(data: bytes) -> Descriptor:
    entries: list[tuple[str, str]] = []
    # A message that comes in pieces is their concatenation; None where there is none of it.
    limit: bytes | None = None
    hits: bytes | None = None
    negative = False
    for number, value in _fields(data):
        if number == 1:
            entries.append(_entry(_bytes(value)))
        elif number == 2:
            limit = (limit or b"") + _bytes(value)
        elif number == 3:
            hits = (hits or b"") + _bytes(value)
        elif number == 4:
            negative = _int(value) != 0
    return Descriptor(
        tuple(entries), None if limit is None else _override(limit), None if hits is None else _wrapped(hits), negative
    )


def _entry(data: bytes) -> tuple[str, str]:
    key = value = ""
    for number, found in _fields(data):
        if number == 1:
            key = _text(found)
        elif number == 2:
            value = _text(found)
    return key, value


def _override(data: bytes) -> Override:
    requests = unit = 0
    multiplier: bytes | None = None
    for number, value in _fields(data):
        if number == 1:
            requests = _int(value) & _UINT32
        elif number == 2:
            unit = _int(value) & _UINT32
        elif number == 3:
            multiplier = (multiplier or b"") + _bytes(value)
    return Override(requests, unit, 1 if multiplier is None else _wrapped(multiplier) & _UINT32)


def _wrapped(data: bytes) -> int:
    """Read a `UInt32Value` or `UInt64Value`."""
    found = 0
    for number, value in _fields(data):
        if number == 1:
            found = _int(value)
    return found


def _fields(data: bytes) -> Fields:
    """Take a message apart. What is unknown is left out by whoever asks."""
    found: Fields = []
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(data, at)
            value: int | bytes | None = data[at : at + size]
            at += size
        elif kind == _VARINT:
            value, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            value = None  # no field of ours is of these
            at += 8 if kind == _FIXED64 else 4
        else:
            raise InvalidInput(f"a field of type {kind}, which proto3 does not have")
        if at > end:
            raise InvalidInput("the message is cut off")
        if not 8 <= tag <= _UINT32:
            raise InvalidInput(f"a field has the number {tag >> 3}")
        if value is not None:
            found.append((tag >> 3, value))
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    try:
        value = data[at]
        at += 1
        if value < 0x80:
            return value, at
        value &= 0x7F
        for shift in range(7, 70, 7):
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _UINT64, at
    except IndexError:
        raise InvalidInput("the message is cut off") from None
    raise InvalidInput("a number of more than 10 bytes")


def _text(value: int | bytes) -> str:
    data = _bytes(value)
    try:
        return data.decode()
    except UnicodeDecodeError:
        # A client's field, as Envoy handed it on once (CVE-2023-27488): for an error it would let the request pass.
        return data.decode("latin-1")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return value
    raise InvalidInput("a number where a text or a message belongs")


def _int(value: int | bytes) -> int:
    if isinstance(value, int):
        return value
    raise InvalidInput("a text or a message where a number belongs")


def write_response(response: RateLimitResponse) -> bytes:
    """Write a `RateLimitResponse`."""
    wire = b"\x08\x01" if response.code == OK else b"\x08\x02"
    for status in response.statuses:
        wire += _message(2, _status(status))
    for name, value in response.headers:
        wire += _message(3, b"\x0a%b%b\x12%b%b" % (_size(len(name)), name, _size(len(value)), value))
    return wire


def _status(status: DescriptorStatus) -> bytes:
    wire = b"\x08\x01" if status.code == OK else b"\x08\x02"
    if status.limit is not None:
        wire += status.limit.wire
    if status.remaining:
        wire += b"\x18" + _size(status.remaining)
    if status.reset:
        reset = _size(status.reset)
        wire += b"\x22%c\x08%b" % (len(reset) + 1, reset)
    return wire


def _number(field: int, value: int) -> bytes:
    """Write a number; nothing for 0, which is what a missing one means."""
    return (_TAGS[field] + _size(value)) if value else b""


def _message(field: int, content: bytes) -> bytes:
    return _TAGS[field + 8] + _size(len(content)) + content


def _size(value: int) -> bytes:
    if value < 0x80:
        return _ONE[value]
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)


_ONE: Final = [bytes((value,)) for value in range(0x80)]
# Of numbers, and 8 further on of messages.
_TAGS: Final = [bytes((field << 3 | kind,)) for kind in (_VARINT, _BYTES) for field in range(8)]
