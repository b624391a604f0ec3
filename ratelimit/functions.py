"""`limited("mail", limiter=limiter, user=…)`: a decorator of plain functions, sync and async: Celery's tasks, jobs,
clients of somebody else's API.

    @limited("mail", limiter=limiter, user=lambda user_id, *_: user_id)
    def send_mail(user_id, text): ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
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
    asked: Any = limiter

    def ask(user: UserId, cost: int) -> Any:
        if block:
            return asked.wait(user, action, cost=cost, quotas=quotas, timeout=timeout)
        return asked.check(user, action, cost=cost, quotas=quotas)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name, is_async = getattr(function, "__qualname__", repr(function)), iscoroutinefunction(function)
        if is_async and not isinstance(limiter, on_a_loop.Limiter):
            raise ConfigError("limiter", f"{name} is async: it needs a Limiter of ratelimit, not of ratelimit.sync")
        if not is_async and not isinstance(limiter, sync.Limiter):
            raise ConfigError("limiter", f"{name} is not async: it needs a Limiter of ratelimit.sync")
        around = _around_async if is_async else _around_sync
        return cast(Callable[P, R], wraps(function)(around(function, ask, (user, cost))))

    return decorate


def _around_sync(function: Callable[..., R], ask: Callable[..., Decision], told: Iterable[object]) -> Callable[..., R]:
    def wrapped(*args: Any, **kwargs: Any) -> R:
        _passed(ask(*[_value(each, args, kwargs) for each in told]))
        return function(*args, **kwargs)

    return wrapped


def _around_async(
    function: Callable[..., Any], ask: Callable[..., Awaitable[Decision]], told: Iterable[object]
) -> Callable[..., Any]:
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        values = [_value(each, args, kwargs) for each in told]
        _passed(await ask(*[await each if isawaitable(each) else each for each in values]))
        return await function(*args, **kwargs)

    return wrapped


def _passed(decision: Decision) -> None:
    if not decision.allowed:
        raise QuotaExceeded(decision)


def _value(given: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return given(*args, **kwargs) if callable(given) else given
