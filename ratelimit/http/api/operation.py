"""`Operation`: one method on one path. What it takes and gives is read off the function that does it, so that the
bodies decoded, the types checked and the OpenAPI document cannot differ.

    async def put_plan(self, plan: str, body: PlanBody) -> PlanAnswer:
        \"\"\"The first line is its summary.\"\"\"

`body` is the decoded JSON, `query` the decoded query string, and what is called as the `{braces}` in the path is that.
What it returns is encoded; None is a 204.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias, get_type_hints

import msgspec
from msgspec import Struct

from ratelimit.directory import Contended
from ratelimit.errors import ConfigError, InvalidInput, RateLimitError, StoreUnavailable
from ratelimit.http.api.bodies import ApiProblem, FieldError
from ratelimit.http.problems import TEMPORARY_REDUCED_CAPACITY, ProblemError
from ratelimit.store.directory import IdentityTaken

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

_OPEN: Final = "{"


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing may stand behind the question mark."""


@dataclass(frozen=True, slots=True)
class Operation:
    """Made by `operation`."""

    method: Method
    path: str
    act: Callable[..., Awaitable[object]]
    part: str | None
    """The name in the path's braces."""
    part_type: Any
    query: type[Struct]
    body: type[Struct] | None
    answer: type[Struct] | None
    problems: tuple[int, ...]
    """What may go wrong besides what may anywhere."""
    repeatable: bool
    """Whether an `Idempotency-Key` makes a repeat of it harmless."""
    open: bool
    """Whether it is answered without a token."""

    @property
    def name(self) -> str:
        """Of the function: unique among all."""
        return str(self.act.__name__)

    @property
    def summary(self) -> str:
        """The first line of what the function says of itself."""
        return (self.act.__doc__ or "").partition("\n")[0]


def operation(
    method: Method,
    path: str,
    act: Callable[..., Awaitable[object]],
    *,
    problems: Iterable[int] = (),
    repeatable: bool = False,
    open: bool = False,
) -> Operation:
    """`act` at this place, by its own annotations."""
    hints = get_type_hints(act, include_extras=True)
    answer = hints["return"]
    part = next((part[1:-1] for part in path.split("/") if part.startswith(_OPEN)), None)
    return Operation(
        method,
        path,
        act,
        part,
        part_type=None if part is None else hints[part],
        query=hints.get("query", NoQuery),
        body=hints.get("body"),
        answer=None if answer is type(None) else answer,
        problems=tuple(problems),
        repeatable=repeatable,
        open=open,
    )


class RouteMatch(NamedTuple):
    """What a path leads to: the operations there, by method."""

    template: str
    by_method: Mapping[str, Operation]
    raw_part: str | None
    """The part of it that stands in braces, percent-encoded."""


class Router:
    """Finds operations by path. Works on the path as it was sent, so that `%2F` is a part of a name and `/` is not."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.templates: dict[str, dict[str, Operation]] = {}
        for one in operations:
            self.templates.setdefault(one.path, {})[one.method] = one
        self._split = [(template.split("/"), template) for template in self.templates if _OPEN in template]

    def find(self, raw_path: str) -> RouteMatch | None:
        """None where there is nothing."""
        if (there := self.templates.get(raw_path)) is not None and _OPEN not in raw_path:
            return RouteMatch(raw_path, there, None)
        given = raw_path.split("/")
        for parts, template in self._split:
            if len(parts) == len(given) and all(map(_same, parts, given)):
                part = next(text for name, text in zip(parts, given, strict=True) if name.startswith(_OPEN))
                return RouteMatch(template, self.templates[template], part)
        return None


def _same(part: str, given: str) -> bool:
    return bool(given) if part.startswith(_OPEN) else part == given


def arguments(one: Operation, part: str | None, query: Any, body: Any) -> dict[str, Any]:
    """What `act` is called with."""
    given: dict[str, Any] = {} if one.part is None else {one.part: part}
    if one.query is not NoQuery:
        given["query"] = query
    if one.body is not None:
        given["body"] = body
    return given


# What is wrong with a request, as a problem body that names the path of each bad value; never a traceback.

RETRY_AFTER: Final = b"1"
_PLACE = re.compile(r"(?P<problem>.*) - at `\$(?P<path>[^`]*)`(?P<rest>.*)", re.DOTALL)


def refused(status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> ProblemError:
    """One without a path."""
    return ProblemError(ApiProblem(title=title, status=status, detail=detail), headers)


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
    return ApiProblem(title="Bad input", status=400, detail=detail, errors=[FieldError(path, text)])


def invalid(error: msgspec.DecodeError) -> ProblemError:
    """What msgspec found: no JSON, or not of the right shape."""
    if not isinstance(error, msgspec.ValidationError):
        return ProblemError(bad_input("", f"not valid JSON: {error}"))
    found = _PLACE.fullmatch(str(error))
    if found is None:
        return ProblemError(bad_input("", str(error).replace("`", "'")))
    path = found["path"].lstrip(".")
    return ProblemError(bad_input(path, (found["problem"] + found["rest"]).replace("`", "'")))
