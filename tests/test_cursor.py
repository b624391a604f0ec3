from __future__ import annotations

import pytest

from ratelimit.cursor import decode_cursor, encode_cursor
from ratelimit.errors import InvalidCursor


@pytest.mark.parametrize("place", [("a", 1), ("ä/ö?", -1), ("x" * 1000, 10**18)])
def test_a_cursor_comes_back_as_the_place(place: tuple[str, int]):
    cursor = encode_cursor(place)
    assert cursor.isascii()
    assert not set(cursor) & set("+/=&? ")
    assert decode_cursor(cursor, tuple[str, int]) == place


@pytest.mark.parametrize(
    "cursor", ["", "x", "é", "!!!!", encode_cursor(("a",)), encode_cursor((1, 1)), encode_cursor({})]
)
def test_a_damaged_cursor_is_refused(cursor: str):
    with pytest.raises(InvalidCursor, match="the cursor is damaged"):
        decode_cursor(cursor, tuple[str, int])
