"""One little site on every router we are mounted into, and what Node's would make of it behind the sidecar.

POST /hints                    the secret
GET /items/{id}                the secret
GET /files/premium/big.zip     the secret, a file in a folder of another name than its path
GET /pages/{rest:path}         the secret, but for /pages/open
GET /files/free/small.txt, GET /hints, GET /health
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote

import django
from a2wsgi import WSGIMiddleware
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse
from django.test import override_settings
from django.urls import path, re_path
from django.views.static import serve
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse as FastAPIText
from fastapi.staticfiles import StaticFiles as FastAPIFiles
from flask import Flask, request, send_from_directory
from litestar import Litestar, get, post
from litestar.params import FromPath
from litestar.static_files import create_static_files_router
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

SECRET: Final = "the secret"
OPEN: Final = "open to all"


def make_folder(parent: Path) -> Path:
    folder = parent / "static"
    for name, text in (("premium/big.zip", SECRET), ("free/small.txt", OPEN)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return folder


def _page(rest: str) -> str:
    return OPEN if rest.strip("/") == "open" and "//" not in rest else SECRET


def starlette_site(folder: Path) -> ASGIApp:
    def hints(request: Request) -> Response:
        return PlainTextResponse(SECRET if request.method == "POST" else OPEN)

    return Starlette(
        routes=[
            Route("/hints", hints, methods=["GET", "POST"]),
            Route("/items/{id}", lambda _: PlainTextResponse(SECRET)),
            Route("/health", lambda _: PlainTextResponse(OPEN)),
            Route("/pages/{rest:path}", lambda request: PlainTextResponse(_page(request.path_params["rest"]))),
            Mount("/files", StaticFiles(directory=folder)),
        ]
    )


def fastapi_site(folder: Path) -> ASGIApp:
    app = FastAPI()
    app.add_api_route("/hints", lambda: FastAPIText(SECRET), methods=["POST"])
    app.add_api_route("/hints", lambda: FastAPIText(OPEN), methods=["GET"])
    app.add_api_route("/health", lambda: FastAPIText(OPEN))

    @app.get("/items/{id}")
    def item(id: str) -> FastAPIText:
        return FastAPIText(SECRET)

    @app.get("/pages/{rest:path}")
    def page(rest: str) -> FastAPIText:
        return FastAPIText(_page(rest))

    app.mount("/files", FastAPIFiles(directory=folder))
    return app


def litestar_site(folder: Path) -> ASGIApp:
    @post("/hints", status_code=200, media_type="text/plain")
    async def hint() -> str:
        return SECRET

    @get(["/hints", "/health"], media_type="text/plain")
    async def fine() -> str:
        return OPEN

    @get("/items/{id:str}", media_type="text/plain")
    async def item(id: FromPath[str]) -> str:
        return SECRET

    @get("/pages/{rest:path}", media_type="text/plain")
    async def page(rest: FromPath[str]) -> str:
        return _page(rest.removeprefix("/"))

    files = create_static_files_router(path="/files", directories=[folder])
    return cast(
        ASGIApp, Litestar(route_handlers=[hint, fine, item, page, files], openapi_config=None, logging_config=None)
    )


def flask_site(folder: Path) -> ASGIApp:
    app = Flask(__name__, static_folder=None)
    app.add_url_rule("/hints", "hints", lambda: SECRET if request.method == "POST" else OPEN, methods=["GET", "POST"])
    app.add_url_rule("/items/<id>", "items", lambda id: SECRET)
    app.add_url_rule("/health", "health", lambda: OPEN)
    app.add_url_rule("/pages/<path:rest>", "pages", _page)
    app.add_url_rule("/files/<path:name>", "files", lambda name: send_from_directory(folder, name))
    return cast(ASGIApp, WSGIMiddleware(app))  # type: ignore[arg-type]


def _django_hints(request: HttpRequest) -> HttpResponse:
    return HttpResponse(SECRET if request.method == "POST" else OPEN)


def _django_file(request: HttpRequest, path: str) -> HttpResponse:
    with closing(serve(request, path, document_root=settings.MEDIA_ROOT)) as file:
        return HttpResponse(b"".join(file.streaming_content))


urlpatterns = [
    re_path(r"^hints$", _django_hints),
    path("items/<str:id>", lambda request, id: HttpResponse(SECRET)),
    path("health", lambda request: HttpResponse(OPEN)),
    path("pages/<path:rest>", lambda request, rest: HttpResponse(_page(rest))),
    re_path(r"^files/(?P<path>.*)$", _django_file),
]


def django_site(folder: Path) -> ASGIApp:
    return cast(ASGIApp, get_asgi_application())


def node_site(folder: Path) -> ASGIApp:
    """What `new URL(request.url, "http://host").pathname` leads to, with Express's way to look before it decodes, at
    letters in either case."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen = whatwg_path(scope["raw_path"].decode("latin-1"))
        route = seen.lower()
        found = OPEN if route in ("/health", "/pages/open") else ""
        if route == "/hints":
            found = SECRET if scope["method"].upper() == "POST" else OPEN
        elif re.fullmatch(r"/items/[^/]+", route) or route.startswith("/pages/"):
            found = found or SECRET
        elif route.startswith("/files/"):
            file = folder / unquote(seen[len("/files/") :]).replace("\0", "")
            found = file.read_text() if file.resolve().is_relative_to(folder) and file.is_file() else ""
        await PlainTextResponse(found, 200 if found else 404)(scope, receive, send)

    return app


def windows_site(folder: Path) -> ASGIApp:
    """Starlette's where names of files are what Win32 makes of them."""
    inner = starlette_site(folder)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        start, files, rest = scope["path"].partition("/files/")
        if files and not start:
            names = [re.sub(r"(?:[. ]+|::?\$.*)\Z", "", name) or name for name in rest.lower().split("/")]
            scope = {**scope, "path": files + "/".join(names)}
        await inner(scope, receive, send)

    return app


def php_site(folder: Path) -> ASGIApp:
    """As behind a front controller, such as Symfony's and Laravel's."""
    inner = starlette_site(folder)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await inner({**scope, "path": scope["path"].removeprefix("/index.php")}, receive, send)

    return app


def overriding(app: ASGIApp) -> ASGIApp:
    """As Flask's recipe does, and those of Express, Rails, Spring, Symfony and ASP.NET for a POST: the method that a
    field or a parameter names takes the place of the request's own."""

    async def overridden(scope: Scope, receive: Receive, send: Send) -> None:
        asked = Request(scope)
        fields = {name.replace("_", "-"): value for name, value in asked.headers.items()}  # as WSGI's servers do
        said = [fields.get(name, "") for name in OVERRIDING_FIELDS] + asked.query_params.getlist("_method")
        method = next(filter(None, said), scope["method"]).split(",")[0].strip().upper()
        await app({**scope, "method": method}, receive, send)

    return overridden


OVERRIDING_FIELDS: Final = ("x-http-method-override", "x-http-method", "x-method-override")


def whatwg_path(target: str) -> str:
    """The path by the URL standard (url.spec.whatwg.org), for a target that is parsed against an http base."""
    target = re.sub(r"[\t\n\r]", "", target.strip("".join(map(chr, range(33)))))
    target = re.split(r"[?#]", target)[0].replace("\\", "/")
    target = re.sub(r"\A(?:(?i:https?:)?//+[^/]*|[A-Za-z][A-Za-z0-9+.-]*:)", "", target)
    kept: list[str] = []
    segments = target.removeprefix("/").split("/")
    for number, segment in enumerate(segments):
        plain, is_last = segment.lower().replace("%2e", "."), number == len(segments) - 1
        if plain == "..":
            kept[-1:] = []
        elif plain != ".":
            kept.append(segment)
        if plain in (".", "..") and is_last:
            kept.append("")
    return "/" + "/".join(kept)


SITES: Final[dict[str, Callable[[Path], ASGIApp]]] = {
    "starlette": starlette_site,
    "fastapi": fastapi_site,
    "litestar": litestar_site,
    "flask": flask_site,
    "django": django_site,
    "node": node_site,
    "windows": windows_site,
    "php": php_site,
}


def set_up(name: str, folder: Path) -> AbstractContextManager[Any]:
    """What a site wants around its use."""
    if name != "django":
        return nullcontext()
    django.setup()
    return cast(AbstractContextManager[Any], override_settings(ROOT_URLCONF=__name__, MEDIA_ROOT=str(folder)))
