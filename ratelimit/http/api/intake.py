"""What comes in: bodies and query strings, read within bounds and checked. Raises `Refused` for all that is wrong."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, unquote_to_bytes

import msgspec
from starlette.types import Receive, Scope

from ratelimit.http.api.operation import Operation
from ratelimit.http.api.problems import Refused, bad_input, invalid, refused

T = TypeVar("T")

JSON: Final = b"application/json"
_CLOSE: Final = (b"connection", b"close")
MOST_BODY_S: Final = 30.0
"""Seconds for a body to arrive."""
# A query string longer than what our longest cursors and names come to is not ours.
_MOST_QUERY: Final = 16 * 1024


def field(scope: Scope, name: bytes) -> bytes | None:
    """The first header field of this name."""
    for each, value in scope["headers"]:
        if each == name:
            found: bytes = value
            return found
    return None


async def read_body(scope: Scope, receive: Receive, *, most: int) -> bytes:
    """The whole body, declared as JSON, of at most so many bytes, in at most `MOST_BODY_S`."""
    kind = (field(scope, b"content-type") or b"").partition(b";")[0].strip().lower()
    if kind != JSON:
        raise refused(415, "Unsupported media type", "Send JSON, with Content-Type: application/json")
    length = field(scope, b"content-length") or b"0"
    announced = int(length) if length.isdigit() and len(length) < 20 else 0
    try:
        async with asyncio.timeout(MOST_BODY_S):
            body = b"" if announced > most else await _received(receive, most)
    except TimeoutError:
        raise refused(408, "Request timeout", f"A body has {MOST_BODY_S:g} s to arrive", _CLOSE) from None
    if max(len(body), announced) > most:
        raise refused(413, "Too large", f"A body may have {most} bytes", _CLOSE)
    return body


async def _received(receive: Receive, most: int) -> bytes:
    """All of it, or as soon as it is more than so many bytes, what there is by then."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise refused(400, "Bad input", "the body ended early")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False) and size <= most
    return b"".join(parts)


def decode_body(kind: type[T], body: bytes) -> T:
    """JSON, of the right shape."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise invalid(error) from None
    except UnicodeDecodeError:
        raise Refused(bad_input("", "not valid JSON: the text is not UTF-8")) from None
    except RecursionError:
        raise Refused(bad_input("", "not JSON that can be read: it is nested too deeply")) from None


def decode_query(kind: type[T], scope: Scope) -> T:
    """The query string as a struct of texts and numbers."""
    raw: bytes = scope["query_string"]
    if not raw:
        return _query(kind, {})
    if len(raw) > _MOST_QUERY:
        raise Refused(bad_input("", f"the query string has more than {_MOST_QUERY} bytes"))
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise Refused(bad_input("", "the query string is not percent-encoded UTF-8")) from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name in values:
            raise Refused(bad_input(name, "is given twice"))
        values[name] = value
    return _query(kind, values)


def decode_part(one: Operation, raw: str) -> str:
    """What stands in the path."""
    assert one.part is not None
    try:
        part: str = msgspec.convert(unquote_to_bytes(raw).decode(), one.part_type)
    except UnicodeDecodeError:
        raise Refused(bad_input(one.part, "is not percent-encoded UTF-8")) from None
    except msgspec.ValidationError as error:
        raise Refused(bad_input(one.part, str(error).replace("`", "'"))) from None
    return part


def _query(kind: type[T], values: dict[str, Any]) -> T:
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
