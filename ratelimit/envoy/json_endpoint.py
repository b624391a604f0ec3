"""`POST /json`, the rate limit service for who has no gRPC, and `GET /healthcheck`: as envoyproxy/ratelimit has them.

    {"domain": "edge", "descriptors": [{"entries": [{"key": "remote_address", "value": "10.0.0.1"}]}]}
    → 200, or 429: {"overallCode": "OK", "statuses": [{"code": "OK", "currentLimit": {...}, "limitRemaining": 4, ...}]}

Messages are written as protobuf's JSON: names in either case, numbers also as text, enums by name or number; of answers
what is 0 or empty is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.config.envoy import MAX_UINT32, UNIT_NAMES, UNITS
from ratelimit.envoy.grpc import GrpcError
from ratelimit.envoy.messages import OK, Descriptor, DescriptorStatus, Override, RateLimitRequest, RateLimitResponse
from ratelimit.envoy.service import RateLimitService
from ratelimit.errors import InvalidInput
from ratelimit.http.problems import Problem, ProblemResponse
from ratelimit.numerals import to_int

MAX_BODY: Final = 65_536
_MAX_UINT64: Final = 2**64 - 1


class JsonEndpoint:
    """An ASGI app that answers these two paths; all others are `app`'s."""

    def __init__(self, service: RateLimitService, app: ASGIApp) -> None:
        self._service = service
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) if scope["type"] == "http" else ""
        if path == "/json":
            await (await self._answer(scope, receive))(scope, receive, send)
        elif path == "/healthcheck":
            await Response("OK", media_type="text/plain")(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        if scope["method"] != "POST":
            problem = Problem(title="Method not allowed", status=405, detail="Send it by POST.")
            return ProblemResponse(problem, [(b"allow", b"POST")])
        try:
            response = await self._service.respond(read_json(await _body(receive)))
        except InvalidInput as error:
            return ProblemResponse(Problem(title="This is no rate limit request", status=400, detail=str(error)))
        except GrpcError as error:
            return ProblemResponse(Problem(title="Unavailable", status=503, detail=error.message))
        status = 200 if response.code == OK else 429
        return Response(write_json(response), status, media_type="application/json")


async def _body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY:
            raise InvalidInput(f"the body is larger than {MAX_BODY} bytes")
        if not message.get("more_body"):
            return body


def read_json(body: bytes) -> RateLimitRequest:
    """Read a `RateLimitRequest`. Raises `InvalidInput` with the path to what is wrong."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInput(f"not JSON: {error}") from error
    table = _table(value, "the body", ("domain", "descriptors", "hits_addend"))
    descriptors = tuple(
        _descriptor(each, f"descriptors[{at}]")
        for at, each in enumerate(_list(table.get("descriptors"), "descriptors"))
    )
    hits = _number(table.get("hits_addend", 0), "hits_addend", MAX_UINT32)
    return RateLimitRequest(_text(table.get("domain", ""), "domain"), descriptors, hits)


def _descriptor(value: object, path: str) -> Descriptor:
    table = _table(value, path, ("entries", "limit", "hits_addend", "is_negative_hits"))
    entries = []
    for at, each in enumerate(_list(table.get("entries"), f"{path}.entries")):
        where = f"{path}.entries[{at}]"
        entry = _table(each, where, ("key", "value"))
        entries.append((_text(entry.get("key", ""), f"{where}.key"), _text(entry.get("value", ""), f"{where}.value")))
    limit, hits = table.get("limit"), table.get("hits_addend")
    negative = table.get("is_negative_hits", False)
    if not isinstance(negative, bool):
        raise InvalidInput(f"{path}.is_negative_hits: expected true or false, not {negative!r}")
    return Descriptor(
        tuple(entries),
        None if limit is None else _override(limit, f"{path}.limit"),
        None if hits is None else _number(hits, f"{path}.hits_addend", _MAX_UINT64),
        negative,
    )


def _override(value: object, path: str) -> Override:
    table = _table(value, path, ("requests_per_unit", "unit", "unit_multiplier"))
    unit = table.get("unit", 0)
    if isinstance(unit, str) and unit.lower() in UNITS:
        unit = UNITS[unit.lower()][0]
    return Override(
        _number(table.get("requests_per_unit", 0), f"{path}.requests_per_unit", MAX_UINT32),
        _number(unit, f"{path}.unit", MAX_UINT32),
        _number(table.get("unit_multiplier", 1), f"{path}.unit_multiplier", MAX_UINT32),
    )


def _table(value: object, path: str, known: Iterable[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: expected an object, not {value!r:.60}")
    names = {_camel(name): name for name in known} | {name: name for name in known}
    for name in value:
        if name not in names:
            raise InvalidInput(f"{path}: unknown field {name!r:.60}; there are: {', '.join(map(_camel, known))}")
    return {names[name]: each for name, each in value.items() if each is not None}


def _list(value: object, path: str) -> list[object]:
    if value is None or isinstance(value, list):
        return value or []
    raise InvalidInput(f"{path}: expected a list, not {value!r:.60}")


def _text(value: object, path: str) -> str:
    if isinstance(value, str):
        return value
    raise InvalidInput(f"{path}: expected text, not {value!r:.60}")


def _number(value: object, path: str, most: int) -> int:
    if isinstance(value, str):
        with suppress(ValueError):
            value = to_int(value)
    if type(value) is int and 0 <= value <= most:
        return value
    raise InvalidInput(f"{path}: expected a whole number from 0 to {most}, not {value!r:.60}")


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(map(str.capitalize, rest))


def write_json(response: RateLimitResponse) -> bytes:
    """Write a `RateLimitResponse`."""
    found: dict[str, Any] = {
        "overallCode": _code(response.code),
        "statuses": [_status(status) for status in response.statuses],
    }
    if response.headers:
        found["responseHeadersToAdd"] = [
            {"key": name.decode(), "value": value.decode()} for name, value in response.headers
        ]
    return msgspec.json.encode(found)


def _code(code: int) -> str:
    return "OK" if code == OK else "OVER_LIMIT"


def _status(status: DescriptorStatus) -> dict[str, Any]:
    found: dict[str, Any] = {"code": _code(status.code)}
    if (limit := status.limit) is not None:
        unit = UNIT_NAMES.get(limit.unit, "").upper()
        shown = {"requestsPerUnit": limit.requests_per_unit, "unit": unit, "name": limit.name}
        found["currentLimit"] = {name: value for name, value in shown.items() if value}
        if limit.multiplier != 1:
            found["currentLimit"]["unitMultiplier"] = limit.multiplier
    if status.remaining:
        found["limitRemaining"] = status.remaining
    if status.reset:
        found["durationUntilReset"] = f"{status.reset}s"
    return found
