"""`AsyncRateLimitTransport` and `RateLimitTransport`: httpx's transports, which wait where they would be refused.

They lean on the interface of transports alone, and so they serve the clients of httpx2 as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Hashable
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, TypeVar

from ratelimit.blocking import Deferred, Runner, refuse_event_loop
from ratelimit.blocking_wait import wait_for
from ratelimit.client.limits import OriginLimits
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.errors import ConfigError
from ratelimit.limiter.waiting import DEFAULT_TIMEOUT, check_timeout
from ratelimit.tasks import Tasks

if TYPE_CHECKING:
    from httpx import AsyncBaseTransport, BaseTransport, Request, Response
else:
    AsyncBaseTransport = BaseTransport = object

DEFAULT_RETRIES: Final = 2
T = TypeVar("T")
KeyOf: TypeAlias = "Callable[[Request], Hashable]"
Close: TypeAlias = "Callable[[Response], Awaitable[object]]"


class _Transport:
    """What both have in common."""

    def __init__(
        self,
        transport: Any,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        retries: int = DEFAULT_RETRIES,
        key: KeyOf | None = None,
        clock: Clock | None = None,
    ) -> None:
        check_timeout(timeout)
        if type(retries) is not int or retries < 0:
            raise ConfigError("retries", f"must be a whole number of at least 0, not {retries!r}")
        self._transport = transport
        self._clock = clock or SystemClock()
        self._limits = OriginLimits(self._clock, self._tasks())
        self._timeout_us = round(timeout * SECOND)
        self._retries = retries
        self._key = key

    def _tasks(self) -> Tasks | Deferred:
        return Tasks("a turn that was given up")

    async def _send(self, request: Request, ask: Callable[[], Awaitable[Response]], close: Close) -> Response:
        """Return the answer to a request that is sent when it may be, and again where it was refused all the same."""
        origin = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
        key = None if self._key is None else self._key(request)
        due = self._clock.now() + self._timeout_us
        left = self._retries if _is_repeatable(request) else 0
        while True:
            permit = await self._limits.admit(origin, key, due)
            try:
                response = await ask()
            except BaseException:
                self._limits.ended(permit)
                raise
            self._limits.answered(permit, response.status_code, response.headers)
            if response.status_code != 429 or not left or not self._limits.may_be_sent_by(permit, due):
                return response
            left -= 1
            await close(response)


def _is_repeatable(request: Request) -> bool:
    """Return whether the body is in memory, and no stream that can be read once."""
    try:
        _ = request.content
    except RuntimeError:
        return False
    return True


class AsyncRateLimitTransport(_Transport, AsyncBaseTransport):
    """Sends a request when its server's limits let it, by what its answers say; those of one origin in their order.

    `transport` is what sends it: `httpx.AsyncHTTPTransport()`, with what the client would be told of TLS and proxies.
    `timeout`   seconds that a request may wait, its retries together. `WaitTooLong` is raised as soon as it is known
                that it would have to wait longer; it was not sent then.
    `retries`   how often one that is answered with 429 is sent again, where its body is in memory.
    `key`       a function of the request, for servers that limit more than an origin by itself: requests wait for those
                alone that have the same key, such as an account or a part of the path.

    What nothing is known of, one request finds out, and the others wait for its answer.
    """

    async def handle_async_request(self, request: Request) -> Response:
        """Send it. Raises `WaitTooLong`, and what the transport raises."""
        ask = self._transport.handle_async_request
        return await self._send(request, lambda: ask(request), lambda response: response.aclose())

    async def aclose(self) -> None:
        await self._limits.close()
        await self._transport.aclose()

    async def __aenter__(self) -> Self:
        await self._transport.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._limits.close()
        await self._transport.__aexit__(*error)


class RateLimitTransport(_Transport, BaseTransport):
    """The same for `httpx.Client`, from any number of threads: `RateLimitTransport(httpx.HTTPTransport())`."""

    def _tasks(self) -> Deferred:
        self._runner = Runner()
        return Deferred(self._runner)

    def handle_request(self, request: Request) -> Response:
        """Send it. Raises `WaitTooLong`, and what the transport raises."""

        handle: Callable[[Request], Response] = self._transport.handle_request

        async def ask() -> Response:
            return wait_for(lambda left: handle(request))

        async def close(response: Response) -> None:
            wait_for(lambda left: response.close())

        return self._run(self._send(request, ask, close))

    def close(self) -> None:
        self._run(self._limits.close())
        self._transport.close()

    def __enter__(self) -> Self:
        self._transport.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._run(self._limits.close())
        self._transport.__exit__(*error)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        refuse_event_loop("AsyncRateLimitTransport", work, package="ratelimit.client")
        return self._runner.run(work, "RateLimitTransport")
