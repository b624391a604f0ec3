"""`limited("hint")`: a view asks by itself. A dependency for FastAPI's `Depends`, and a plain function for Starlette.

    @app.post("/hints", dependencies=[Depends(limited("hint"))])          # FastAPI
    decision = await hint(request)                                         # Starlette, with hint = limited("hint")

A refusal is raised, as `QuotaExceeded`, and the middleware answers it. `Said` is what such a call says in the place of
its policy, on every surface.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import Parameter, Signature, isawaitable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, TypedDict
from weakref import WeakKeyDictionary

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketState

from ratelimit.decision import Decision
from ratelimit.errors import InvalidAction, InvalidCost, InvalidUser, QuotaExceeded, RateLimitError, nearest
from ratelimit.http.addresses import Addresses, warn_once
from ratelimit.http.identity import UserResolver, name_of
from ratelimit.http.policy_check import PolicyCheck, SurfaceOptions
from ratelimit.http.problems import CONTENT_TYPE, QuotaProblem
from ratelimit.http.refusal import closing, refusal, respond
from ratelimit.http.request_handler import RateLimitState
from ratelimit.limiter import Limiter
from ratelimit.names import check_user
from ratelimit.policy import Cost, UserFrom
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
    def dependency(self) -> Callable[..., Any] | None: ...


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
        if not isinstance(action, str):
            raise InvalidAction(f"limited takes the name of a policy, as in limited('hint'), not {action!r}")
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
        self._users = UserResolver(self._given["user"], Addresses()) if "user" in self._given else None
        sources = user if isinstance(user, list | tuple) else (user,)
        self.reads_user = self._users is not None and "user" in sources
        """Whether it goes by the authenticated user."""
        self.names = self._given.keys() | self._depends.keys()

    @property
    def signature(self) -> Signature:
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
    ) -> Inline | None:
        """Return the rest of what it says of a request; None where that is nothing."""
        if missing := self._depends.keys() - found.keys():
            how = f"{', '.join(sorted(missing))} is a Depends(…), which FastAPI calls: use it as Depends(limited(…))"
            raise RateLimitError(f"limited({self.action!r}): {how}")
        if self.names.isdisjoint(("user", "key", "quotas")):
            return None
        return Inline("quotas" in self.names, partial(self._said, connection, options, found))

    async def _said(
        self, connection: HTTPConnection, options: SurfaceOptions, found: Mapping[str, Any]
    ) -> tuple[str | None, str | None, QuotasLike | None]:
        user = await self._user(connection, options, found) if "user" in self.names else None
        key = await self._value("key", connection, found)
        quotas = await self._value("quotas", connection, found)
        return user, None if key is None else check_user(key), quotas

    async def _user(self, connection: HTTPConnection, options: SurfaceOptions, found: Mapping[str, Any]) -> str:
        users = self._users
        name = name_of(found["user"]) if users is None else await users.named(connection)
        if name is None and users is not None and users.lists_address:
            name = options.address_of(connection)
        if name is None:
            warn_once(
                f"limited({self.action!r}): none of its sources names a user: has what sets it been run before? FastAPI"
                ' sees to that with user=Depends(…); and add "address" to the sources if it is to take the place'
            )
            raise MissingUser(self.action)
        return check_user(name)

    async def _value(self, name: str, connection: HTTPConnection, found: Mapping[str, Any]) -> Any:
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


class Inline(NamedTuple):
    """What it says of one request, asked for where the request is not exempt."""

    has_quotas: bool
    said: Callable[[], Awaitable[tuple[str | None, str | None, QuotasLike | None]]]
    """Returns the user, whom the usage log names; what is counted in the user's place; and the quotas."""


Dependency: TypeAlias = Callable[[HTTPConnection], Awaitable[Decision]]

_made: Final[WeakKeyDictionary[Dependency, str | None]] = WeakKeyDictionary()
"""Those that `limited` has made, and the action of each that asks the middleware's limiter."""


def limited(
    action: str,
    *,
    cost: Cost | Depends | None = None,
    quotas: InlineQuotas | Depends | None = None,
    user: UserFrom | Sequence[UserFrom] | Depends | None = None,
    key: InlineKey | Depends | None = None,
    limiter: Limiter | None = None,
) -> Dependency:
    """Return a function of a request or websocket that checks it against one policy, and returns the decision.

    `cost`    takes the place of the policy's own.
    `quotas`  take the place of the policy's, and need none.
    `user`    who it is: sources as in `user_from`. Where none of them names anybody, `MissingUser` is raised: the
              client goes by its address only where `"address"` is among them.
    `key`     what is counted instead of the user: an organisation, a document, or one name for all.
    `limiter` another one than the middleware's.

    Each may be a function of the request, which may read the body, as it is the view's own; and in FastAPI a dependency
    (`user=Depends(current_user)`), which is thereby run first.

    The user and the limiter are else those of the middleware; without it, pass `limiter=` and register
    `quota_exceeded_handler`. A refusal raises `QuotaExceeded`, of which the middleware makes the answer; what was
    admitted before stays spent. A cost of 0 or an exempt request is allowed unasked. Raises `UnknownAction`,
    `InvalidCost`, `InvalidQuota`, `InvalidUser`, and `RateLimitError` where there is neither a middleware nor a
    limiter.
    """
    said = Said(action, cost=cost, quotas=quotas, user=user, key=key)
    options = SurfaceOptions()
    if limiter is not None:
        options.policy_check(limiter, action, is_inline=quotas is not None)

    check = _dependency(said, limiter, options)
    _made[check] = action if limiter is None and quotas is None else None
    return check


def _dependency(said: Said, limiter: Limiter | None, options: SurfaceOptions) -> Dependency:
    async def check(connection: HTTPConnection, **found: Any) -> Decision:
        state = RateLimitState.of(connection.scope)
        inline = said.about(connection, options if state is None else state.options, found)
        cost = said.cost(found)
        if state is not None:
            ask = state.handler.ask
            return await ask(said.action, cost=cost, limiter=limiter, connection=connection, inline=inline)
        policy_check = _unattended(options, limiter, said.action, is_inline=inline is not None and inline.has_quotas)
        charge = await policy_check.check(connection, cost=cost, inline=inline)
        if charge.hold is not None:  # by quotas of the call, or of the user's plan
            await charge.release()
            raise _held_for_nobody(said.action)
        if not charge.decision.allowed:
            raise QuotaExceeded(charge.decision)
        return charge.decision

    # What Python says of a view that forgets to await.
    check.__qualname__ = f"limited({said.action!r})"
    check.__signature__ = said.signature  # type: ignore[attr-defined]
    return check


def unknown_action(app: object, known: Iterable[str]) -> str | None:
    """Say what is wrong with the first route of a FastAPI app that depends on an unknown action. What is mounted in it
    may have a middleware of its own."""
    names = sorted(known)
    for route, dependency in dependencies_of(getattr(app, "routes", None) or ()):
        action = _made.get(dependency)
        if action is not None and action not in names:
            hint = nearest(action, names)
            return f"{route.path} depends on limited({action!r}), and no policy is named so; {hint}"
    return None


def dependencies_of(routes: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield each route of a FastAPI app with each function that it depends on."""
    for route in routes:
        if hasattr(route, "effective_candidates"):  # FastAPI's, for a router that is included
            yield from dependencies_of(route.effective_candidates())
            continue
        waiting = [getattr(route, "dependant", None)]
        while waiting:
            if (dependant := waiting.pop()) is not None:
                waiting += dependant.dependencies
                if callable(dependant.call):
                    yield route, dependant.call


def _unattended(options: SurfaceOptions, limiter: Limiter | None, action: str, *, is_inline: bool) -> PolicyCheck:
    """Return the check of a policy that can do without the middleware. Raises `RateLimitError`."""
    if limiter is None:
        raise RateLimitError(f"limited({action!r}) needs RateLimitMiddleware around the app, or limiter=…")
    policy_check = options.policy_check(limiter, action, is_inline=is_inline)
    count = policy_check.policy.count
    if count != "all":
        how = "by a function" if callable(count) else f"only {count}"
        problem = f"counts {how}, which takes RateLimitMiddleware to see how the response ends"
        raise RateLimitError(f"limited({action!r}): the policy {problem}")
    if policy_check.holds:
        raise _held_for_nobody(action)
    return policy_check


def _held_for_nobody(action: str) -> RateLimitError:
    problem = "is held until the answer has ended, which takes RateLimitMiddleware to see that"
    return RateLimitError(f"limited({action!r}): what it takes {problem}")


async def quota_exceeded_handler(connection: Request | WebSocket, error: Exception) -> Response | None:
    """Answer a refusal in an app without the middleware: `app.add_exception_handler(QuotaExceeded, …)`."""
    assert isinstance(error, QuotaExceeded)
    state = RateLimitState.of(connection.scope)
    if state is not None:
        # The middleware does it better: it also sees to what the request has spent.
        raise error
    response = refusal(error.decision, _WRITER)
    if not isinstance(connection, WebSocket):
        return response
    if connection.application_state is WebSocketState.CONNECTING:
        await respond(response, connection.scope, connection.receive, connection.send)
    else:
        await connection.send(closing(connection.scope))
    return None


_WRITER = SurfaceOptions().writer


# What FastAPI's OpenAPI says of a route that asks by `Depends(limited(...))`: its 429, with fields and body.

_DESCRIBED: Final = "_ratelimit_described"
_TEXT: Final = {"type": "string"}
_BODY: Final = msgspec.json.schema_components([QuotaProblem])[1]["QuotaProblem"]
_REFUSAL: Final = {
    "description": "The quota is used up.",
    "headers": {
        "Retry-After": {"description": "Seconds until the request may pass.", "schema": {"type": "integer"}},
        "RateLimit-Policy": {"description": 'The quotas, as in `"hint";q=5;w=86400`.', "schema": _TEXT},
        "RateLimit": {"description": 'What is left, as in `"hint";r=0;t=43200`.', "schema": _TEXT},
    },
    "content": {CONTENT_TYPE.decode(): {"schema": {**_BODY, "required": list(_BODY["properties"])}}},
}


def describe_refusals(app: Any) -> None:
    """Have a FastAPI app's OpenAPI show the 429 of each route that depends on `limited(...)`, unless the route says
    what its own is. The middleware does so when the app starts; call it to write the document without a server."""
    if not hasattr(app, "openapi") or hasattr(app, _DESCRIBED):
        return
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document: dict[str, Any] = original()
        for route, dependency in dependencies_of(getattr(app, "routes", None) or ()):
            for method in getattr(route, "methods", None) or () if dependency in _made else ():
                operation = document.get("paths", {}).get(route.path_format, {}).get(method.lower())
                if operation is not None:
                    operation.setdefault("responses", {}).setdefault("429", _REFUSAL)
        return document

    app.openapi = openapi
    setattr(app, _DESCRIBED, True)
