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

PLAIN = (
    "/hints",
    "//hints",
    "/hints/",
    "/%68ints",
    "/hints?a",
    "/hints;x=1",
    "/hints;",
    "/hints%3bx",
    "/;x/hints",
    "/hints/;x/",
)
"""Those that routers take for `/hints`: counted as it."""
