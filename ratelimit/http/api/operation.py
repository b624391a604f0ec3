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
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, get_type_hints

import msgspec
from msgspec import Meta, Struct

from ratelimit.directory import Contended
from ratelimit.errors import ConfigError, IndexNotFound, InvalidInput, RateLimitError, StoreUnavailable
from ratelimit.http.problems import TEMPORARY_REDUCED_CAPACITY, Problem, ProblemError
from ratelimit.quota import MAX_LIMIT
from ratelimit.store.directory import IdentityTaken

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]

_OPEN: Final = "{"


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing may stand behind the question mark."""


class Operation:
    """One of the API: `problems` is what may go wrong besides what may anywhere, `repeatable` whether an
    `Idempotency-Key` makes a repeat of it harmless, `open` whether it is answered without a token."""

    def __init__(
        self,
        method: Method,
        path: str,
        act: Callable[..., Awaitable[object]],
        *,
        problems: Iterable[int] = (),
        repeatable: bool = False,
        open: bool = False,
    ) -> None:
        hints = get_type_hints(act, include_extras=True)
        self.method = method
        self.path = path
        self.act = act
        self.name = str(act.__name__)
        self.summary = (act.__doc__ or "").partition("\n")[0]
        self.part = next((part[1:-1] for part in path.split("/") if part.startswith(_OPEN)), None)
        """The name in the path's braces."""
        self.part_type: Any = None if self.part is None else hints[self.part]
        self.query: type[Struct] = hints.get("query", NoQuery)
        self.body: type[Struct] | None = hints.get("body")
        self.answer: type[Struct] | None = None if hints["return"] is type(None) else hints["return"]
        self.problems = tuple(problems)
        self.repeatable = repeatable
        self.open = open

    def arguments(self, part: str | None, query: Any, body: Any) -> dict[str, Any]:
        """Return what `act` is called with."""
        given: dict[str, Any] = {} if self.part is None else {self.part: part}
        if self.query is not NoQuery:
            given["query"] = query
        if self.body is not None:
            given["body"] = body
        return given


class RouteMatch(NamedTuple):
    """What a path leads to: the operations there, by method."""

    template: str
    by_method: Mapping[str, Operation]
    raw_part: str | None
    """The part of it that stands in braces, percent-encoded."""


def _fits(part: str, given: str) -> bool:
    return bool(given) if part.startswith(_OPEN) else part == given


class Router:
    """Finds operations by path. Works on the path as it was sent, so that `%2F` is a part of a name and `/` is not."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self.templates: dict[str, dict[str, Operation]] = {}
        for one in operations:
            self.templates.setdefault(one.path, {})[one.method] = one
        self._split = [(template.split("/"), template) for template in self.templates if _OPEN in template]

    def find(self, raw_path: str) -> RouteMatch | None:
        if (there := self.templates.get(raw_path)) is not None and _OPEN not in raw_path:
            return RouteMatch(raw_path, there, None)
        given = raw_path.split("/")
        for parts, template in self._split:
            if len(parts) == len(given) and all(map(_fits, parts, given)):
                part = next(text for name, text in zip(parts, given, strict=True) if name.startswith(_OPEN))
                return RouteMatch(template, self.templates[template], part)
        return None


# What several operations take.

# For the document only: what holds the text to it says better what is wrong (`ratelimit.names`, `ratelimit.quota`).
_PRINTABLE: Final = {"pattern": r"^[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+$"}
_UNIT: Final = r"(s|sec|seconds?|m|min|minutes?|h|hr|hours?|d|days?|w|weeks?|mo|months?|y|yr|years?)"
_QUOTA: Final = rf"\s*\+?[0-9]{{1,12}}\s*(/|per\s)\s*[0-9]{{0,6}}\s*{_UNIT}\s*(\sburst\s+[0-9]{{1,12}}\s*)?"
_QUOTA_OR_SLOTS: Final = rf"({_QUOTA}|\s*\+?[0-9]{{1,12}}\s*concurrent\s*)"
_EXAMPLES: Final = ["5/day", "100/hour; 1000/day", "10 per 5 minutes", "unlimited"]


def _quotas(quota: str, examples: list[str]) -> Meta:
    schema = {"pattern": rf"^(\s*(unlimited|-1)\s*|{quota}([;,|]{quota})*)$", "examples": examples}
    return Meta(min_length=1, max_length=1024, description="Several are one decision.", extra_json_schema=schema)


def _name(max_length: int) -> Meta:
    about = f"Without control characters; at most {max_length} bytes, of which `#` and `%` take three."
    return Meta(min_length=1, max_length=max_length, description=about, extra_json_schema=_PRINTABLE)


UserName: TypeAlias = Annotated[str, _name(256)]
GivenUser: TypeAlias = UserName | Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
"""As callers may give it in a body: 12345 is the user "12345"."""
Name: TypeAlias = Annotated[str, _name(64)]
"""Of an action or a plan."""
Cost: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_LIMIT, description="Units; by default 1.")]
QuotasText: TypeAlias = Annotated[str, _quotas(_QUOTA, _EXAMPLES)]
PlanQuotasText: TypeAlias = Annotated[str, _quotas(_QUOTA_OR_SLOTS, [*_EXAMPLES, "2 concurrent"])]


# What is wrong with a request, as a problem body that names the path of each bad value; never a traceback.

to_json: Final = msgspec.json.Encoder().encode
RETRY_AFTER: Final = b"1"
_PLACE = re.compile(r"(?P<problem>.*) - at `\$(?P<path>[^`]*)`(?P<rest>.*)", re.DOTALL)


class FieldError(Struct, frozen=True):
    """One thing that is wrong."""

    path: str
    """`checks[1].cost`; empty for the whole."""
    problem: str


class ApiProblem(Problem, frozen=True, kw_only=True):
    """RFC 9457, as `application/problem+json`."""

    errors: list[FieldError] = msgspec.field(default_factory=list)


def refused(status: int, title: str, detail: str, *headers: tuple[bytes, bytes]) -> ProblemError:
    """Return what to raise where no field is at fault."""
    return ProblemError(ApiProblem(title=title, status=status, detail=detail), headers)


def problem_of_error(error: RateLimitError) -> ApiProblem:
    """Return what this package's own errors are for a client."""
    if isinstance(error, IndexNotFound):
        detail = "The table has no index for timelines; `ratelimit table upgrade --gsi2` makes it."
        return ApiProblem(title="Not found", status=404, detail=detail)
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
    """Return the problem of a value that cannot be used."""
    detail = f"{path}: {text}" if path else text
    return ApiProblem(title="Bad input", status=400, detail=detail, errors=[FieldError(path, text)])


def invalid(error: msgspec.DecodeError) -> ProblemError:
    """Return what to raise for what msgspec found: no JSON, or not of the right shape."""
    if not isinstance(error, msgspec.ValidationError):
        return ProblemError(bad_input("", f"not valid JSON: {error}"))
    found = _PLACE.fullmatch(str(error))
    if found is None:
        return ProblemError(bad_input("", str(error).replace("`", "'")))
    path = found["path"].lstrip(".")
    return ProblemError(bad_input(path, (found["problem"] + found["rest"]).replace("`", "'")))


# The OpenAPI document, made of the operations and of the very types that decode and encode their bodies.

_REF: Final = "#/components/schemas/{name}"
_BEARER: Final = {"type": "http", "scheme": "bearer"}
_DESCRIPTIONS: Final = {
    400: "Something in it cannot be used; `errors` says what.",
    401: "A valid token is needed.",
    403: "Asked by a page of another site, where no token is configured.",
    404: "There is no such thing, or no policy names the action.",
    408: "The body did not arrive in time.",
    409: "In conflict with others: an identity is taken, or others changed the same thing at the same time.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "The `Idempotency-Key` was used for another request.",
    503: "The store gives no answer; it is not known whether anything was written.",
}
_KEY: Final = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A repeat with the same key is carried out once, and answered the same for 10 minutes.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
}


def openapi(operations: Iterable[Operation], *, token: bool) -> dict[str, Any]:
    """Write OpenAPI 3.1. `token`: whether one is asked for."""
    every = list(operations)
    bodies = [kind for one in every for kind in (one.body, one.answer) if kind is not None]
    kinds: list[type[Struct]] = list(dict.fromkeys([*bodies, ApiProblem]))
    refs, schemas = _components(*kinds)
    ref_of: dict[type[Struct], dict[str, Any]] = dict(zip(kinds, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in every:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation_object(one, ref_of, token=token)
    components: dict[str, Any] = {"schemas": schemas}
    if token:
        components["securitySchemes"] = {"bearer": _BEARER}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ratelimit", "version": package_version(), "description": "The limiter, as JSON over HTTP."},
        "paths": paths,
        "components": components,
    }


@cache
def _components(*kinds: Any) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    # Some 20 ms for all of them, at each reload.
    return msgspec.json.schema_components(kinds, ref_template=_REF)


def _operation_object(one: Operation, ref_of: dict[type[Struct], dict[str, Any]], *, token: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": [*_path_parameter(one), *_query_parameters(one.query), *([_KEY] if one.repeatable else [])],
        "responses": _responses(one, ref_of, token=token),
    }
    if one.body is not None:
        document["requestBody"] = {"required": True, "content": {"application/json": {"schema": ref_of[one.body]}}}
    if token:
        document["security"] = [] if one.open else [{"bearer": []}]
    return document


def _responses(one: Operation, ref_of: dict[type[Struct], dict[str, Any]], *, token: bool) -> dict[str, Any]:
    done: dict[str, Any] = {"description": "Done."}
    if one.answer is not None:
        done = {
            "description": (one.answer.__doc__ or "").partition("\n")[0],
            "content": {"application/json": {"schema": ref_of[one.answer]}},
        }
    if one.repeatable:
        done["headers"] = {"Idempotency-Replayed": {"schema": {"const": "true"}}}
    responses = {"204" if one.answer is None else "200": done}
    problem = {"application/problem+json": {"schema": ref_of[ApiProblem]}}
    closed = () if one.open else (401,) if token else (403,)
    may_fail = {400, *one.problems, *closed, *((408, 413, 415) if one.body else ())}
    for status in sorted(may_fail | ({422} if one.repeatable else set())):
        responses[str(status)] = {"description": _DESCRIPTIONS[status], "content": problem}
    return responses


def _path_parameter(one: Operation) -> list[dict[str, Any]]:
    if one.part is None:
        return []
    (schema,), _ = _components(one.part_type)
    return [{"name": one.part, "in": "path", "required": True, "schema": schema}]


def _query_parameters(query: type[Struct]) -> list[dict[str, Any]]:
    _, schemas = _components(query)
    properties: dict[str, dict[str, Any]] = schemas[query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def package_version() -> str:
    """Return the version of this package; 0 where it is not installed."""
    try:
        return version("ratelimit-dynamodb")
    except PackageNotFoundError:
        return "0"
