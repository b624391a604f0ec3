"""`Said`: what a call of `limited("hint", quotas=…, user=…, key=…, cost=…)` says in the place of its policy, on every
surface. Each may be a function of the request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import Parameter, Signature, isawaitable
from typing import Any, Final, Protocol, TypeAlias, TypedDict

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request

from ratelimit.errors import InvalidCost, InvalidUser, RateLimitError
from ratelimit.http.addresses import Addresses, warn_once
from ratelimit.http.identity import UserResolver, name_of
from ratelimit.http.policy_check import SurfaceOptions
from ratelimit.names import check_user
from ratelimit.policy import UserFrom
from ratelimit.quota import MAX_LIMIT, QuotasLike, to_quotas

_NOTHING: Final[Mapping[str, Any]] = {}

InlineQuotas: TypeAlias = "QuotasLike | Callable[[Request], QuotasLike | Awaitable[QuotasLike | None] | None]"
InlineKey: TypeAlias = "str | Callable[[Request], str | Awaitable[str | None] | None]"


class InlineArgs(TypedDict, total=False):
    """What `limited` takes besides the action; functions are given the surface's own request."""

    cost: int | Callable[[Any], Any] | None
    quotas: QuotasLike | Callable[[Any], Any] | None
    user: UserFrom | Sequence[UserFrom] | None
    key: str | Callable[[Any], Any] | None


class MissingUser(InvalidUser, HTTPException):
    """None of the sources that `limited(…, user=…)` names says who is asking, and no fallback was asked for. It is
    answered with 401."""

    def __init__(self, action: str) -> None:
        HTTPException.__init__(self, 401, f"Who asks for {action!r} is not known.")


class Depends(Protocol):
    """FastAPI's, of which the value is known when a view is called."""

    @property
    def dependency(self) -> Callable[..., Any] | None:
        """What it calls."""
        ...


class Said:
    """What a call of `limited` says. Raises where it can make no sense.

    `request_of` makes of a connection what the app's functions are given.
    """

    def __init__(
        self,
        action: str,
        *,
        cost: Any = None,
        quotas: Any = None,
        user: Any = None,
        key: Any = None,
        request_of: Callable[[HTTPConnection], Any] | None = None,
    ) -> None:
        self.action = action
        given = {"cost": cost, "quotas": quotas, "user": user, "key": key}
        if request_of is not None:
            given = {name: _adapted(value, request_of) for name, value in given.items()}
        self._depends = {name: value for name, value in given.items() if hasattr(value, "dependency")}
        self._given = {name: value for name, value in given.items() if name not in self._depends and value is not None}
        cost, quotas, key = self._given.get("cost"), self._given.get("quotas"), self._given.get("key")
        if cost is not None and not callable(cost) and (type(cost) is not int or not 0 <= cost <= MAX_LIMIT):
            how = f"a whole number from 0 to {MAX_LIMIT}, or a function of the request, is expected"
            raise InvalidCost(f"limited({action!r}): cost is {cost!r}; {how}")
        if quotas is not None and not callable(quotas):
            self._given["quotas"] = to_quotas(quotas)
        if key is not None and not callable(key):
            check_user(key)
        self.users = UserResolver(self._given["user"], Addresses()) if "user" in self._given else None
        self.reads_user = self.users is not None and "user" in (user, *(user if isinstance(user, list | tuple) else ()))
        """Whether it goes by the authenticated user."""
        self.names = self._given.keys() | self._depends.keys()

    @property
    def signature(self) -> Signature:
        """Return that of the dependency: what it depends on itself is for FastAPI to find."""
        own = Parameter("connection", Parameter.POSITIONAL_OR_KEYWORD, annotation=HTTPConnection)
        others = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=value, annotation=Any)
            for name, value in self._depends.items()
        ]
        return Signature([own, *others])

    def cost(self, found: Mapping[str, Any] = _NOTHING) -> Any:
        """Return the number or the function that takes the place of the policy's; `found` is what was depended on."""
        return (lambda _: found["cost"]) if "cost" in found else self._given.get("cost")

    def about(
        self, connection: HTTPConnection, options: SurfaceOptions, found: Mapping[str, Any] = _NOTHING
    ) -> SaidOfRequest | None:
        """Return the rest of what it says of a request; None where that is nothing."""
        if missing := self._depends.keys() - found.keys():
            how = f"{', '.join(sorted(missing))} is a Depends(…), which FastAPI calls: use it as Depends(limited(…))"
            raise RateLimitError(f"limited({self.action!r}): {how}")
        if self.names.isdisjoint(("user", "key", "quotas")):
            return None
        return SaidOfRequest(self, connection, options, found)

    async def value(self, name: str, connection: HTTPConnection, found: Mapping[str, Any]) -> Any:
        """Return what is said of this."""
        if name in found:
            return found[name]
        value = self._given.get(name)
        if callable(value):
            value = value(connection)
            value = await value if isawaitable(value) else value
        return value


def _adapted(value: Any, request_of: Callable[[HTTPConnection], Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_adapted(one, request_of) for one in value]
    return (lambda connection: value(request_of(connection))) if callable(value) else value


class SaidOfRequest:
    """What it says of one request, asked for where the request is not exempt."""

    def __init__(
        self, said: Said, connection: HTTPConnection, options: SurfaceOptions, found: Mapping[str, Any]
    ) -> None:
        self._said = said
        self._connection = connection
        self._options = options
        self._found = found
        self.has_quotas = "quotas" in said.names

    async def said(self) -> tuple[str | None, str | None, QuotasLike | None]:
        user = await self._user() if "user" in self._said.names else None
        key = await self._said.value("key", self._connection, self._found)
        quotas = await self._said.value("quotas", self._connection, self._found)
        return user, None if key is None else check_user(key), quotas

    async def _user(self) -> str:
        users, connection = self._said.users, self._connection
        name = name_of(self._found["user"]) if users is None else await users.named(connection)
        if name is None and users is not None and users.lists_address:
            name = self._options.address_of(connection)
        if name is None:
            action = self._said.action
            warn_once(
                f"limited({action!r}): none of its sources names a user: has what sets it been run before? FastAPI "
                'sees to that with user=Depends(…); and add "address" to the sources if it is to take the place'
            )
            raise MissingUser(action)
        return check_user(name)
