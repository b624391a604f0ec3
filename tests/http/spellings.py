"""Spellings of `POST /hints` by which a client may try to get past a pattern; the same for every surface."""

from __future__ import annotations

DOTTED = (
    "/x/../hints",
    "/x/%2e%2E/hints",
    "/./hints",
    "/hints/.",
    "/hints/..",
    "/x/..;/hints",
    "/x/..;a=b/hints",
    "/x/%2e%2e%3b/hints",
    "/x/..%5chints",
    "/x%5C..%5chints",
    "/x%5c.%5c/hints",
)
"""Those that only the one who resolves them understands: refused."""

UNCLEAR = {
    "//hints": "two slashes",
    "//z/hints": "two slashes",
    "/%2Fz/hints": "two slashes",
    "/%5Cz/hints": "two slashes",
    "/hints%0A": "control characters",
    "/hints%00": "control characters",
    "/hints%7f": "control characters",
    "/%09hints": "control characters",
    "/hints%c0%af": "not UTF-8",
    "/hints%FF": "not UTF-8",
}
"""Those that two readers take for different paths, and a word of why: refused."""

PLAIN = (
    "/hints",
    "/hints/",
    "/hints//",
    "/%68ints",
    "/hi%256Ets",
    "/hints?a",
    "/hints;x=1",
    "/hints;",
    "/hints%3bx",
    "/;x/hints",
    "/hints/;x/",
)
"""Those that routers take for `/hints`: counted as it."""
