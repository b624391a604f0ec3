"""`limited("mail", limiter=limiter, user=…)`: a decorator of plain functions, sync and async: Celery's tasks, jobs,
clients of somebody else's API.

    @limited("mail", limiter=limiter, user=lambda user_id, *_: user_id)
    def send_mail(user_id, text): ...
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from inspect import isasyncgenfunction, isawaitable, iscoroutinefunction, isgeneratorfunction
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

from ratelimit import limiter as on_a_loop
from ratelimit import sync
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, QuotaExceeded, SlotNeeded, UnknownAction, no_policy
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
    are values, or functions of what the function is called with. A slot (`2 concurrent`) is held until the call has
    ended. With `block`, a call waits until it may pass, as `limiter.wait` does with this `timeout`. Raises
    `ConfigError`, and `UnknownAction` where no policy is named so and there are no `quotas`.
    """
    if quotas is None and action not in limiter.policies:
        raise UnknownAction(no_policy(action, limiter.policies))
    check_timeout(timeout)
    calls = _Calls(limiter, action, quotas, timeout if block else None, (user, cost))

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name, is_async = getattr(function, "__qualname__", repr(function)), iscoroutinefunction(function)
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            raise ConfigError("", f"{name} is a generator, which runs after its call: limit what iterates over it")
        if is_async and not isinstance(limiter, on_a_loop.Limiter):
            raise ConfigError("limiter", f"{name} is async: it needs a Limiter of ratelimit, not of ratelimit.sync")
        if not is_async and not isinstance(limiter, sync.Limiter):
            raise ConfigError("limiter", f"{name} is not async: it needs a Limiter of ratelimit.sync")
        around = _around_async if is_async else _around_sync
        return cast(Callable[P, R], wraps(function)(around(function, calls)))

    return decorate


class _Calls(NamedTuple):
    """How calls of a function are checked."""

    limiter: Any
    action: str
    quotas: QuotasLike | None
    timeout: float | None
    """None where a refusal is not waited out."""
    told: tuple[object, object]
    """The user and the cost, or what says them."""

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        return [told(*args, **kwargs) if callable(told) else told for told in self.told]

    def check(self, user: UserId, cost: int) -> Any:
        if self.timeout is None:
            return self.limiter.check(user, self.action, cost=cost, quotas=self.quotas)
        return self.limiter.wait(user, self.action, cost=cost, quotas=self.quotas, timeout=self.timeout)

    def slot(self, user: UserId, cost: int) -> Any:
        return self.limiter.slot(user, self.action, cost=cost, quotas=self.quotas, timeout=self.timeout)


def _around_sync(function: Callable[..., R], calls: _Calls) -> Callable[..., R]:
    def wrapped(*args: Any, **kwargs: Any) -> R:
        user, cost = calls.values(args, kwargs)
        try:
            _passed(calls.check(user, cost))
            slot: Any = nullcontext()
        except SlotNeeded:
            slot = calls.slot(user, cost)
        with slot:
            return function(*args, **kwargs)

    return wrapped


def _around_async(function: Callable[..., Any], calls: _Calls) -> Callable[..., Any]:
    async def wrapped(*args: Any, **kwargs: Any) -> Any:
        user, cost = [await each if isawaitable(each) else each for each in calls.values(args, kwargs)]
        try:
            _passed(await calls.check(user, cost))
            slot: Any = nullcontext()
        except SlotNeeded:
            slot = calls.slot(user, cost)
        async with slot:
            return await function(*args, **kwargs)

    return wrapped


def _passed(decision: Decision) -> None:
    if not decision.allowed:
        raise QuotaExceeded(decision)
