"""A JSON document read piece by piece: the elements of a list or an object, one in memory at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final, TextIO

from ratelimit.errors import InvalidInput
from ratelimit.usage.formats import fields_once

_CHUNK: Final = 64 * 1024
MAX_ELEMENT: Final = 4 * 1024 * 1024
_NUMBER_GOES_ON: Final = ("", *".eE+-0123456789")
_SPACE: Final = " \t\r\n"
_MARKS = re.compile(r'\\.|["\[\]{},]', re.DOTALL)


class UnreadableJson(InvalidInput):
    """An element that is too much to read. The stream is behind it, and the next one may be fine."""


class JsonStream:
    """`done` counts the characters that were read. Raises `InvalidInput` where the text is no JSON."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decode = json.JSONDecoder(object_pairs_hook=fields_once).raw_decode
        self._text = ""
        self._at = 0
        self._ended = False
        self.done = 0

    def peek(self) -> str:
        """Return the next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def elements(self) -> Iterator[str | None]:
        """Enter the list or object that comes next: yield its keys, None for a list, each followed by reading its value
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
        """Return the next value, whole. Raises `UnreadableJson`, also where an object has a name twice."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError:
                value, end = None, None
            except (ValueError, RecursionError) as error:  # a number of 5,000 digits; nested 1,000 times
                self._pass()
                raise UnreadableJson(f"cannot be read: {error}") from None
            # A number may go on behind the end of what was read: `2`, `2.`, `2.0e`.
            if end is not None and (self._ended or self._text[end : end + 1] not in _NUMBER_GOES_ON):
                self._at = end
                return value
            if len(self._text) - self._at > MAX_ELEMENT:
                self._pass()
                raise UnreadableJson(f"is longer than {MAX_ELEMENT} characters")
            if not self._more() and end is None:
                raise self._bad("a value")

    def skip(self) -> int:
        """Pass the next value, of whatever size. Return how many elements it has."""
        if self.peek() not in ("[", "{"):
            self.value()
            return 0
        count = 0
        for count, _ in enumerate(self.elements(), 1):  # noqa: B007
            with suppress(UnreadableJson):
                self.value()
        return count

    def end(self) -> None:
        """Raise where something comes behind the document."""
        if self.peek():
            raise self._bad("the end")

    def _pass(self) -> None:
        """Pass the next value, looking at nothing but quotes and brackets: up to what ends it in its surroundings."""
        depth, quoted = 0, False
        while True:
            seen = self._at
            for mark in _MARKS.finditer(self._text, self._at):
                seen = mark.end()
                if mark[0] == '"':
                    quoted = not quoted
                elif quoted or mark[0][0] == "\\":
                    continue
                elif mark[0] in "[{":
                    depth += 1
                elif not depth:
                    self._at = mark.start()
                    return
                elif mark[0] in "]}":
                    depth -= 1
            # A backslash at the very end belongs to what comes next.
            self._at = max(seen, len(self._text) - self._text.endswith("\\"))
            if not self._more():
                raise self._bad("the end of a value")

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
