"""`twin_of`: a method that does, without an event loop, what the async one of the same name does."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def twin_of(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Any, P], T]:
    """Return the method, for a class whose `_run` runs a coroutine, and whose `_core` has this method."""
    name = method.__name__

    @wraps(method)
    def call(self: Any, /, *args: P.args, **options: P.kwargs) -> T:
        result: T = self._run(getattr(self._core, name)(*args, **options))
        return result

    return call
