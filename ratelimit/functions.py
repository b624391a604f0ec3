"""`limited("mail", limiter=limiter, user=…)`: a decorator of plain functions, sync and async: Celery's tasks, jobs,
clients of somebody else's API.

    @limited("mail", limiter=limiter, user=lambda user_id, *_: user_id)
    def send_mail(user_id, text): ...
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial, wraps
from inspect import isawaitable, iscoroutinefunction
from typing import Any, Final, ParamSpec, TypeVar, cast

from ratelimit import limiter as on_a_loop
from ratelimit import sync
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, QuotaExceeded, UnknownAction
from ratelimit.names import UserId
from ratelimit.quota import QuotasLike

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_TIMEOUT: Final = 60.0
_MIN_WAIT_S: Final = 0.01


def limited(
    action: str,
    *,
    limiter: sync.Limiter | on_a_loop.Limiter,
    user: UserId | Callable[..., Any],
    cost: int | Callable[..., Any] = 1,
    quotas: QuotasLike | None = None,
    block: bool = False,
    timeout: float = DEFAULT_TIMEOUT,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of a function that checks each call before it begins. A refusal raises `QuotaExceeded`.

    `limiter` is one of `ratelimit.sync` for a function, and one of `ratelimit` for an `async` one. `user` and `cost`
    are values, or functions of what the function is called with. With `block`, a call waits until it may pass, and is
    refused at once where it could not within `timeout` seconds, or ever. Raises `ConfigError`, and `UnknownAction`
    where no policy is named so and there are no `quotas`.
    """
    if quotas is None and action not in limiter.policies:
        raise UnknownAction(f"no policy is named {action!r} (there are: {', '.join(limiter.policies) or 'none'})")
    if not timeout >= 0:
        raise ConfigError("timeout", f"must be 0 seconds or more, not {timeout!r}")
    checks = _Checks(action, limiter, user, cost, quotas, timeout if block else -1.0)
    return checks.around


class _Checks:
    """How the calls of a function are checked."""

    def __init__(
        self, action: str, limiter: Any, user: object, cost: object, quotas: QuotasLike | None, left: float
    ) -> None:
        self._action = action
        self._limiter = limiter
        self._user = user
        self._cost = cost
        self._quotas = quotas
        self._left = left

    def around(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return the function, checked. Raises `ConfigError` where the limiter is for the other kind."""
        name = getattr(function, "__qualname__", repr(function))
        if iscoroutinefunction(function):
            if not isinstance(self._limiter, on_a_loop.Limiter):
                raise ConfigError("limiter", f"{name} is async: it needs a Limiter of ratelimit, not of ratelimit.sync")
            return cast(Callable[P, R], self._around_async(function))
        if not isinstance(self._limiter, sync.Limiter):
            raise ConfigError("limiter", f"{name} is not async: it needs a Limiter of ratelimit.sync")
        return self._around_sync(function)

    def _around_sync(self, function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            wait = _Wait(self._left)
            user, cost = _value(self._user, args, kwargs), _value(self._cost, args, kwargs)
            while seconds := wait.after(self._limiter.check(user, self._action, cost=cost, quotas=self._quotas)):
                time.sleep(seconds)
            return function(*args, **kwargs)

        return wrapped

    def _around_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            wait = _Wait(self._left)
            user, cost = _value(self._user, args, kwargs), _value(self._cost, args, kwargs)
            user = await user if isawaitable(user) else user
            cost = await cost if isawaitable(cost) else cost
            check = partial(self._limiter.check, user, self._action, cost=cost, quotas=self._quotas)
            while seconds := wait.after(await check()):  # noqa: ASYNC110 (nobody tells when a quota has room)
                await asyncio.sleep(seconds)
            return await function(*args, **kwargs)

        return wrapped


class _Wait:
    """How long one call may still wait; less than 0 where it may not at all."""

    def __init__(self, left: float) -> None:
        self._left = left

    def after(self, decision: Decision) -> float:
        """Return the seconds to wait before the next check; 0 where the call may begin. Raises `QuotaExceeded`."""
        if decision.allowed:
            return 0.0
        if decision.retry_after is None or decision.retry_after > self._left:
            raise QuotaExceeded(decision)
        seconds = max(decision.retry_after, _MIN_WAIT_S)
        self._left -= seconds
        return seconds


def _value(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return given(*args, **kwargs) if callable(given) else given
