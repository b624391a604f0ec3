"""What a gateway asks about: the original request, rebuilt from what the gateway says of it.

    path suffix          Envoy appends the original path, and keeps the method: `POST /v1/authz/hints?a=1`
    X-Forwarded-Uri      Traefik, Caddy; with X-Forwarded-Method, -Host, -Proto
    X-Original-URI       nginx, HAProxy; with X-Original-Method, -Host

A client may send any of these fields itself. So one of them is believed only where the gateway overwrites it: the
suffix is looked at first, with `?dialect=nginx` or `haproxy` only `X-Original-*`, and else only `X-Forwarded-*`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal, NamedTuple, TypeAlias, cast, get_args
from urllib.parse import parse_qsl, quote, unquote_to_bytes

from starlette.types import Scope

from ratelimit.errors import InvalidInput
from ratelimit.http.identity import named_by_connection
from ratelimit.http.routing import WEBSOCKET, ambiguity

Dialect: TypeAlias = Literal["plain", "nginx", "haproxy"]

_DIALECTS: Final = get_args(Dialect)
_METHOD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,40}")
_KNOWN_PATHS: Final = 1024
_MAX_KNOWN_PATH: Final = 256
# Of a handshake, where a gateway takes away `Upgrade` as a field of one hop.
_HANDSHAKE: Final = frozenset({b"sec-websocket-key", b"sec-websocket-version"})
# Of an address that begins with one: a URL further in is a part of the path.
_ORIGIN = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class GatewayQuestion(NamedTuple):
    """A question of a gateway."""

    scope: Scope
    """The original request, as a server would have shown it to the app."""
    dialect: Dialect


def asked(scope: Scope, prefix: str) -> GatewayQuestion:
    """Read the question in a request. Raises `InvalidInput` where it is unclear: no limit is off by accident."""
    # Of a field that comes twice the last counts, as gateways append theirs.
    fields: dict[bytes, bytes] = dict(scope["headers"])
    if suffix := _suffix(scope, prefix):
        if suffix == "/" and (b"x-forwarded-uri" in fields or b"x-original-uri" in fields):
            raise InvalidInput(f"write the address without the slash at its end: {prefix}, or send no X-*-Uri fields")
        method, query = scope.get("method", "GET"), scope["query_string"]
        return GatewayQuestion(_original(scope, fields, method, suffix, query, host=None), "plain")
    dialect = dialect_of(scope)
    family = "X-Forwarded" if dialect == "plain" else "X-Original"
    uri = _text(fields, f"{family}-Uri")
    if uri is None:
        raise InvalidInput(
            f"which request is this about? Send its path as {family}-Uri, or append it to {prefix}"
            + (" (with X-Original-URI, write ?dialect=nginx)" if b"x-original-uri" in fields else "")
        )
    asked_method = _text(fields, f"{family}-Method") or ("GET" if scope["type"] == "websocket" else None)
    if asked_method is None:
        raise InvalidInput(f"which method did the request have? Send it as {family}-Method")
    path, _, text = _ORIGIN.sub("", uri).partition("#")[0].partition("?")
    query, host = text.encode("latin-1"), _text(fields, f"{family}-Host")
    return GatewayQuestion(_original(scope, fields, asked_method, path, query, host=host), dialect)


def dialect_of(scope: Scope) -> Dialect:
    """Read the dialect off the address. Raises `InvalidInput` for one that is not known."""
    if not scope["query_string"]:
        return "plain"
    pairs = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
    dialect = pairs.get("dialect", "plain")
    if dialect not in _DIALECTS:
        raise InvalidInput(f"dialect: unknown value {dialect!r}; use one of {', '.join(map(repr, _DIALECTS))}")
    return cast(Dialect, dialect)


def _text(fields: dict[bytes, bytes], name: str) -> str | None:
    value = fields.get(name.lower().encode())
    return None if value is None else value.decode("latin-1").strip()


def _suffix(scope: Scope, prefix: str) -> str:
    raw: bytes | None = scope.get("raw_path")
    path: str = quote(scope["path"]) if raw is None else raw.partition(b"?")[0].decode("latin-1")
    root: str = scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return path[len(prefix) :]


def _original(
    scope: Scope, fields: dict[bytes, bytes], method: str, raw_path: str, query: bytes, *, host: str | None
) -> Scope:
    path, problem = _read_path_again(raw_path) if len(raw_path) <= _MAX_KNOWN_PATH else _read_path(raw_path)
    if problem:
        raise InvalidInput(problem)
    if not _METHOD.fullmatch(method):
        raise InvalidInput(f"{method[:40]!r} is no method")
    upgrades = scope["type"] == "websocket" or fields.get(b"upgrade", b"").strip().lower() == b"websocket"
    upgrades = upgrades or not _HANDSHAKE.isdisjoint(fields)
    # Patterns take a handshake for a GET as well.
    method = WEBSOCKET if upgrades and method.upper() == "GET" else method.upper()
    headers = scope["headers"]
    if b"connection" in fields:
        named = named_by_connection(headers)
        headers = [field for field in headers if field[0] not in named or field[0].startswith(b"x-forwarded-")]
    if host is not None:
        headers = [(name, value) for name, value in headers if name != b"host"]
        headers.append((b"host", host.encode("latin-1")))
    return {
        **scope,
        "type": "http",
        "method": method,
        "scheme": _text(fields, "x-forwarded-proto") or "http",
        "root_path": "",
        "path": path,
        "raw_path": raw_path.encode("latin-1", "replace"),
        "query_string": query,
        "headers": headers,
    }


def _read_path(raw_path: str) -> tuple[str, str]:
    """Return a path, decoded, and what is wrong with it. Gateways pass on what is no ASCII as it came."""
    path = unquote_to_bytes(raw_path.encode("latin-1")).decode(errors="replace")
    if not path.startswith("/"):
        return path, f"the original path must start with /, not {path[:40]!r}"
    if (problem := ambiguity(path)) is not None:
        # Gateways and apps differ in what they make of it: a way around a pattern.
        return path, f"the original path {problem}, or let the gateway do so"
    return path, ""


_read_path_again = lru_cache(_KNOWN_PATHS)(_read_path)


def dialect_or_plain(scope: Scope) -> Dialect:
    """Read the dialect off the address; plain where it says another one."""
    try:
        return dialect_of(scope)
    except InvalidInput:
        return "plain"
