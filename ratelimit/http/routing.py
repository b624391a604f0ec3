"""Patterns of requests: `"POST /hints"`, `"GET,PUT /items/{id}"`, `"/api/**"`. Compiled once, matched on every request.

    POST /hints        this path, by POST
    /items/{id}        any method; `{id}`, or `*`, is one or more characters of one segment
    /files/{rest:path} Starlette's way to write `/files/**`
    /api/**            `/api` and everything below it

Paths are compared as the app's routing sees them: decoded, without the `root_path`, in every form that `RequestTarget`
knows. Policies take capitals for small letters, as Express and ASP.NET do; exemptions are for what is written as they
are. Slashes at the end are ignored on both sides. `GET` means HEAD too, as Starlette routes it, and websocket
handshakes, which are GETs. A method that a request asks to be taken for another one's (`X-HTTP-Method-Override`) counts
as well as the one that it has.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final
from unicodedata import normalize
from urllib.parse import parse_qsl, unquote

from starlette.types import Scope

from ratelimit.errors import ConfigError, nearest, within

logger = logging.getLogger("ratelimit.http")

WEBSOCKET: Final = "WEBSOCKET"
MAX_FORMS: Final = 16
"""Paths that one is read as. One that is odd in more ways is nobody's: it could be any."""

# By which frameworks take one method for another (Express, Rails, Spring, Symfony, ASP.NET, the recipes of Flask).
_OVERRIDES: Final = frozenset({b"x-http-method-override", b"x-http-method", b"x-method-override"})
_OVERRIDE_PARAMETER: Final = "_method"

_ODD = re.compile(r"[\x00-\x20\x7f\\;?#%]")
# `.` or `..` as a segment, also to those to whom a semicolon or a backslash ends one.
_DOTS = re.compile(r"(?:\A|[/\\])\.{1,2}(?:[/\\;]|\Z)")
# Those that need no slash at the start (RFC 9112, 3.2).
_OTHER_TARGETS = re.compile(r"\*|(?i:https?)://[^/\\?#\x00-\x20\x7f]+(?:/[^\\\x00-\x20\x7f]*)?")
_UP = re.compile(r"(?:\A|/)\.\.(?:/|\Z)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SLASHES = re.compile(r"/{2,}")
# A slash, or encoded without need: routers that look before they decode see no slash, or no letter.
_LEFT_ENCODED = re.compile(rb"%(?=2[DEFdef]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe])")


class RequestTarget:
    """What a request asks for, as patterns see it: the method, in capitals as Django and Flask take it, and every path
    that a router could read it as, by `forms`.

    What a client can vary without changing what it gets must not get it past a pattern, and routers differ in what they
    make of a dot, a doubled slash, a line feed at the end, a semicolon, a backslash. So a policy matches a request of
    which one form fits, an exemption one of which all do, and who may refuse a request refuses those that `ambiguity`
    tells of.
    """

    __slots__ = ("methods", "paths", "root")

    def __init__(self, scope: Scope) -> None:
        self.methods: frozenset[str] | None = frozenset([app_method(scope).upper()])
        """Of which one has to fit; None where any would do."""
        self.paths = forms(scope)
        self.root: str = scope.get("root_path", "")


def forms(scope: Scope) -> tuple[str, ...] | None:
    """Return every path that some router reads the request's as, without `root_path` and slashes at the end; None where
    it could be any.

    That is one where `..` goes up: a server of files may come down again into its own folder, by a name that only the
    disk knows (`/files/../static/secret`). So is one that does not begin with a slash: what a parser of URLs takes for
    a scheme (`z:/hints`), or leaves out, it does not of a path.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    raw: Any = scope.get("raw_path")
    own = path
    is_plain = path.isascii() if raw is None else len(raw) == len(path)  # nothing in it was encoded
    if root:
        own = _without(root, path)
        is_plain = is_plain and (len(own) < len(path) or root not in path)
    if is_plain and own[:1] == "/" and "//" not in own and "/." not in own and _ODD.search(own) is None:
        plain = own.rstrip("/") or "/"
        if plain[-1] != "." and "./" not in plain and ":$" not in plain and ".php/" not in plain:
            return (plain,)
    if own and own[0] != "/" and _OTHER_TARGETS.fullmatch(own) is None:
        return None
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
    # What a proxy has decoded before it passed it on, as nginx's `proxy_pass http://app$uri` does, is decoded again;
    # and Windows' HTTP.sys knows another way to encode.
    lambda path: unquote(re.sub(r"%[uU]00(?=[0-9A-Fa-f]{2})", "%", path)),
    # A target may be a whole address, or one without a scheme.
    lambda path: re.sub(r"\A(?i:https?)://[^/?#]*", "", path),
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
    # To Windows a name ends before dots, spaces and the name of a stream; to macOS it is the same composed or not.
    lambda path: re.sub(r"(?:(?<=[^/. ])[. ]+|::?\$[^/]*)(?=/|\Z)", "", path),
    lambda path: normalize("NFC", path),
    # What follows a script of PHP is the path to it.
    lambda path: re.sub(r"/[^/]+\.php(?=/)", "", path),
    lambda path: _SLASHES.sub("/", path),
)


def ambiguity(path: str) -> str | None:
    """Say why nobody can tell what a decoded path asks for, to who is refused it; None for one that may pass, and is
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
    """Return the method as it was sent; `WEBSOCKET` for a handshake."""
    return WEBSOCKET if scope["type"] == "websocket" else scope["method"]


def overriding_methods(scope: Scope) -> frozenset[str]:
    """Return the methods, in capitals, that the request asks to be taken for beside its own."""
    if scope["type"] == "websocket":
        return frozenset()
    # CGI and WSGI make no difference between `-` and `_`.
    said = [value.decode("latin-1") for name, value in scope["headers"] if name.replace(b"_", b"-") in _OVERRIDES]
    if scope["method"] == WEBSOCKET:  # as its fields say: nobody has seen it upgrade
        said.append("GET")
    if query := scope.get("query_string"):
        said += [value for name, value in parse_qsl(query.decode("latin-1")) if name == _OVERRIDE_PARAMETER]
    return frozenset([one.strip().upper() for text in said for one in text.split(",")])


def app_path(scope: Scope) -> str:
    """Return the path to tell people of: less `root_path`, as Starlette takes it off, and tidied."""
    path: str = scope["path"]
    if root := scope.get("root_path", ""):
        path = _without(root, path)
    return tidy(path)


def tidy(path: str) -> str:
    """Make slashes single, and leave none at the end; the root is `/`."""
    if "//" in path:
        path = _SLASHES.sub("/", path)
    return (path.removesuffix("/") if path.endswith("/") else path) or "/"


def _without(root: str, path: str) -> str:
    if root and path.startswith(root):
        rest = path[len(root) :]
        if not rest or rest[0] == "/":
            return rest
    return path


METHODS: Final = (
    "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "QUERY", WEBSOCKET,
)  # fmt: skip

_PLACEHOLDER = re.compile(r"\{[A-Za-z_]\w*(?::(?P<convertor>[A-Za-z_]\w*))?\}|(?P<star>\*)")
# What only other routers and regular expressions write so.
_FOREIGN = re.compile(r"[<>\[\]\\^|]|\$\Z|\(\?|\(\.|(?<=[/.(-]):[A-Za-z_]|(?<=/)\.[*+](?=/|\Z)|\{[^{}]*[^\w:{}]")
# Express writes all the rest so; here it is one segment that ends in a word.
_SPLAT = re.compile(r"/\*([A-Za-z_]\w*)\Z")
_TRANSLATED: Final = (
    (r"\A\^|\\[AbZz]|\$\Z", ""),
    (r"<path:\w+>|\[+\.{3}\w+\]+|\{\*+\w*\}|\{\w+(?:\.{3}|:\.?[*+])\}", "**"),
    (r"(?<=/):\w+[*+](?=/?\Z)|(?<=/)\(?\.[*+]\)?(?=/?\Z)", "**"),
    (r"\(\?P?<(\w+)>(?:[^()]|\([^()]*\))*\)|<(?:\w+(?:\([^()]*\))?:)?(\w+)>|\[(\w+)\]", r"{\1\2\3}"),
    (r"\{(\w+)(?:[:?](?:[^{}]|\{[^{}]*\})*)?\}|(?<=[/.(-]):(\w+)(?:\([^()]*\))?[?*+]?", r"{\1\2}"),
    (r"(?:\\[dDwWsS]|\[[^\]]*\]|\.(?=[+*]))(?:\{[\d,]+\}|[+*]\??)?", "*"),
    (r"\((?:\?:)?([^()|]*)\)\??|\\(.)", r"\1\2"),
)


class Pattern:
    """One pattern, for paths in `any_case` or as it is written. Raises `ConfigError` (its path empty: the caller knows
    where it stands) for nonsense, and for what could not fit any request."""

    __slots__ = ("_any_case", "_exact", "_methods", "_path", "_regex", "_warned", "text")

    def __init__(self, text: str, *, any_case: bool = False) -> None:
        self.text = text
        self._any_case = any_case
        methods, path = _split_text(normalize("NFC", text))
        self._methods = _methods(methods) if methods else None
        _check_path(path, text)
        self._path = path = tidy(path)
        self._exact = None if "*" in path or "{" in path or "}" in path else self._folded(path)
        self._regex = _regex(path, text, re.IGNORECASE if any_case else re.NOFLAG)
        self._warned = False
        if splat := _SPLAT.search(path):
            better = path[: splat.start()] + "/**"
            logger.warning("%r fits one segment that ends in %r; for all the rest, write %r", text, splat[1], better)

    def matches(self, method: str, path: str) -> bool:
        """Return whether it fits a method (`WEBSOCKET` for a handshake) and one form of a path."""
        return (self._methods is None or method in self._methods) and self._is_of(path)

    def _is_of(self, path: str) -> bool:
        if self._exact is not None:
            return self._folded(path) == self._exact
        return self._regex.fullmatch(path) is not None

    def _folded(self, path: str) -> str:
        return path.casefold() if self._any_case else path

    def fits(self, target: RequestTarget) -> bool:
        """Return whether one form does, or would if the pattern were not written with the prefix that the app is
        mounted under."""
        if self._methods is not None and target.methods is not None and self._methods.isdisjoint(target.methods):
            return False
        if target.paths is None:
            return True
        prefix = tidy(target.root) if target.root and self.repeats(target.root) else None
        for path in target.paths:
            if self._is_of(path) or (prefix is not None and self._is_of(tidy(prefix + path))):
                return True
        return False

    def repeats(self, root: str) -> bool:
        """Return whether it begins with the prefix that the app is mounted under; warn of it once."""
        root = tidy(root)
        if root == "/" or not f"{self._path}/".startswith(f"{root}/"):
            return False
        if not self._warned:
            self._warned = True
            logger.warning(
                "the pattern %r begins with %r, under which the app is mounted (root_path), and paths are compared"
                " without it: write %r. Until then a policy counts either, and an exemption exempts neither",
                self.text, root, self.text.replace(root, "" if self._path != root else "/", 1),
            )  # fmt: skip
        return True

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


class Patterns:
    """Several patterns, as `Pattern` takes them. Raises `ConfigError` with the index of a bad one."""

    __slots__ = ("_patterns", "_root")

    def __init__(self, texts: Iterable[str], *, any_case: bool = False) -> None:
        patterns = []
        for number, text in enumerate(texts):
            with within(f"[{number}]"):
                patterns.append(Pattern(text, any_case=any_case))
        self._patterns = tuple(patterns)
        self._root = ""
        """The prefix that `warn` has looked for last."""

    def fit(self, target: RequestTarget) -> bool:
        return any(pattern.fits(target) for pattern in self._patterns)

    def cover(self, scope: Scope) -> bool:
        """Return whether they fit it in all of its forms, with its method as it was sent, and with those that it asks
        to be taken for: an exemption holds."""
        paths = forms(scope)
        if paths is None:
            return False
        if not self._cover(app_method(scope), paths):
            self.warn(scope.get("root_path", ""))
            return False
        return all(self._cover(method, paths) for method in overriding_methods(scope))

    def _cover(self, method: str, paths: Iterable[str]) -> bool:
        for path in paths:
            for pattern in self._patterns:
                if pattern.matches(method, path):
                    break
            else:
                return False
        return True

    def warn(self, root: str) -> None:
        """Tell the log of those that begin with the prefix that the app is mounted under."""
        if root and root != self._root:
            self._root = root
            for pattern in self._patterns:
                pattern.repeats(root)

    def __bool__(self) -> bool:
        return bool(self._patterns)


def _split_text(text: str) -> tuple[str, str]:
    methods, slash, rest = text.strip().partition("/")
    if slash and (not methods or methods[-1].isspace()):
        return methods, slash + rest
    methods, _, path = text.strip().rpartition(" ")
    return methods, path


def _methods(text: str) -> frozenset[str]:
    found = {name.strip().upper() for name in text.split(",")}
    for name in sorted(found - set(METHODS)):
        words = re.findall("[A-Z]+", name)
        if len(words) > 1 and set(words) <= set(METHODS):
            raise ConfigError("", f"unknown method {name!r}; did you mean {','.join(words)}?")
        hint = nearest(name, METHODS, f"use some of {', '.join(METHODS)}, or none for all of them", form="{}")
        raise ConfigError("", f"unknown method {name!r}; {hint}")
    return frozenset(found | {"HEAD", WEBSOCKET} if "GET" in found else found)


def _check_path(path: str, text: str) -> None:
    """Refuse what would be compiled, and then fit nothing."""
    if (flaw := _flaw(path)) is None:
        return
    what, better = flaw
    if _flaw(better) is None:
        try:
            _regex(tidy(better), text)
            what += f"; did you mean {text.strip().removesuffix(path) + better!r}?"
        except ConfigError:
            pass
    raise ConfigError("", f"{text!r}: {what}")


def _flaw(path: str) -> tuple[str, str] | None:
    """Return what is wrong with it, and what may have been meant."""
    if _FOREIGN.search(path):
        what = "written as for another router, or as a regular expression; {name} or * is one segment, ** all the rest"
        return what, _translated(path)
    if not path.startswith("/"):
        return "the path must start with /, as in 'POST /hints'", ""
    if re.search(r",\s*/|\s", path):
        return "write one pattern each, as in ['/a', 'POST /b'], and for a space in a path *", ""
    if not path.isprintable():
        return "the path has characters that cannot be seen", "".join(filter(str.isprintable, path))
    if "?" in path or "#" in path:
        return "a pattern is about the path, so leave the query out", re.split(r"[?#]", path)[0]
    if (decoded := unquote(path)) != path:
        return "paths are compared decoded", re.sub(r"[\s?#\\%*\ufffd]|[^\w\x21-\x7e]", "*", decoded)
    if re.search(r"/\.{1,2}(?:/|\Z)", path):
        return "nothing is asked for by . or .. segments", posixpath.normpath(path)
    return None


def _translated(path: str) -> str:
    for foreign, ours in _TRANSLATED:
        path = re.sub(foreign, ours, path)
    return path if path.startswith("/") else f"/{path}"


def _regex(path: str, text: str, flags: re.RegexFlag = re.NOFLAG) -> re.Pattern[str]:
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
    return re.compile("".join(parts), re.DOTALL | flags)


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
    at = 0
    for found in _PLACEHOLDER.finditer(segment):
        yield segment[at : found.start()]
        at = found.end()
    yield segment[at:]


def _literal(piece: str, text: str) -> str:
    if "{" in piece or "}" in piece:
        raise ConfigError("", f"{text!r}: braces hold a name, as in '/items/{{id}}'")
    return re.escape(piece)
