"""One request to the upstream and its answer back, both in pieces, as fast as the slower side takes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias

import aiohttp
from multidict import CIMultiDict
from starlette.types import Receive, Scope, Send
from yarl import URL

from ratelimit.proxy.failures import Failure, Unreadable, of_error, said
from ratelimit.proxy.fields import Raw, response_fields
from ratelimit.proxy.patience import Patience, Spans
from ratelimit.proxy.upload import LOST, Upload, expects_continue, has_body

OnAnswer: TypeAlias = "Callable[[list[Raw], int], Awaitable[None]]"

_ERRORS: Final = (aiohttp.ClientError, OSError, ValueError)
_AGAIN_S: Final = 0.1

logger = logging.getLogger("ratelimit.proxy")


class Forward:
    """Serves one request. `on_answer` is awaited with the answer's own fields and status before anything is sent."""

    __slots__ = (
        "_fields", "_on_answer", "_patience", "_receive", "_scope", "_send", "_session", "_started", "_upload", "_url",
        "_watch",
    )  # fmt: skip

    def __init__(
        self, session: aiohttp.ClientSession, spans: Spans, url: URL, fields: CIMultiDict[str],
        scope: Scope, receive: Receive, send: Send, on_answer: OnAnswer,
    ) -> None:  # fmt: skip
        self._session = session
        self._url = url
        self._fields = fields
        self._scope = scope
        self._receive = receive
        self._send = send
        self._on_answer = on_answer
        self._watch: asyncio.Task[None] | None = None
        self._patience = Patience(spans, self._start_watch)
        self._upload = Upload(receive, self._patience) if has_body(scope) else None
        self._started = False

    async def run(self) -> None:
        """An answer that breaks off is left incomplete: the server then closes the connection, and the client knows."""
        try:
            async with self._patience:
                await self._exchange()
        except _ERRORS as error:
            if self._patience.whom != "gone":
                await self._fail(error, of_error(error, self._patience.whom))
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _exchange(self) -> None:
        answer = await self._ask()
        try:
            if not 100 <= answer.status < 600 or answer.status == 101:
                raise Unreadable(f"the upstream answered with status {answer.status}")
            await self._pass_on(answer)
        except BaseException:
            # Closed, not kept: what is left of this answer must not be read as the next one. And not when what is left
            # of the request has been read, which may be never.
            if answer.connection is not None and answer.connection.transport is not None:
                answer.connection.transport.abort()
            answer.close()
            raise
        finally:
            answer.release()

    async def _ask(self) -> aiohttp.ClientResponse:
        """A refused connection is tried once more, as nothing was sent. Beyond that aiohttp repeats idempotent
        requests, of which no part of a body was sent, where a kept connection was lost before the answer."""
        try:
            return await self._request()
        except aiohttp.ClientConnectorError as error:
            if not isinstance(error.os_error, ConnectionRefusedError):
                raise
        await asyncio.sleep(_AGAIN_S)
        return await self._request()

    async def _request(self) -> aiohttp.ClientResponse:
        if self._upload is None:
            self._patience.wait_for("first byte")
        return await self._session.request(
            self._scope["method"],
            self._url,
            headers=self._fields,
            data=self._upload,
            allow_redirects=False,
            expect100=self._upload is not None and expects_continue(self._scope),
        )

    async def _pass_on(self, answer: aiohttp.ClientResponse) -> None:
        version = f"{answer.version.major}.{answer.version.minor}" if answer.version else "1.1"
        headers = response_fields(answer.raw_headers, answer.status, version)
        self._patience.wait_for("client")
        await self._on_answer(list(answer.raw_headers), answer.status)
        self._started = True
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        content, more = answer.content, True
        while more:
            self._patience.wait_for("upstream")
            piece = await content.readany()
            more = not content.at_eof()
            self._patience.wait_for("client")
            if piece or not more:
                await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    async def _fail(self, error: Exception, failure: Failure) -> None:
        if self._started:
            logger.warning("an answer broke off: %s", said(error))
            return
        logger.warning("%d %s: %s", failure.status, failure.title, said(error))
        await failure.send(self._scope, self._send)

    def _start_watch(self) -> None:
        self._watch = asyncio.get_running_loop().create_task(self._watch_client())

    async def _watch_client(self) -> None:
        """Looks out for the client's leaving while something else is waited for, and ends the exchange then."""
        if self._upload is not None:
            # An upstream may answer and never read the rest of the request; meanwhile nobody else may `receive`.
            lost = self._scope.get(LOST, self._upload.finished)
            await asyncio.wait({self._upload.finished, lost}, return_when=asyncio.FIRST_COMPLETED)
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._patience.wait_for("gone")
