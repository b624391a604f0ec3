"""What FastAPI's OpenAPI says of a route that asks by `Depends(limited(...))`: its 429, with fields and body."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ratelimit.http.dependency import dependencies_of, is_limited
from ratelimit.http.problems import CONTENT_TYPE

_DESCRIBED: Final = "_ratelimit_described"
_TEXT: Final = {"type": "string"}
_REFUSAL: Final = {
    "description": "The quota is used up.",
    "headers": {
        "Retry-After": {"description": "Seconds until the request may pass.", "schema": {"type": "integer"}},
        "RateLimit-Policy": {"description": 'The quotas, as in `"hint";q=5;w=86400`.', "schema": _TEXT},
        "RateLimit": {"description": 'What is left, as in `"hint";r=0;t=43200`.', "schema": _TEXT},
    },
    "content": {
        CONTENT_TYPE.decode(): {
            "schema": {
                "type": "object",
                "title": "QuotaProblem",
                "required": ["type", "title", "status", "detail", "violated-policies"],
                "properties": {
                    "type": {"type": "string", "format": "uri"},
                    "title": _TEXT,
                    "status": {"type": "integer"},
                    "detail": _TEXT,
                    "violated-policies": {"type": "array", "items": _TEXT},
                },
            }
        }
    },
}


def describe_refusals(app: Any) -> None:
    """Have a FastAPI app's OpenAPI show the 429 of each route that depends on `limited(...)`, unless the route says
    what its own is. The middleware does so when the app starts; call it to write the document without a server."""
    if not hasattr(app, "openapi") or hasattr(app, _DESCRIBED):
        return
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document: dict[str, Any] = original()
        for path, methods in _limited_routes(app):
            for method in methods:
                operation = document.get("paths", {}).get(path, {}).get(method.lower())
                if operation is not None:
                    operation.setdefault("responses", {}).setdefault("429", _REFUSAL)
        return document

    app.openapi = openapi
    setattr(app, _DESCRIBED, True)


def _limited_routes(app: Any) -> Iterable[tuple[str, Iterable[str]]]:
    for route, dependency in dependencies_of(getattr(app, "routes", None) or ()):
        if is_limited(dependency):
            yield route.path_format, getattr(route, "methods", None) or ()
