"""`RateLimit`: an extension of Flask, and `limited` for its views.

    limits = RateLimit(app, policies=[Policy("hint", quotas="5/day", match="POST /hints")])

It stands among the app's own hooks: it knows who is logged in, and what answers refusals sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, Unpack

from flask import Flask, Response, current_app, request
from starlette.exceptions import HTTPException
from starlette.responses import Response as StarletteResponse
from starlette.types import Message

from ratelimit.config import SettingArgs
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, QuotaExceeded, RateLimitError
from ratelimit.http.admission import MiddlewareState
from ratelimit.http.dependency import InlineArgs, Said
from ratelimit.limiter.background import AlertHook
from ratelimit.sync import Limiter, UsageLog
from ratelimit.wsgi.app_request import ENVIRON_KEY, AppRequest, decoded, encoded, run, scope_of, state_of
from ratelimit.wsgi.middleware import configure

P = ParamSpec("P")
R = TypeVar("R")

EXTENSION: Final = "ratelimit"


class RateLimit:
    """Checks every request of an app against each policy whose `match` fits, as the middleware does.

    `path`, `on_alert` and `settings` as in `ratelimit.configure`, and under `app.config["RATELIMIT"]`, which goes over
    them. `on_refused` is a function of Flask's request and the decision that returns what a view may return. With
    Flask-Login, `user_from = "user"` is its `current_user`. One app, or several by `init_app`: each has a limiter of
    its own.
    """

    def __init__(
        self,
        app: Flask | None = None,
        path: str | Path | None = None,
        *,
        on_refused: Callable[[Any, Decision], Any] | None = None,
        on_alert: AlertHook | None = None,
        **settings: Unpack[SettingArgs],
    ) -> None:
        self._on_refused = on_refused
        self._settings: dict[str, Any] = {"path": path, "on_alert": on_alert, **settings}
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Have an app limited. Raises `ConfigError` with all that is wrong."""
        config = app.config.get("RATELIMIT") or {}
        if not isinstance(config, dict):
            raise ConfigError("RATELIMIT", f"expected the settings by name, as a dict, not {config!r}")
        args = configure(**{**self._settings, **config})
        limiter, usage = args.pop("limiter"), args.pop("usage")  # type: ignore[misc]
        state = state_of(limiter, usage, on_refused=self._refused, options=args)
        extension = app.extensions[EXTENSION] = _Extension(limiter, usage, state)
        app.before_request(extension.begin)
        app.after_request(extension.start)
        app.teardown_request(extension.end)
        app.register_error_handler(QuotaExceeded, _refuse)
        app.register_error_handler(HTTPException, _refuse)

    @property
    def limiter(self) -> Limiter:
        """The limiter of the current app."""
        return _extension().limiter

    @property
    def usage(self) -> UsageLog | None:
        """The usage log of the current app."""
        return _extension().usage

    def _refused(self, _: object, decision: Decision) -> StarletteResponse | None:
        if self._on_refused is not None:
            answer = current_app.ensure_sync(self._on_refused)(request, decision)
        else:
            try:
                answer = current_app.handle_user_exception(_BeforeTheView(decision))
            except QuotaExceeded:
                return None
        made = current_app.make_response(answer)
        response = StarletteResponse(made.get_data(), made.status_code)
        response.raw_headers = encoded(made.headers)
        return response


class _BeforeTheView(QuotaExceeded):
    """Looks for a handler of the app's own."""


class _FlaskRequest(AppRequest):
    __slots__ = ()

    async def receive(self) -> Message:
        """Read the body, or take what Flask has kept of it, where the app was faster. Raises `RateLimitError` where it
        has kept nothing."""
        asked = request.__dict__
        if (kept := asked.get("_cached_data")) is not None:
            return {"type": "http.request", "body": kept, "more_body": False}
        if "stream" in asked:
            raise RateLimitError("a function has asked for the body, which the app has read as a form or stream before")
        return await super().receive()


class _Extension:
    """What an app has of it, and what it does with each request."""

    def __init__(self, limiter: Limiter, usage: UsageLog | None, state: MiddlewareState) -> None:
        self.limiter = limiter
        self.usage = usage
        self.state = state

    def current(self) -> AppRequest | None:
        found = request.environ.get(ENVIRON_KEY)
        return found if isinstance(found, AppRequest) and found.state is self.state else None

    def begin(self) -> Response | None:
        environ = request.environ
        scope = scope_of(environ)
        if getattr(current_app, "login_manager", None) is not None:
            from flask_login import current_user

            scope["user"] = current_user
        checked = environ[ENVIRON_KEY] = _FlaskRequest(self.state, scope, environ.get(ENVIRON_KEY))
        answer = run(checked.begin())
        return None if answer is None else _response(answer)

    def start(self, response: Response) -> Response:
        checked = self.current()
        if checked is None:
            return response
        headers = response.headers
        if not checked.admission.has_begun:
            for name, value in decoded(run(checked.start(response.status_code, encoded(headers)))):
                headers.add(name, value)
        if response.is_streamed:
            response.call_on_close(lambda: run(checked.end()))
        else:
            run(checked.end())
        return response

    def end(self, error: BaseException | None) -> None:
        checked = self.current()
        if checked is not None and not checked.admission.has_begun:
            run(checked.end())


def _extension() -> _Extension:
    found = current_app.extensions.get(EXTENSION)
    if not isinstance(found, _Extension):
        raise RateLimitError("this app has no RateLimit: RateLimit(app, …), or limits.init_app(app)")
    return found


def limited(action: str, **said: Unpack[InlineArgs]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator of a view, or of what a view calls, that checks the request against one policy first.

    `cost`, `quotas`, `user` and `key` take the place of the policy's, as in `ratelimit.limited`; functions are given
    Flask's request. A refusal raises `QuotaExceeded`, and a missing user `MissingUser`, which are answered for a view
    that does not catch them. Raises `UnknownAction`.
    """
    inline = _said(action, said)

    def decorate(view: Callable[P, R]) -> Callable[P, R]:
        if isinstance(view, type):
            raise TypeError(f"{view.__name__} is a class: say decorators = [limited({action!r})] in it")

        @wraps(view)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            _check(inline)
            answer: R = current_app.ensure_sync(view)(*args, **kwargs)
            return answer

        return wrapped

    return decorate


def check(action: str, **said: Unpack[InlineArgs]) -> Decision:
    """Check the current request against one policy, as `limited` does, and return the decision."""
    return _check(_said(action, said))


def _said(action: str, said: InlineArgs) -> Said:
    return Said(action, **said, request_of=lambda _: request)


def _check(said: Said) -> Decision:
    checked = _extension().current()
    if checked is None:
        raise RateLimitError(f"{said.action!r} was asked for before the request was seen: ask in a view")
    return run(checked.ask(said))


def decisions() -> list[Decision]:
    """Return what has been decided about the current request so far."""
    checked = _extension().current()
    return [] if checked is None else checked.decisions


def settle(action: str, used: int) -> None:
    """Say how many of the units were used that a policy has reserved for the current request; at the end of its answer
    the others go back.

    Raises `InvalidCost` for more than are reserved, and `NotHeld` where none are, or not any more.
    """
    checked = _extension().current()
    if checked is None:
        raise RateLimitError(f"{action!r} is settled before the request was seen: do it in a view")
    checked.settle(action, used)


def _refuse(error: QuotaExceeded | HTTPException) -> Response:
    checked = _extension().current()
    if checked is None or checked.admission.has_begun or isinstance(error, _BeforeTheView):
        raise error
    return _response(run(checked.answer_to(error)))


def _response(answer: StarletteResponse) -> Response:
    response = current_app.response_class(bytes(answer.body), answer.status_code)
    response.headers.clear()
    for name, value in decoded(answer.raw_headers):
        response.headers.add(name, value)
    return response
