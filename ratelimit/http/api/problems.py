"""What is wrong with a request, as a problem body that names the path of each bad value; never a traceback."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from ratelimit.directory import Contended, IdentityTaken
from ratelimit.errors import ConfigError, InvalidInput, RateLimitError, StoreUnavailable
from ratelimit.http.api.bodies import ApiProblem, Flaw
from ratelimit.http.problems import TEMPORARY_REDUCED_CAPACITY

RETRY_AFTER: Final = b"1"
_PLACE = re.compile(r"(?P<problem>.*) - at `\$(?P<path>[^`]*)`(?P<rest>.*)", re.DOTALL)


class Refused(Exception):
    """Answered with this problem."""

    def __init__(self, problem: ApiProblem, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.problem = problem
        self.headers = headers
        super().__init__(problem.detail)


def refused(status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> Refused:
    """One without a path."""
    return Refused(ApiProblem(title=title, status=status, detail=detail), headers=headers)


def problem_of_error(error: RateLimitError) -> ApiProblem:
    """What this package's own errors are for a client."""
    if isinstance(error, StoreUnavailable):
        # Not the message: it names tables and hosts.
        detail = "The store gives no answer at the moment; it is not known whether anything was written."
        return ApiProblem(type=TEMPORARY_REDUCED_CAPACITY, title="The store cannot be asked", status=503, detail=detail)
    if isinstance(error, IdentityTaken | Contended):
        return ApiProblem(title="In conflict with others", status=409, detail=str(error))
    if isinstance(error, InvalidInput):
        path, text = (error.path, error.problem) if isinstance(error, ConfigError) else ("", str(error))
        return bad_input(path, text)
    return ApiProblem(title="Not found", status=404, detail=str(error))


def bad_input(path: str, text: str) -> ApiProblem:
    """A value that cannot be used."""
    detail = f"{path}: {text}" if path else text
    return ApiProblem(title="Bad input", status=400, detail=detail, errors=[Flaw(path, text)])


def invalid(error: msgspec.DecodeError) -> Refused:
    """What msgspec found: no JSON, or not of the right shape."""
    if not isinstance(error, msgspec.ValidationError):
        return Refused(bad_input("", f"not valid JSON: {error}"))
    found = _PLACE.fullmatch(str(error))
    if found is None:
        return Refused(bad_input("", str(error).replace("`", "'")))
    path = found["path"].lstrip(".")
    return Refused(bad_input(path, (found["problem"] + found["rest"]).replace("`", "'")))
