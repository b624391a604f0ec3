"""`RateLimitMiddleware`: of requests to Django, by WSGI and by ASGI; and `limited`, a decorator of its views."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache, wraps
from inspect import isawaitable
from typing import Any, Final, NamedTuple, Unpack

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.core.signals import setting_changed
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.decorators import method_decorator
from django.utils.functional import LazyObject
from django.utils.module_loading import import_string
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Scope

from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, QuotaExceeded, RateLimitError
from ratelimit.factory import configure as configure_for_a_loop
from ratelimit.http.admission import MiddlewareState
from ratelimit.http.dependency import InlineArgs, Said
from ratelimit.http.lifespan import LimiterLifespan
from ratelimit.wsgi.app_request import AppRequest, decoded, encoded, run, scope_of, state_of
from ratelimit.wsgi.middleware import configure

# What `settings.RATELIMIT` describes: made once a process, for threads or for the event loop, and again when the
# settings change, as they do in tests.

NAME: Final = "RATELIMIT"


class Surface(NamedTuple):
    """What all requests share."""

    state: MiddlewareState
    limiter: Any
    usage: Any
    reads_user: bool
    """Whether some policy goes by Django's user."""
    lifespan: LimiterLifespan | None
    """Opens what has an event loop, as Django tells nobody when it starts."""


def settings_of() -> dict[str, Any]:
    """Return `settings.RATELIMIT`: a file's `path`, `on_refused`, `on_alert`, and settings as in `load_config`."""
    found = getattr(settings, NAME, None)
    if not isinstance(found, dict):
        raise ConfigError(f"settings.{NAME}", f"expected the settings by name, as a dict, not {found!r}")
    return found


@cache
def surface(*, is_async: bool) -> Surface:
    """Return the process's own. Raises `ConfigError` with all that is wrong."""
    given = dict(settings_of())
    on_refused = given.pop("on_refused", None)
    if isinstance(on_refused, str):
        on_refused = import_string(on_refused)
    args: dict[str, Any] = dict(configure_for_a_loop(**given) if is_async else configure(**given))
    limiter, usage = args.pop("limiter"), args.pop("usage")
    adapted = None if on_refused is None else _adapted(on_refused)
    state: MiddlewareState = (MiddlewareState if is_async else state_of)(
        limiter, usage, on_refused=adapted, options=args
    )
    sources = [args["user_from"], *(policy.user_from for policy in limiter.policies.values())]
    lifespan = LimiterLifespan(limiter, state.refunds, usage) if is_async else None
    return Surface(state, limiter, usage, any("user" in some for some in sources), lifespan)


def _adapted(on_refused: Callable[[Any, Decision], HttpResponse]) -> Callable[[Any, Decision], Response]:
    def answer(connection: Any, decision: Decision) -> Response:
        made = on_refused(connection.scope["django.request"], decision)
        response = Response(made.content, made.status_code)
        response.raw_headers = [*encoded(made.items()), (b"content-length", b"%d" % len(made.content))]
        return response

    return answer


def _changed(*, setting: str, **_: object) -> None:
    if setting == NAME:
        surface.cache_clear()


setting_changed.connect(_changed)


class DjangoRequest(AppRequest):
    """What the middleware leaves in `request.ratelimit`: `decisions` are those made so far."""

    __slots__ = ("is_async", "request", "surface")

    def __init__(self, surface: Surface, request: Any, *, is_async: bool) -> None:
        self.surface = surface
        self.request = request
        self.is_async = is_async
        super().__init__(surface.state, _scope(request))

    async def receive(self) -> Message:
        return {"type": "http.request", "body": self.request.body, "more_body": False}

    async def identify(self, *, is_named: bool = False) -> None:
        """Have Django's user of this moment at hand, where a policy or the view goes by him (`is_named`): he may be in
        the database, which an event loop must not wait for, and who asks in a view may have found him there."""
        scope = self.admission.scope
        if not (self.surface.reads_user or is_named):
            return
        user = getattr(self.request, "user", None)
        if self.is_async and isinstance(user, LazyObject):
            if hasattr(self.request, "auser"):
                user = await self.request.auser()
            else:
                await sync_to_async(bool)(user)
        scope["user"] = user

    def end_later(self) -> Callable[[], object]:
        if not self.is_async:
            return lambda: run(self.end())
        loop, tasks = asyncio.get_running_loop(), self.state.refunds
        return lambda: loop.call_soon_threadsafe(lambda: tasks.start(self.end()))


class RateLimitMiddleware:
    """Checks every request against each policy whose `match` fits, as `settings.RATELIMIT` says.

    Place it after AuthenticationMiddleware, whose user is `"user"`. Functions of policies are given Starlette's
    `Request`, with Django's in `request.scope["django.request"]`; `on_refused` is given Django's. Events are recorded
    as the answer begins, and what is held goes back then; of a streaming one, when it has ended.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        self._is_async = bool(iscoroutinefunction(get_response))
        if self._is_async:
            markcoroutinefunction(self)
        surface(is_async=self._is_async)

    def __call__(self, request: HttpRequest) -> Any:
        return self._serve(request) if self._is_async else run(self._serve(request))

    def process_exception(self, request: Any, error: Exception) -> HttpResponse | None:
        """Answer a refusal that a view has not handled."""
        checked = getattr(request, "ratelimit", None)
        if not isinstance(error, QuotaExceeded | HTTPException) or not isinstance(checked, DjangoRequest):
            return None
        if self._is_async:
            return _response(async_to_sync(checked.answer_to)(error))
        return _response(run(checked.answer_to(error)))

    async def _serve(self, request: Any) -> HttpResponseBase:
        shared = surface(is_async=self._is_async)
        checked = request.ratelimit = DjangoRequest(shared, request, is_async=self._is_async)
        if shared.lifespan is not None and not shared.lifespan.ready:
            await shared.lifespan.before_request()
        if shared.state.routes.find(checked.admission.scope):
            await checked.identify()
        if (answer := await checked.begin()) is not None:
            return _response(answer)
        is_held = False
        try:
            response = self.get_response(request)
            if isawaitable(response):
                response = await response
            for name, value in decoded(await checked.start(response.status_code, encoded(response.items()))):
                response[name] = value
            if is_held := bool(response.streaming and checked.admission.charges.held):
                response._resource_closers.append(checked.end_later())
        except asyncio.CancelledError:  # by a server whose client has left
            checked.admission.charges.keep()
            raise
        finally:
            if not is_held:
                await checked.end()
            if shared.lifespan is not None and shared.lifespan.is_frozen:
                await shared.lifespan.settle()
        made: HttpResponseBase = response
        return made


def _scope(request: Any) -> Scope:
    is_asgi = hasattr(request, "scope")
    scope = {**request.scope, "root_path": request.script_name} if is_asgi else dict(scope_of(request.environ))
    for name in ("user", "ratelimit"):
        scope.pop(name, None)
    return {**scope, "django.request": request}


def _response(answer: Response) -> HttpResponse:
    response = HttpResponse(answer.body, status=answer.status_code)
    del response["content-type"]
    for name, value in decoded(answer.raw_headers):
        response[name] = value
    return response


asked: Final[dict[str, str]] = {}
"""The action of each view that has been decorated, for the system check."""


def limited(action: str, **said: Unpack[InlineArgs]) -> Callable[[Any], Any]:
    """Return a decorator of a view, sync, async or class-based, that checks the request against one policy first.

    `cost`, `quotas`, `user` and `key` take the place of the policy's, as in `ratelimit.limited`; functions are given
    Django's request. A refusal raises `QuotaExceeded`, and a missing user `MissingUser`, and the middleware answers
    them. Raises `UnknownAction`, and `RateLimitError` without the middleware.
    """
    inline = Said(action, **said, request_of=lambda connection: connection.scope["django.request"])

    def decorate(view: Any) -> Any:
        if said.get("quotas") is None:
            asked[f"{view.__module__}.{view.__qualname__}"] = action
        if isinstance(view, type):
            return method_decorator(wrap, name="dispatch")(view)
        return wrap(view)

    def wrap(view: Any) -> Any:
        async def answer(request: Any, *args: Any, **kwargs: Any) -> Any:
            checking = _check(request, inline)
            await (checking if _checked(request, action).is_async else sync_to_async(run)(checking))
            response = view(request, *args, **kwargs)
            return await response if isawaitable(response) else response

        if iscoroutinefunction(view):
            return wraps(view)(answer)

        @wraps(view)
        def wrapped(request: Any, *args: Any, **kwargs: Any) -> Any:
            if asyncio._get_running_loop() is not None:  # the `dispatch` of a class whose methods are async
                return answer(request, *args, **kwargs)
            if _checked(request, action).is_async:
                async_to_sync(_check)(request, inline)
            else:
                run(_check(request, inline))
            return view(request, *args, **kwargs)

        return wrapped

    return decorate


def _checked(request: Any, action: str) -> DjangoRequest:
    checked = getattr(request, "ratelimit", None)
    if not isinstance(checked, DjangoRequest):
        raise RateLimitError(f"limited({action!r}) needs ratelimit.django.RateLimitMiddleware in MIDDLEWARE")
    return checked


async def _check(request: Any, said: Said) -> None:
    checked = _checked(request, said.action)
    await checked.identify(is_named=said.reads_user)
    await checked.ask(said)
