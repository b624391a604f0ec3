"""`limited`: a decorator of Django's views."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import wraps
from inspect import isawaitable
from typing import Any, Final, Unpack

from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.utils.decorators import method_decorator

from ratelimit.django.middleware import DjangoRequest
from ratelimit.errors import RateLimitError
from ratelimit.http.inline import InlineArgs, Said
from ratelimit.wsgi.app_request import run

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
