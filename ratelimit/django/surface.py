"""What `settings.RATELIMIT` describes: made once a process, for threads or for the event loop, and again when the
settings change, as they do in tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from django.conf import settings
from django.core.signals import setting_changed
from django.http import HttpResponse
from django.utils.module_loading import import_string
from starlette.responses import Response

from ratelimit.decision import Decision
from ratelimit.errors import ConfigError
from ratelimit.factory import configure as configure_for_a_loop
from ratelimit.http.admission import MiddlewareState
from ratelimit.http.lifespan import LimiterLifespan
from ratelimit.http.middleware import state_of
from ratelimit.wsgi.app_request import AskingLimiter, AskingLog, encoded
from ratelimit.wsgi.configure import configure

NAME: Final = "RATELIMIT"


class Surface(NamedTuple):
    """What all requests share."""

    state: MiddlewareState
    limiter: Any
    usage: Any
    reads_user: bool
    """Whether some policy goes by Django's user."""
    lifespan: LimiterLifespan | None
    """Opens what has an event loop, as Django tells nobody when it starts."""


def surface(*, is_async: bool) -> Surface:
    """Return the process's own. Raises `ConfigError` with all that is wrong."""
    if is_async not in _made:
        _made[is_async] = _make(is_async)
    return _made[is_async]


def settings_of() -> dict[str, Any]:
    """Return `settings.RATELIMIT`: a file's `path`, `on_refused`, `on_alert`, and settings as in `load_config`."""
    found = getattr(settings, NAME, None)
    if not isinstance(found, dict):
        raise ConfigError(f"settings.{NAME}", f"expected the settings by name, as a dict, not {found!r}")
    return found


def _make(is_async: bool) -> Surface:
    given = dict(settings_of())
    on_refused = given.pop("on_refused", None)
    if isinstance(on_refused, str):
        on_refused = import_string(on_refused)
    args: dict[str, Any] = dict(configure_for_a_loop(**given) if is_async else configure(**given))
    limiter, usage = args.pop("limiter"), args.pop("usage")
    state = state_of(
        limiter if is_async else AskingLimiter(limiter),
        usage if is_async or usage is None else AskingLog(usage),
        on_refused=None if on_refused is None else _adapted(on_refused),
        options=args,  # type: ignore[arg-type]
    )
    sources = [args["user_from"], *(policy.user_from for policy in limiter.policies.values())]
    lifespan = LimiterLifespan(limiter, state.refunds, usage) if is_async else None
    return Surface(state, limiter, usage, any("user" in some for some in sources), lifespan)


def _adapted(on_refused: Callable[[Any, Decision], HttpResponse]) -> Callable[[Any, Decision], Response]:
    """Return a function of Django's request as one of Starlette's."""

    def answer(connection: Any, decision: Decision) -> Response:
        made = on_refused(connection.scope["django.request"], decision)
        response = Response(made.content, made.status_code)
        response.raw_headers = [*encoded(made.items()), (b"content-length", b"%d" % len(made.content))]
        return response

    return answer


_made: Final[dict[bool, Surface]] = {}


def _changed(*, setting: str, **_: object) -> None:
    if setting == NAME:
        _made.clear()


setting_changed.connect(_changed)
