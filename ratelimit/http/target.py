"""`Target`: what a request asks for, as patterns see it: the method, and every path that a router could read it as.

What a client can vary without changing what it gets must not get it past a pattern, and routers differ in what they
make of a dot, a doubled slash, a line feed at the end, a semicolon, a backslash. So a policy matches a request of which
one form fits, an exemption one of which all do, and who may refuse a request refuses those that `ambiguity` tells of.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

from starlette.types import Scope

WEBSOCKET: Final = "WEBSOCKET"
MAX_FORMS: Final = 16
"""Paths that one is read as. One that is odd in more ways is nobody's: it could be any."""

_ODD = re.compile(r"[\x00-\x20\x7f\\;?#]")
# `.` or `..` as a segment, also to those to whom a semicolon or a backslash ends one.
_DOTS = re.compile(r"(?:\A|[/\\])\.{1,2}(?:[/\\;]|\Z)")
_UP = re.compile(r"(?:\A|/)\.\.(?:/|\Z)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SLASHES = re.compile(r"/{2,}")
# A slash, or encoded without need: routers that look before they decode see no slash, or no letter.
_LEFT_ENCODED = re.compile(rb"%(?=2[DEFdef]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


class Target:
    """The method is in capitals, as Django and Flask take it. `paths` as `forms` gives them."""

    __slots__ = ("method", "paths", "root")

    def __init__(self, scope: Scope) -> None:
        self.method: str = app_method(scope).upper()
        self.paths = forms(scope)
        self.root: str = scope.get("root_path", "")


def forms(scope: Scope) -> tuple[str, ...] | None:
    """Every path that some router reads the request's as, without `root_path` and slashes at the end; None where it
    could be any.

    That is one where `..` goes up: a server of files may come down again into its own folder, by a name that only the
    disk knows (`/files/../static/secret`).
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    raw: Any = scope.get("raw_path")
    own = path
    is_plain = raw is None or len(raw) == len(path)  # nothing in it was encoded
    if root:
        own = _without(root, path)
        is_plain = is_plain and (len(own) < len(path) or root not in path)
    if is_plain and own[:1] == "/" and "//" not in own and "/." not in own and _ODD.search(own) is None:
        return (own.rstrip("/") or "/",)
    found = {own}
    if root and root in path:
        # Litestar and a2wsgi ask neither where it stands nor what follows it.
        found.add("/" + path.split(root, 1)[1].lstrip("/"))
    # Whoever rewrote the path has not kept the raw one.
    if isinstance(raw, bytes) and b"%" in raw and unquote(raw) == path:
        found.add(_without(root, unquote(_LEFT_ENCODED.sub(b"%25", raw))))
    for read in _READINGS:
        found |= {read(form) for form in found}
        if len(found) > MAX_FORMS:
            return None
    if any(_UP.search(form) for form in found):
        return None
    return tuple({form.rstrip("/") or "/" for form in found})


_READINGS: Final[tuple[Callable[[str], str], ...]] = (
    # A target may be a whole address, one without a scheme, or lack its slash.
    lambda path: re.sub(r"\A[A-Za-z][A-Za-z0-9+.-]*:[/\\]{2,}[^/\\?#]*", "", path),
    lambda path: re.sub(r"\A[/\\]{2,}[^/\\?#]*", "", path),
    lambda path: path if path.startswith("/") else f"/{path}",
    # To C it ends at a zero, to a regex before a last line feed; decoded twice, where a query begins.
    lambda path: path.partition("\0")[0],
    lambda path: path.rstrip(),
    lambda path: re.sub(r"[?#].*", "", path, flags=re.DOTALL),
    lambda path: path.replace("\\", "/"),
    # What a semicolon begins within a segment is a parameter (RFC 3986, 3.3).
    lambda path: re.sub(r";[^/]*", "", path),
    lambda path: re.sub(r"/(?:\.|%2[Ee])(?=/|\Z)", "", path),
    lambda path: _SLASHES.sub("/", path),
)


def ambiguity(path: str) -> str | None:
    """Why nobody can tell what a decoded path asks for, to tell whom it is refused; None for one that may pass, and is
    read in every form nonetheless."""
    if _DOTS.search(path):
        return "has dot segments (. or ..): resolve them first"
    if path[:2] in ("//", "/\\"):
        return "begins with two slashes, after which some read a host: send one"
    if _CONTROL.search(path):
        return "has control characters: leave them out"
    if "\ufffd" in path:
        return "is not UTF-8: encode it so"
    return None


def app_method(scope: Scope) -> str:
    """The method as it was sent; `WEBSOCKET` for a handshake."""
    return WEBSOCKET if scope["type"] == "websocket" else scope["method"]


def app_path(scope: Scope) -> str:
    """The path to tell people of: less `root_path`, as Starlette takes it off, and tidied."""
    return tidy(_without(scope.get("root_path", ""), scope["path"]))


def tidy(path: str) -> str:
    """Slashes single, none at the end; the root is `/`."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    if len(path) > 1 and path[-1] == "/":
        return path[:-1]
    return path or "/"


def _without(root: str, path: str) -> str:
    if root and path.startswith(root):
        rest = path[len(root) :]
        if not rest or rest[0] == "/":
            return rest
    return path
