"""Messages by hand, held against protobuf's own library."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ratelimit.envoy.messages import (
    CurrentLimit,
    Descriptor,
    DescriptorStatus,
    Override,
    RateLimitRequest,
    RateLimitResponse,
    read_request,
    write_response,
)
from ratelimit.errors import InvalidInput
from tests.envoy import rls

uint32 = st.integers(0, 2**32 - 1)
uint64 = st.integers(0, 2**64 - 1)
texts = st.text(max_size=200)
overrides = st.builds(Override, uint32, st.integers(0, 7), st.integers(1, 2**32 - 1))
descriptors = st.builds(
    Descriptor,
    st.lists(st.tuples(texts, texts), max_size=4).map(tuple),
    st.none() | overrides,
    st.none() | uint64,
    st.booleans(),
)
requests = st.builds(RateLimitRequest, texts, st.lists(descriptors, max_size=3).map(tuple), uint32)


def by_protobuf(request: RateLimitRequest) -> bytes:
    message = rls.RateLimitRequest(domain=request.domain, hits_addend=request.hits)
    for each in request.descriptors:
        added = message.descriptors.add(is_negative_hits=each.negative)
        for key, value in each.entries:
            added.entries.add(key=key, value=value)
        if each.limit is not None:
            added.limit.requests_per_unit, added.limit.unit = each.limit[:2]
            if each.limit.multiplier != 1:
                added.limit.unit_multiplier.value = each.limit.multiplier
        if each.hits is not None:
            added.hits_addend.value = each.hits
    wire: bytes = message.SerializeToString()
    return wire


def as_read(message: Any) -> RateLimitRequest:
    """What our reader is to make of a message that protobuf has read."""
    return RateLimitRequest(_text(message.domain), tuple(map(_as_read, message.descriptors)), message.hits_addend)


def _text(value: str | bytes) -> str:
    """Bytes that are no UTF-8 are Latin-1."""
    if isinstance(value, str):
        return value
    with suppress(UnicodeDecodeError):
        return value.decode()
    return value.decode("latin-1")


def _as_read(message: Any) -> Descriptor:
    limit = message.limit
    multiplier = limit.unit_multiplier.value if limit.HasField("unit_multiplier") else 1
    return Descriptor(
        tuple((_text(entry.key), _text(entry.value)) for entry in message.entries),
        Override(limit.requests_per_unit, limit.unit % 2**32, multiplier) if message.HasField("limit") else None,
        message.hits_addend.value if message.HasField("hits_addend") else None,
        message.is_negative_hits,
    )


@given(requests)
def test_a_request_is_read_as_it_was_written(request: RateLimitRequest) -> None:
    assert read_request(by_protobuf(request)) == request


@given(requests, st.data())
def test_a_message_in_pieces_with_unknown_fields_is_read_as_protobuf_reads_it(
    request: RateLimitRequest, data: st.DataObject
) -> None:
    """Concatenated messages are their merger; what other versions have added is passed over."""
    more = by_protobuf(data.draw(requests)) + bytes.fromhex("a0060a a906 0102030405060708 b506 01020304 b2060378797a")
    wire = by_protobuf(request) + more
    assert read_request(wire) == as_read(rls.RateLimitRequest.FromString(wire))


@given(requests, st.data())
def test_a_damaged_message_is_refused_or_read_as_protobuf_reads_it(
    request: RateLimitRequest, data: st.DataObject
) -> None:
    wire = bytearray(by_protobuf(request))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(wire)))
        wire[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    try:
        ours = read_request(bytes(wire))
    except InvalidInput:
        return
    assert ours == as_read(rls.RawRateLimitRequest.FromString(bytes(wire)))


@given(st.binary(max_size=60))
@example(b"\x0a")
@example(b"\x0a\x05ab")
@example(b"\xff" * 11)
@example(b"\x18" + b"\x80" * 9 + b"\x01")
@example(b"\x0d\x01\x02")
@example(b"\x0b\x0c")
def test_any_bytes_are_read_or_refused(wire: bytes) -> None:
    with suppress(InvalidInput):
        assert isinstance(read_request(wire), RateLimitRequest)


def test_a_text_that_is_no_utf_8_is_one_nonetheless() -> None:
    assert read_request(b"\x0a\x02\xffa").domain == "\xffa"


@pytest.mark.parametrize(
    ("wire", "problem"),
    [
        (b"\x0a\x05ab", "the message is cut off"),
        (b"\x18\x80", "the message is cut off"),
        (b"\x18" + b"\x80" * 10 + b"\x01", "a number of more than 10 bytes"),
        (b"\x08\x05", "a number where a text or a message belongs"),
        (b"\x1a\x01x", "a text or a message where a number belongs"),
        (b"\x0b", "a field of type 3, which proto3 does not have"),
        (b"\x02\x00", "a field has the number 0"),
        (b"\x80\x80\x80\x80\x10\x00", "a field has the number 536870912"),
    ],
)
def test_what_is_wrong_is_said(wire: bytes, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        read_request(wire)


limits = st.builds(CurrentLimit, uint32, st.integers(1, 7), st.integers(1, 2**32 - 1), texts)
statuses = st.builds(DescriptorStatus, st.sampled_from([1, 2]), st.none() | limits, uint32, st.integers(0, 10**11))
printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=200).map(str.encode)
responses = st.builds(
    RateLimitResponse,
    st.sampled_from([1, 2]),
    st.lists(statuses, max_size=4).map(tuple),
    st.lists(st.tuples(printable, printable), max_size=3).map(tuple),
)


@given(responses)
def test_a_response_is_what_protobuf_writes(response: RateLimitResponse) -> None:
    wire = write_response(response)
    message = rls.RateLimitResponse.FromString(wire)
    assert message.SerializeToString(deterministic=True) == wire
    assert message.overall_code == response.code
    assert [(each.key.encode(), each.value.encode()) for each in message.response_headers_to_add] == list(
        response.headers
    )
    assert [_told(each) for each in message.statuses] == [
        (each.code, each.limit and _limit(each.limit), each.remaining, each.reset) for each in response.statuses
    ]


def _told(status: Any) -> tuple[Any, ...]:
    limit, known = None, status.current_limit
    if status.HasField("current_limit"):
        multiplier = known.unit_multiplier.value if known.HasField("unit_multiplier") else 1
        limit = (known.requests_per_unit, known.unit, multiplier, known.name)
    return status.code, limit, status.limit_remaining, status.duration_until_reset.seconds


def _limit(limit: CurrentLimit) -> tuple[Any, ...]:
    return limit.requests_per_unit, limit.unit, limit.multiplier, limit.name
