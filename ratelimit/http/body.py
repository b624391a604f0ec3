"""`BufferedRequest`: what functions of the app are given before the decision, Starlette's `Request` with its body.

The body is read when a function first asks for it, once for all of them, up to a bound; the app then gets the same
bytes, and what is still to come from the server itself. Nothing is read ahead, and where nobody asks nothing is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, Final, NoReturn

from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from ratelimit.errors import ConfigError, InvalidInput

_MAX_DIGITS: Final = 18


class InvalidBody(InvalidInput, HTTPException):
    """A body that a function of the app cannot have: too large, incomplete, not JSON, no form. It is answered with its
    `status_code`, unless the function catches it."""

    def __init__(self, status_code: int, problem: str) -> None:
        HTTPException.__init__(self, status_code, problem)


class BufferedRequest(Request):
    """`receive` is None where there is no body to be had, as of a gateway's question about a request."""

    def __init__(self, scope: Scope, receive: Receive | None, max_bytes: int) -> None:
        super().__init__(scope, _no_messages)
        self._original = receive or no_body
        self._max_bytes = max_bytes
        self._bytes = bytearray()
        self._has_more = True
        self._failure: InvalidBody | None = None
        self.is_read = False
        """Whether something was read that the app has not been given yet."""

    async def body(self) -> bytes:
        """Return the body. Raises `InvalidBody` where it is too large, or the client has left."""
        if not hasattr(self, "_body"):
            await self._read()
            self._body = bytes(self._bytes)
            self._bytes.clear()
        return self._body

    async def stream(self) -> AsyncGenerator[bytes, None]:
        yield await self.body()
        yield b""

    async def json(self) -> Any:
        """Return what the body says in JSON. Raises `InvalidBody`, which is a `ValueError`."""
        if not hasattr(self, "_json"):
            body = await self.body()
            try:
                self._json = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise InvalidBody(400, f"the body is not JSON: {error}") from None
        return self._json

    async def _get_form(self, **options: Any) -> FormData:
        try:
            return await super()._get_form(**options)
        except MultiPartException as error:
            raise InvalidBody(400, f"the body is no form: {error.message}") from None

    def hand_over(self) -> tuple[bytes, bool]:
        """Return for the app what was read, and whether there is more."""
        self.is_read = False
        return self._body if hasattr(self, "_body") else bytes(self._bytes), self._has_more

    async def replay(self) -> Message:
        if not self.is_read:
            return await self._original()
        body, has_more = self.hand_over()
        return {"type": "http.request", "body": body, "more_body": has_more}

    async def _read(self) -> None:
        if self._failure is not None:
            raise self._failure
        length = self.headers.get("content-length", "")
        if length.isdecimal() and (len(length) > _MAX_DIGITS or int(length) > self._max_bytes):
            self._fail(413, f"the body is larger than the {self._max_bytes} bytes that are read of it here")
        while self._has_more:
            message = await self._original()
            if message["type"] != "http.request":
                self._fail(400, "the body has ended before it was complete")
            self.is_read = True
            self._bytes += message.get("body", b"")
            self._has_more = message.get("more_body", False)
            if len(self._bytes) > self._max_bytes:
                self._fail(413, f"the body is larger than the {self._max_bytes} bytes that are read of it here")

    def _fail(self, status_code: int, problem: str) -> NoReturn:
        self._failure = InvalidBody(status_code, problem)
        raise self._failure


async def no_body() -> NoReturn:
    """Be the `receive` of a request whose body is elsewhere."""
    how = "ask in the app instead: await limited(NAME, cost=FUNCTION)(request)"
    raise ConfigError("cost, user_from, exempt", f"a function has asked for the body, which is not here; {how}")


async def _no_messages() -> NoReturn:
    how = "use body(), json() or form()"
    raise ConfigError("cost, user_from, exempt", f"a function has asked for the request's next message; {how}")
