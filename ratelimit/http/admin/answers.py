"""Answers of the admin listener: JSON that nobody keeps, and problem bodies (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from ratelimit.http.problems import CONTENT_TYPE

_encoder = msgspec.json.Encoder()


def answer(value: object, status: int = 200) -> Response:
    """As JSON."""
    return Response(_encoder.encode(value), status, {"cache-control": "no-store"}, "application/json")


def problem(status: int, title: str, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """What is wrong, and what would be right."""
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    fields = {"cache-control": "no-store", **(headers or {})}
    return Response(_encoder.encode(body), status, fields, CONTENT_TYPE.decode())
