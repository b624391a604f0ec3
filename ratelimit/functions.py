"""`limited("mail", limiter=limiter, user=…)`: a decorator of plain functions, sync and async: Celery's tasks, jobs,
clients of somebody else's API.

    @limited("mail", limiter=limiter, user=lambda user_id, *_: user_id)
    def send_mail(user_id, text): ...
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import isawaitable, iscoroutinefunction
from typing import Any, ParamSpec, TypeVar, cast

from ratelimit import limiter as on_a_loop
from ratelimit import sync
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, QuotaExceeded, UnknownAction
from ratelimit.limiter.waiting import DEFAULT_TIMEOUT, check_timeout
from ratelimit.names import UserId
from ratelimit.quota import QuotasLike

P = ParamSpec("P")
R = TypeVar("R")


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
    are values, or functions of what the function is called with. With `block`, a call waits until it may pass, as
    `limiter.wait` does with this `timeout`. Raises `ConfigError`, and `UnknownAction`
    where no policy is named so and there are no `quotas`.
    """
    if quotas is None and action not in limiter.policies:
        raise UnknownAction(f"no policy is named {action!r} (there are: {', '.join(limiter.policies) or 'none'})")
    check_timeout(timeout)
    checks = _Checks(action, limiter, user, cost, quotas, timeout if block else None)
    return checks.around


class _Checks:
    """How the calls of a function are checked. Without a `timeout` they do not wait."""

    def __init__(
        self, action: str, limiter: Any, user: object, cost: object, quotas: QuotasLike | None, timeout: float | None
    ) -> None:
        self._action = action
        self._limiter = limiter
        self._user = user
        self._cost = cost
        self._quotas = quotas
        self._timeout = timeout

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

    def _ask(self, user: Any, cost: Any) -> Any:
        if self._timeout is None:
            return self._limiter.check(user, self._action, cost=cost, quotas=self._quotas)
        return self._limiter.wait(user, self._action, cost=cost, quotas=self._quotas, timeout=self._timeout)

    def _around_sync(self, function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            user, cost = _value(self._user, args, kwargs), _value(self._cost, args, kwargs)
            _passed(self._ask(user, cost))
            return function(*args, **kwargs)

        return wrapped

    def _around_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        async def wrapped(*args: Any, **kwargs: Any) -> Any:
            user, cost = _value(self._user, args, kwargs), _value(self._cost, args, kwargs)
            user = await user if isawaitable(user) else user
            cost = await cost if isawaitable(cost) else cost
            _passed(await self._ask(user, cost))
            return await function(*args, **kwargs)

        return wrapped


def _passed(decision: Decision) -> None:
    if not decision.allowed:
        raise QuotaExceeded(decision)


def _value(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return given(*args, **kwargs) if callable(given) else given
