"""`RateLimitMiddleware`: asks the limiter before a request reaches a WSGI app; `configure` makes its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, Unpack, cast

from starlette.exceptions import HTTPException
from starlette.responses import Response

from ratelimit.clock import Clock
from ratelimit.config import SettingArgs
from ratelimit.decision import Decision
from ratelimit.errors import ConfigError, QuotaExceeded, RateLimitError
from ratelimit.factory import build_usage_log, limiter_on, load_checked, show_metrics, surface_args, working_store
from ratelimit.http.admission import MiddlewareState
from ratelimit.http.dependency import InlineArgs, Said
from ratelimit.http.middleware import SurfaceArgs
from ratelimit.http.refusal import OnRefused, stack
from ratelimit.limiter.background import AlertHook
from ratelimit.policy import timelines_of
from ratelimit.sync import Directory, Limiter, UsageLog
from ratelimit.sync.store import store_from, store_of
from ratelimit.wsgi.app_request import ENVIRON_KEY, AppRequest, decoded, encoded, run, scope_of, state_of

if TYPE_CHECKING:
    from _typeshed import OptExcInfo
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}


class WsgiArgs(SurfaceArgs):
    """What `RateLimitMiddleware` takes besides the app."""

    limiter: Limiter
    usage: UsageLog | None


def configure(
    path: str | Path | None = None,
    *,
    clock: Clock | None = None,
    on_alert: AlertHook | None = None,
    **settings: Unpack[SettingArgs],
) -> WsgiArgs:
    """Return the arguments of the middleware, as `ratelimit.configure` does, for threads.

    The store opens with the first check. Raises `ConfigError` with all that is wrong.
    """
    config = load_checked(path, **settings)
    if config.mirror != "off":
        raise ConfigError("mirror", "is written to by apps with an event loop and by the sidecar; leave it out here")
    if config.enabled:
        store = store_from(
            config.store,
            user_hash_key=config.user_hash_key,
            regions=config.regions,
            timelines=bool(timelines_of(config.policies)),
        )
    else:
        store = store_of(working_store(config))
    directory = Directory(store.directory, deadline=config.directory_deadline) if config.directory else None
    limiter = limiter_on(Limiter, config, store, directory, clock=clock, on_alert=on_alert)
    usage = cast(
        "UsageLog | None", build_usage_log(cast(Any, UsageLog), config, cast(Any, limiter), cast(Any, limiter.store))
    )
    show_metrics(config, limiter, usage)
    return WsgiArgs(limiter=limiter, usage=usage, **surface_args(config))


class RateLimitMiddleware:
    """Checks every request against each policy whose `match` fits, as the one for ASGI, whose options it has.

    `limiter` and `usage` are those of `ratelimit.sync`: one for all threads of a process, and for those that are forked
    from it. `user_from = "user"` is the server's `REMOTE_USER`. Functions are given Starlette's `Request`, in whose
    `scope["wsgi.environ"]` the environment is; an async one may await its body, and nothing else. `on_refused` returns
    a Starlette `Response`.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        limiter: Limiter,
        usage: UsageLog | None = None,
        on_refused: OnRefused | None = None,
        **options: Unpack[SurfaceArgs],
    ) -> None:
        self.app = app
        self.limiter = limiter
        self.usage = usage
        self._state: MiddlewareState = state_of(
            limiter,
            usage,
            app=app,
            on_refused=on_refused,
            inner=[one._state for one in stack(app) if isinstance(one, RateLimitMiddleware)],
            options=options,
        )

    @classmethod
    def from_config(
        cls,
        app: WSGIApplication,
        path: str | Path | None = None,
        *,
        on_refused: OnRefused | None = None,
        on_alert: AlertHook | None = None,
        **settings: Unpack[SettingArgs],
    ) -> Self:
        """Make one of a configuration: `app = RateLimitMiddleware.from_config(app, "ratelimit.toml")`.

        Raises `ConfigError` with all that is wrong.
        """
        return cls(app, on_refused=on_refused, **configure(path, on_alert=on_alert, **settings))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = AppRequest(self._state, scope_of(environ), environ.get(ENVIRON_KEY))
        environ[ENVIRON_KEY] = request
        responder = _Responder(request, start_response)
        try:
            if (answer := run(request.begin())) is not None:
                return responder.reply(answer)
            body = self.app(environ, responder)
            responder.commit()
        except (QuotaExceeded, HTTPException) as error:
            return responder.refuse(error)
        except BaseException:
            run(request.end())
            raise
        # What nothing is left to be done about the server gets as it is, which may be a file.
        return body if responder.has_begun and request.admission.is_over else _Body(body, responder, request)


class _Responder:
    """The `start_response` that the app is given. The server hears of the answer when nothing can take its place."""

    def __init__(self, request: AppRequest, start_response: StartResponse) -> None:
        self._request = request
        self._start_response = start_response
        self._held: tuple[str, list[tuple[str, str]], OptExcInfo | None] | None = None
        self._write: Callable[[bytes], object] | None = None
        self.has_begun = False
        self.length: int | None = None
        """Bytes of the body that are still to come, where the app says it."""

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        if exc_info is None and (self._held is not None or self.has_begun):
            raise AssertionError("start_response was called before, and there is no exc_info")
        if self.has_begun:
            self._write = self._start_response(status, headers, exc_info)
        else:
            self._held = status, headers, exc_info
        return self.write

    def write(self, data: bytes) -> None:
        self.commit()
        if self._write is not None:
            self._write(data)

    def commit(self) -> None:
        """Settle what the answer means for what was taken, and begin it; nothing where the app has not yet."""
        if self._held is None:
            return
        (status, headers, exc_info), self._held = self._held, None
        fields = run(self._request.start(_code(status), encoded(headers)))
        self._begin(status, [*headers, *decoded(fields)], exc_info)

    def refuse(self, error: QuotaExceeded | HTTPException) -> list[bytes]:
        """Answer that the app was refused what it has asked for. Raises the error where another answer has begun."""
        if self.has_begun:
            run(self._request.end())
            raise error
        return self.reply(run(self._request.answer_to(error)))

    def reply(self, answer: Response) -> list[bytes]:
        """Begin an answer of our own, and return its body: none for HEAD, of which not all servers take it off."""
        self._held = None
        status = answer.status_code
        self._begin(f"{status} {_PHRASES.get(status, 'Refused')}", decoded(answer.raw_headers), None)
        run(self._request.end())
        return [] if self._request.admission.scope["method"] == "HEAD" else [bytes(answer.body)]

    def _begin(self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None) -> None:
        self.has_begun = True
        length = next((value for name, value in headers if name.lower() == "content-length"), "")
        self.length = int(length) if length.isdecimal() else None
        args: tuple[Any, ...] = (status, headers) if exc_info is None else (status, headers, exc_info)
        self._write = self._start_response(*args)


class _Body:
    """The app's body, piece by piece. The one that completes it goes out when what it was is kept."""

    def __init__(self, body: Iterable[bytes], responder: _Responder, request: AppRequest) -> None:
        self._body = body
        self._pieces = iter(body)
        self._responder = responder
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        responder = self._responder
        try:
            piece = next(self._pieces)
        except StopIteration:
            self._end()
            raise
        except (QuotaExceeded, HTTPException) as error:
            self._pieces = iter(responder.refuse(error))
            return next(self._pieces, b"")
        responder.commit()
        if responder.length is not None:
            responder.length -= len(piece)
            if responder.length <= 0:
                self._end()
        return piece

    def close(self) -> None:
        try:
            if hasattr(self._body, "close"):
                self._body.close()
        finally:
            run(self._request.end())

    def _end(self) -> None:
        self._responder.commit()
        run(self._request.end())


def _code(status: str) -> int:
    code = status.partition(" ")[0]
    return int(code) if code.isdecimal() else 500


def limited(action: str, **said: Unpack[InlineArgs]) -> Callable[[WSGIEnvironment], Decision]:
    """Return a function of the environment by which a view asks by itself, and which returns the decision.

    `cost`, `quotas`, `user` and `key` take the place of the policy's, as in `ratelimit.limited`; functions are given
    Starlette's `Request`. A refusal raises `QuotaExceeded`, and a missing user `MissingUser`, which the middleware
    answers where nobody catches them. Raises `UnknownAction`, and `RateLimitError` where there is no middleware.
    """
    inline = Said(action, **said)

    def check(environ: WSGIEnvironment) -> Decision:
        request = environ.get(ENVIRON_KEY)
        if not isinstance(request, AppRequest):
            raise RateLimitError(f"limited({action!r}) needs RateLimitMiddleware around the app")
        return run(request.ask(inline))

    return check
