"""Header blocks are read as the library `hpack` reads them."""

from __future__ import annotations

from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ratelimit.envoy.header_block import TABLE_SIZE, BlockDecoder, BlockError, BlockTooLarge, header_block

MAX = 16_384
NAMES = st.sampled_from([b":path", b":method", b"te", b"x-key", b"x-trace", b"cookie"]) | st.binary(max_size=40)
VALUES = st.sampled_from([b"POST", b"", b"trailers", b"1"]) | st.binary(max_size=400)
BLOCKS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=12)


def both(blocks: list[bytes]) -> None:
    """The same headers of each block, or the same end."""
    ours, theirs = BlockDecoder(MAX), hpack.Decoder(MAX)
    for block in blocks:
        try:
            expected: Any = [tuple(header) for header in theirs.decode(block, raw=True)]
        except hpack.OversizedHeaderListError:
            with pytest.raises(BlockTooLarge):
                ours.decode(block)
            return
        except hpack.HPACKError:
            with pytest.raises(BlockError):
                ours.decode(block)
            return
        assert ours.decode(block) == expected
        assert ours._entries == theirs.header_table.dynamic_entries


@given(
    st.lists(BLOCKS, max_size=8), st.lists(st.sampled_from([0, 33, 100, 500, TABLE_SIZE]) | st.none()), st.booleans()
)
def test_what_an_encoder_writes(blocks: list[Any], sizes: list[int | None], huffman: bool) -> None:
    encoder, written = hpack.Encoder(), []
    for at, headers in enumerate(blocks):
        if at < len(sizes) and (size := sizes[at]) is not None:
            encoder.header_table_size = size
        written.append(encoder.encode(headers, huffman=huffman))
    both(written)


PIECES = st.sampled_from(
    [
        *(b"\x82", b"\x88", b"\xbe", b"\xbf", b"\xc0", b"\xff", b"\xff\x00", b"\x80"),
        *(
            b"\x40\x01a\x01b",
            b"\x41\x01b",
            b"\x7f\x01\x01c",
            b"\x00\x01a\x00",
            b"\x10\x01a\x82\x1c\x64",
            b"\x0f\x2f\x03abc",
        ),
        *(b"\x20", b"\x3f\xe1\x1f", b"\x3f\x45", b"\x00"),
    ]
)


@given(st.lists(st.lists(PIECES | st.binary(max_size=6), max_size=12).map(b"".join), min_size=1, max_size=6))
def test_what_nobody_should_write(blocks: list[bytes]) -> None:
    ours, theirs = BlockDecoder(MAX), hpack.Decoder(MAX)
    for block in blocks:
        try:
            headers = ours.decode(block)
        except BlockError:
            return  # it may be stricter
        assert headers == [tuple(header) for header in theirs.decode(block, raw=True)]
        assert ours._entries == theirs.header_table.dynamic_entries


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",
        b"\xbe",
        b"\xff",
        b"\xff\xff\xff\xff\xff\xff\x01",
        b"\x00",
        b"\x00\x01",
        b"\x00\x01a",
        b"\x00\x01a\x05abcd",
        b"\x00\x01a\x81\x00",
        b"\x00\x01a\x84\xff\xff\xff\xff",
        b"\x20\x20\x20",
        b"\x3f\xe2\x1f",
        b"\x3f",
        b"\x82\x20",
        b"\x00\x7f\xff\xff\xff\x7fa",
    ],
)
def test_what_cannot_be_decoded(block: bytes) -> None:
    with pytest.raises(BlockError):
        BlockDecoder(MAX).decode(block)


def test_the_measure_is_that_of_the_table() -> None:
    assert len(BlockDecoder(42 * 10).decode(b"\x82" * 10)) == 10
    with pytest.raises(BlockTooLarge):
        BlockDecoder(42 * 10 - 1).decode(b"\x82" * 10)


def test_it_says_whether_the_table_has_changed() -> None:
    decoder = BlockDecoder(MAX)
    for block, changed in [(b"\x82", False), (b"\x40\x01a\x01b", True), (b"\xbe\x00\x01a\x00", False), (b"\x20", True)]:
        decoder.decode(block)
        assert decoder.changed is changed, block


@given(st.lists(st.tuples(st.text(max_size=20), st.text(max_size=20))))
def test_what_is_written_needs_no_table(headers: list[tuple[str, str]]) -> None:
    block = header_block(*headers)
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = 0
    assert [tuple(header) for header in decoder.decode(block)] == headers, "a client may have none"
    decoder = hpack.Decoder()
    decoder.decode(b"\x40\x01a\x01b\x40\x01b\x01b")
    assert [tuple(header) for header in decoder.decode(block)] == headers
    assert [tuple(header) for header in decoder.decode(block)] == headers
