"""`RateLimitMiddleware`: asks the limiter before a request reaches the app. Pure ASGI, for http and websocket.

Everything is resolved in `__init__`; a request only reads. Nothing is sent before the decision is known, and no body is
read but for a function that asks for it, after which the app gets the same one; the app's messages pass through
untouched, but for the headers on the one that starts the response.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from starlette.types import ASGIApp, Receive, Scope, Send

from ratelimit.clock import Clock
from ratelimit.config import SettingArgs
from ratelimit.errors import QuotaExceeded
from ratelimit.http.addresses import TrustedProxies
from ratelimit.http.admission import MiddlewareState
from ratelimit.http.headers import HeaderStyle
from ratelimit.http.lifespan import LimiterLifespan
from ratelimit.http.refusal import OnRefused, stack
from ratelimit.http.request_handler import RequestHandler
from ratelimit.limiter import Limiter
from ratelimit.limiter.background import AlertHook
from ratelimit.policy import Exempt, UserFrom
from ratelimit.usage import UsageLog


class SurfaceArgs(TypedDict, total=False):
    """What every surface takes, as `RateLimitMiddleware` explains it."""

    user_from: UserFrom | Iterable[UserFrom]
    trusted_proxies: TrustedProxies
    ipv6_prefix: int
    headers: HeaderStyle
    exempt: Exempt | Iterable[Exempt]
    max_body_bytes: int


class RateLimitMiddleware:
    """Checks every request against each policy whose `match` fits, in the limiter's order; all must allow it.

    `limiter`          opened and closed with the app's lifespan, or opened by the first request where there is none.
    `user_from`        where the user is found, in order (see `ratelimit.http.identity`); a policy may have its own.
    `trusted_proxies`  how many proxies of your own stand in front, or their networks: only those are believed about
                       `X-Forwarded-For`.
    `ipv6_prefix`      how many bits of an IPv6 address are one subscriber's, and so one user.
    `headers`          `"draft"` (`RateLimit`, `RateLimit-Policy`), `"legacy"` (`X-RateLimit-*`), `"both"`, `"none"`.
    `max_body_bytes`   how much of a body is read where a function asks for it; a larger one is answered with 413.
    `usage`            a log of the limiter's store, in which every checked request is kept as its policy's `log` says;
                       opened and closed with the limiter.
    `exempt`           requests that no policy checks, and no `limited(...)`: patterns, or functions of the request.
    `on_refused`       a function of the request and the decision, sync or async, that returns the answer to a refused
                       one; the RateLimit fields are added. Without it, a problem body.

    A refusal by a policy's `match` gives back what those before it took; what has reached the app stays spent.
    Place it inside of what sets `scope["user"]`. Raises `ConfigError` with the path to a bad option.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limiter: Limiter,
        usage: UsageLog | None = None,
        on_refused: OnRefused | None = None,
        **options: Unpack[SurfaceArgs],
    ) -> None:
        self.app = app
        self.limiter = limiter
        inner = [one._state for one in stack(app) if isinstance(one, RateLimitMiddleware)]
        self._state: MiddlewareState = MiddlewareState(
            limiter, usage, app=app, on_refused=on_refused, inner=inner, options=options
        )
        self.refunds = self._state.refunds
        self._rooted: Any = next((one for one in stack(app) if hasattr(one, "root_path_in_servers")), None)
        """FastAPI's app, where it is further in: what it takes for its root it says itself."""
        self._lifespan = LimiterLifespan(limiter, self.refunds, usage)

    @classmethod
    def from_config(
        cls,
        app: ASGIApp,
        path: str | Path | None = None,
        *,
        clock: Clock | None = None,
        on_refused: OnRefused | None = None,
        on_alert: AlertHook | None = None,
        **settings: Unpack[SettingArgs],
    ) -> Self:
        """Make one of a configuration: `app.add_middleware(RateLimitMiddleware.from_config, path="ratelimit.toml")`.

        `path`, `clock`, `on_alert` and `settings` as in `configure`. Raises `ConfigError` with all that is wrong.
        """
        from ratelimit.factory import configure  # which makes everything, and so knows the middleware

        return cls(app, on_refused=on_refused, **configure(path, clock=clock, on_alert=on_alert, **settings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if self._rooted is not None and self._rooted.root_path:
            scope["root_path"] = self._rooted.root_path
        if kind == "lifespan":
            self._state.options.warn(scope.get("root_path", ""))
            await self._lifespan.run(self.app, scope, receive, send)
            return
        if kind != "http" and kind != "websocket":
            await self.app(scope, receive, send)
            return
        if not self._lifespan.ready:
            send = await self._made_ready(send)
        handler = RequestHandler(self._state, scope, receive, send)
        try:
            refused = await handler.check()
            if refused is None:
                given = receive if handler._connection is None else handler.receive
                await self.app(scope, given, handler.send)
            else:
                await handler.send_refusal(refused)
        except QuotaExceeded as error:
            if not await handler.send_refusal(error.decision, by_app=True):
                raise
        except CancelledError:  # by a server whose client has left
            handler.charges.keep()
            raise
        finally:
            if not handler.is_over:
                await handler.end()
            handler.let_go()

    async def _made_ready(self, send: Send) -> Send:
        await self._lifespan.before_request()
        return self._lifespan.settling(send) if self._lifespan.is_frozen else send
