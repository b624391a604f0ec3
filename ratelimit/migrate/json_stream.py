"""A JSON document read piece by piece: the elements of a list or an object, one in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, TextIO

from ratelimit.errors import InvalidInput

_CHUNK: Final = 64 * 1024
MAX_ELEMENT: Final = 1024 * 1024
_NUMBER_GOES_ON: Final = ("", *".eE+-0123456789")
_SPACE: Final = " \t\r\n"


class JsonStream:
    """`done` counts the characters that were read. Raises `InvalidInput` where the text is no JSON."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._at = 0
        self._ended = False
        self.done = 0

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def elements(self) -> Iterator[str | None]:
        """Enters the list or object that comes next: its keys, None for a list, each followed by reading its value
        with `value` or `elements`."""
        opening = self._take("[{")
        closing = "]" if opening == "[" else "}"
        if self.peek() == closing:
            self._at += 1
            return
        while True:
            key: str | None = None
            if opening == "{":
                found = self.value()
                if not isinstance(found, str):
                    raise self._bad("a key")
                key = found
                self._take(":")
            yield key
            if self._take("," + closing) == closing:
                return

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except (json.JSONDecodeError, RecursionError):
                value, end = None, None
            # A number may go on behind the end of what was read: `2`, `2.`, `2.0e`.
            if end is not None and (self._ended or self._text[end : end + 1] not in _NUMBER_GOES_ON):
                self._at = end
                return value
            if len(self._text) - self._at > MAX_ELEMENT:
                raise InvalidInput(f"near character {self.done}: an element of more than {MAX_ELEMENT} characters")
            if not self._more() and end is None:
                raise self._bad("a value")

    def skip(self) -> None:
        """Past the next value, of whatever size."""
        if self.peek() in ("[", "{"):
            for _ in self.elements():
                self.value()
        else:
            self.value()

    def _take(self, which: str) -> str:
        found = self.peek()
        if not found or found not in which:
            raise self._bad(" or ".join(map(repr, which)))
        self._at += 1
        return found

    def _more(self) -> bool:
        chunk = self._file.read(_CHUNK)
        self._ended = not chunk
        self._text = self._text[self._at :] + chunk
        self._at = 0
        self.done += len(chunk)
        return bool(chunk)

    def _bad(self, expected: str) -> InvalidInput:
        where = self.done - len(self._text) + self._at
        near = self._text[self._at : self._at + 30]
        found = f"found {near!r}" if near else "the text ends there"
        return InvalidInput(f"not JSON at character {where}: {expected} was expected, {found}")
