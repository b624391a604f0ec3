"""What a client is told where the server or the proxy answers itself: problem bodies (RFC 9457)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

import httptools
import msgspec

from ratelimit.http.problems import Problem


def problem(status: int, detail: str) -> Problem:
    """Make one without a type of its own, which says nothing of what stands behind the proxy."""
    return Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)


NO_CONNECTION: Final = problem(502, "The service behind this proxy cannot be reached.")
BROKEN: Final = problem(502, "The service behind this proxy closed the connection before it answered.")
UNREADABLE: Final = problem(502, "The service behind this proxy gave an answer that is no valid HTTP.")
LATE: Final = problem(504, "The service behind this proxy did not answer in time.")
UNREACHED: Final = problem(504, "No connection to the service behind this proxy in time.")
SLOW: Final = problem(408, "The request did not arrive in time.")
NOT_CODED: Final = problem(501, "The only transfer coding understood here is chunked.")
MALFORMED: Final = problem(400, "This is no valid HTTP/1.1 request")
CUT_SHORT: Final = problem(400, "The request ended before its body was complete.")
UNENCODED: Final = problem(
    400, "The request target holds a byte that no URL may hold; percent-encode it (RFC 3986, 2.1)."
)
FRAGMENT: Final = problem(400, "The request target has a fragment; that is for the client alone.")
# No 5xx: a gateway that asks about such a request may take one for a fault, and let it pass.
NO_TUNNEL: Final = problem(400, "CONNECT is not a request that this proxy serves.")
UNKNOWN_METHOD: Final = problem(400, "The method is none that is known here; methods are upper-case.")
FAULT: Final = problem(500, "A fault of the server; it is logged.")
LARGE: Final = problem(431, "The target and the fields of a request: 64 KB at most.")
NO_HOST: Final = problem(400, "An HTTP/1.1 request has one Host field, which names a host.")
TOO_LONG: Final = problem(400, "The length of the body is a number that nobody can count to.")
TOO_OLD: Final = problem(505, "This proxy speaks HTTP/1.0 and HTTP/1.1.")
NO_END: Final = problem(400, "Where the last transfer coding is not chunked, a request has no end.")
OLD_CODED: Final = problem(400, "A request of HTTP/1.0 has no transfer codings.")
NO_TARGET: Final = problem(400, "The request target has to be a path, an http URL or, of OPTIONS, *.")


class RequestRefused(Exception):
    """A request that is not read any further, and what its client is told."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


def parser_problem(error: httptools.HttpParserError, *, is_method: bool) -> Problem:
    """Return what a request is refused with that the parser gave up on.

    `is_method`: what it reads as one could be one.
    """
    if isinstance(error.__context__, RequestRefused):
        return error.__context__.problem
    if isinstance(error, httptools.HttpParserInvalidURLError):
        return UNENCODED
    if isinstance(error, httptools.HttpParserInvalidMethodError) and is_method:
        return UNKNOWN_METHOD
    if "HTTP version" in str(error):
        return TOO_OLD
    # The parser's reasons are its own words, and quote nothing.
    return msgspec.structs.replace(MALFORMED, detail=f"{MALFORMED.detail}: {error}.")


PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
"""Reason phrases."""
