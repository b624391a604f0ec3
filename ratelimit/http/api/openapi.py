"""The OpenAPI document, made of the operations and of the very types that decode and encode their bodies."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import msgspec
from msgspec import Struct

from ratelimit.http.api.bodies import ApiProblem
from ratelimit.http.api.operation import Operation

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
    """OpenAPI 3.1. `token`: whether one is asked for."""
    every = list(operations)
    bodies = [kind for one in every for kind in (one.body, one.answer) if kind is not None]
    kinds: list[type[Struct]] = list(dict.fromkeys([*bodies, ApiProblem]))
    refs, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    ref_of: dict[type[Struct], dict[str, Any]] = dict(zip(kinds, refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for one in every:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, ref_of, token=token)
    components: dict[str, Any] = {"schemas": schemas}
    if token:
        components["securitySchemes"] = {"bearer": _BEARER}
    return {
        "openapi": "3.1.0",
        "info": {"title": "ratelimit", "version": _version(), "description": "The limiter, as JSON over HTTP."},
        "paths": paths,
        "components": components,
    }


def _operation(one: Operation, ref_of: dict[type[Struct], dict[str, Any]], *, token: bool) -> dict[str, Any]:
    document: dict[str, Any] = {
        "operationId": one.name,
        "summary": one.summary,
        "parameters": [*_path(one), *_query(one.query), *([_KEY] if one.repeatable else [])],
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


def _path(one: Operation) -> list[dict[str, Any]]:
    if one.part is None:
        return []
    (schema,), _ = msgspec.json.schema_components([one.part_type], ref_template=_REF)
    return [{"name": one.part, "in": "path", "required": True, "schema": schema}]


def _query(query: type[Struct]) -> list[dict[str, Any]]:
    _, schemas = msgspec.json.schema_components([query], ref_template=_REF)
    properties: dict[str, dict[str, Any]] = schemas[query.__name__]["properties"]
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _version() -> str:
    try:
        return version("ratelimit-dynamodb")
    except PackageNotFoundError:
        return "0"
