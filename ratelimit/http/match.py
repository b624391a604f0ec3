"""Patterns of requests: `"POST /hints"`, `"GET,PUT /items/{id}"`, `"/api/**"`. Compiled once, matched on every request.

    POST /hints        this path, by POST
    /items/{id}        any method; `{id}`, or `*`, is one or more characters of one segment
    /files/{rest:path} Starlette's way to write `/files/**`
    /api/**            `/api` and everything below it

Paths are compared as the app's routing sees them: decoded, without the `root_path`, in their own case. What a client
can vary without changing what it gets must not get it past a pattern, so doubled slashes count as one and a trailing
one is ignored, on both sides; a policy counts `/hints;x=1` as `/hints` too (`bare`); `GET` means HEAD too, as Starlette
routes it, and websocket handshakes, which are GETs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Final

from starlette.types import Scope

from ratelimit.errors import ConfigError

WEBSOCKET: Final = "WEBSOCKET"
METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", WEBSOCKET,
)  # fmt: skip

_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*(?::(?P<convertor>[A-Za-z_]\w*))?\}|(?P<star>\*)")
_SLASHES = re.compile(r"/{2,}")
# What stands behind a semicolon is a parameter to some, and a backslash is a slash to others.
_PARAMETERS = re.compile(r";[^/]*")
_DOTS = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\;]|$)")


class Pattern:
    """One pattern. Raises `ConfigError` (its path empty: the caller knows where it stands) for nonsense."""

    __slots__ = ("_exact", "_methods", "_regex", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        methods, _, path = text.strip().rpartition(" ")
        self._methods = _methods(methods) if methods.strip() else None
        if not path.startswith("/"):
            raise ConfigError("", f"{text!r}: the path must start with /, as in 'POST /hints'")
        path = tidy(path)
        self._exact = None if "*" in path or "{" in path or "}" in path else path
        self._regex = _regex(path, text)

    def matches(self, method: str, path: str) -> bool:
        """Whether it fits a method (`WEBSOCKET` for a handshake) and a path as `app_path` gives it."""
        if self._methods is not None and method not in self._methods:
            return False
        if self._exact is not None:
            return path == self._exact
        return self._regex.fullmatch(path) is not None

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class Patterns:
    """Several patterns, of which one has to fit. Raises `ConfigError` with the index of a bad one."""

    __slots__ = ("_patterns",)

    def __init__(self, texts: Iterable[str]) -> None:
        patterns = []
        for number, text in enumerate(texts):
            try:
                patterns.append(Pattern(text))
            except ConfigError as error:
                raise error.under(f"[{number}]") from error
        self._patterns = tuple(patterns)

    def matches(self, method: str, path: str) -> bool:
        """See `Pattern.matches`."""
        return any(pattern.matches(method, path) for pattern in self._patterns)

    def __bool__(self) -> bool:
        return bool(self._patterns)


def app_method(scope: Scope) -> str:
    """The method that patterns know the request by."""
    return WEBSOCKET if scope["type"] == "websocket" else scope["method"]


def app_path(scope: Scope) -> str:
    """The path that patterns know the request by: less `root_path`, as Starlette takes it off, and tidied."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        rest = path[len(root) :]
        if not rest or rest[0] == "/":
            path = rest
    return tidy(path)


def tidy(path: str) -> str:
    """Slashes single, none at the end; the root is `/`."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    if len(path) > 1 and path[-1] == "/":
        return path[:-1]
    return path or "/"


def bare(path: str) -> str:
    """Without what semicolons begin within segments, which some routers take for parameters (RFC 3986, 3.3)."""
    return tidy(_PARAMETERS.sub("", path))


def has_dots(path: str) -> bool:
    """Whether somebody further in may resolve it (RFC 3986, 5.2.4) into a path that a pattern was not asked about."""
    return _DOTS.search(path) is not None


def _methods(text: str) -> frozenset[str]:
    found = {name.strip().upper() for name in text.split(",")}
    for name in sorted(found - set(METHODS)):
        near = get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use some of {', '.join(METHODS)}"
        raise ConfigError("", f"unknown method {name!r}; {hint}")
    return frozenset(found | {"HEAD", WEBSOCKET} if "GET" in found else found)


def _regex(path: str, text: str) -> re.Pattern[str]:
    segments = path[1:].split("/")
    parts = []
    for number, segment in enumerate(segments):
        if segment == "**" or segment.endswith(":path}"):
            if number != len(segments) - 1 or not (segment == "**" or _PLACEHOLDER.fullmatch(segment)):
                raise ConfigError("", f"{text!r}: {segment} takes all the rest, so it must stand alone, and last")
            parts.append("(?:/.*)?")
        else:
            parts.append("/" + _segment(segment, text))
    # Without DOTALL a line feed (%0A) in a path would get past `**`.
    return re.compile("".join(parts), re.DOTALL)


def _segment(segment: str, text: str) -> str:
    if "**" in segment or ":path}" in segment:
        raise ConfigError("", f"{text!r}: ** takes all the rest, so it must stand alone, and last")
    first, *others = (_literal(piece, text) for piece in _split(segment))
    if not others:
        return first
    # All but the last end where what follows them comes first, for good (`?>`): what fits at all fits so as well, and
    # a path made for it cannot make the time grow faster than its length.
    *inner, last = others
    return "".join([first, *[f"(?>[^/]+?{piece})" for piece in inner], "[^/]+", last])


def _split(segment: str) -> Iterator[str]:
    """What stands before, between and behind its placeholders."""
    at = 0
    for found in _PLACEHOLDER.finditer(segment):
        yield segment[at : found.start()]
        at = found.end()
    yield segment[at:]


def _literal(piece: str, text: str) -> str:
    if "{" in piece or "}" in piece:
        raise ConfigError("", f"{text!r}: braces hold a name, as in '/items/{{id}}'")
    return re.escape(piece)
