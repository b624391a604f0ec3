"""Routes of a Django site whose views are limited in every way, and who is signed in there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils.decorators import sync_and_async_middleware
from django.utils.functional import SimpleLazyObject
from django.views import View

from ratelimit import QuotaExceeded
from ratelimit.django import limited

signed_in: list[str] = []


@sync_and_async_middleware  # type: ignore[untyped-decorator]
def authentication(get_response: Any) -> Any:
    """In the place of Django's own, which needs a database."""

    def lazily() -> Any:
        return SimpleNamespace(pk=signed_in[-1] if signed_in else None, is_authenticated=bool(signed_in))

    async def auser() -> Any:
        return lazily()

    async def later(request: Any) -> Any:
        request.user, request.auser = SimpleLazyObject(lazily), auser
        return await get_response(request)

    def at_once(request: Any) -> Any:
        request.user = SimpleLazyObject(lazily)
        return get_response(request)

    return later if iscoroutinefunction(get_response) else at_once


def hint(request: Any) -> HttpResponse:
    return HttpResponse(f"{len(request.ratelimit.decisions)} checked")


def status(request: HttpRequest, status: int) -> HttpResponse:
    return HttpResponse(status=status)


def known_in_the_view(request: Any) -> HttpResponse:
    """As Django REST framework does it."""
    request.user = SimpleNamespace(pk="9", is_authenticated=True)
    answer: HttpResponse = export(request)
    return answer


@limited("export", cost=lambda request: int(request.GET["pages"]))
def export(request: HttpRequest) -> HttpResponse:
    return HttpResponse("exported")


@limited("export")
async def export_later(request: HttpRequest) -> HttpResponse:
    return HttpResponse("exported")


@limited("export")
class Export(View):  # type: ignore[misc]
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("exported")


@limited("export")
class ExportLater(View):  # type: ignore[misc]
    async def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse("exported")


BY_ACCOUNT: Any = {
    "quotas": lambda request: f"{request.GET['quota']}/day",
    "user": ["user", lambda request: request.GET.get("account")],
    "key": lambda request: request.GET.get("team"),
}


@limited("plan", **BY_ACCOUNT)
def plan(request: HttpRequest) -> HttpResponse:
    return HttpResponse("planned")


@limited("plan", **BY_ACCOUNT)
async def plan_later(request: HttpRequest) -> HttpResponse:
    return HttpResponse("planned")


@limited("nothing")
def unknown(request: HttpRequest) -> HttpResponse:
    return HttpResponse("")


def handled(request: HttpRequest) -> HttpResponse:
    try:
        return export(request)
    except QuotaExceeded as error:
        return JsonResponse({"no more": error.decision.policy})


def broken(request: HttpRequest) -> HttpResponse:
    raise ValueError("a bug")


def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(iter([b"a", b"b"]))


def metered(request: Any) -> StreamingHttpResponse:
    """Uses 3 tokens, and knows so at the end."""

    def pieces() -> Iterator[bytes]:
        yield b"a"
        request.ratelimit.settle("tokens", 3)
        yield b"b"

    async def pieces_later() -> AsyncIterator[bytes]:
        for piece in pieces():
            yield piece

    return StreamingHttpResponse(pieces_later() if request.ratelimit.is_async else pieces())


def teapot(request: HttpRequest, decision: Any) -> HttpResponse:
    return JsonResponse({"no more": decision.policy, "on": request.path}, status=418)


def login(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.POST["name"])


async def account(request: Any) -> str:
    return str((await request.form())["name"])


urlpatterns = [
    path("login", login),
    path("hints", hint),
    path("status/<int:status>", status),
    path("export", export),
    path("export/known", known_in_the_view),
    path("export/later", export_later),
    path("export/class", Export.as_view()),
    path("export/class/later", ExportLater.as_view()),
    path("plan", plan),
    path("plan/later", plan_later),
    path("unknown", unknown),
    path("handled", handled),
    path("broken", broken),
    path("stream", stream),
    path("metered", metered),
]
