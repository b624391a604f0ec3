"""A table's client by aiobotocore: retries off, every wait bounded."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from math import inf
from types import SimpleNamespace
from typing import Any

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from aiobotocore.session import AioSession, get_session
from botocore import exceptions as aws

from ratelimit.dynamodb.access import Client, ServerClock
from ratelimit.dynamodb.errors import ISSUER, Place, explained
from ratelimit.dynamodb.session import (
    certificates_of,
    check_answers,
    check_certificates,
    check_credentials,
    client_options,
    local_credentials,
    locate,
    no_url,
    opened,
    unusable_credentials,
)
from ratelimit.dynamodb.settings import Settings, without_userinfo
from ratelimit.dynamodb.transport.connection import CLOSE_LOOK_S, STALE_S, elapsed, new_socket


class Session(AIOHTTPSession):  # type: ignore[misc]
    """aiobotocore's, for DynamoDB and for whoever gives the credentials. It follows no redirect, for the session token
    would go along."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._used = inf

    async def send(self, request: Any) -> Any:
        try:
            return await self._send_carefully(request)
        except aws.BotoCoreError as error:
            if "X-Amz-Target" not in request.headers:  # which DynamoDB's all have
                error.kwargs[ISSUER] = without_userinfo(request.url.partition("?")[0])
            raise

    async def _send_carefully(self, request: Any) -> Any:
        idle = elapsed() - self._used
        if idle >= CLOSE_LOOK_S:
            # Two turns of the loop: one to hear of what has ended meanwhile, one to let go of it.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        try:
            return await super().send(request)
        except (aws.ConnectionClosedError, aws.EndpointConnectionError) as error:
            if idle < STALE_S or not _is_silent_end(error.kwargs.get("error")):
                raise
        finally:
            self._used = elapsed()
        return await super().send(request)

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        return SimpleNamespace(request=partial(session.request, allow_redirects=False))


def _is_silent_end(error: object) -> bool:
    """Return whether a connection ended before a byte of the answer."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return isinstance(error.message, str)  # and not what there is of the answer's head
    return isinstance(error, aiohttp.ClientOSError) and not isinstance(error, aiohttp.ClientConnectorError)


async def connect(settings: Settings, clock: ServerClock | None = None) -> Client:
    """Make a client for the settings; send nothing to DynamoDB yet. Raise `StoreUnavailable`'s subclasses.

    `clock` is that of another client of the same place.
    """
    session = get_session()
    session.set_default_client_config(AioConfig(http_session_cls=Session))
    clock = clock or ServerClock()
    exits = AsyncExitStack()
    endpoint, place = locate(session, settings, clock)
    with explained(place):
        verify = certificates_of(session)
        await asyncio.to_thread(check_certificates, verify, place)
        credentials = await _find_credentials(session, endpoint, place)
        context = session.create_client(
            "dynamodb",
            region_name=place.region,
            endpoint_url=settings.endpoint,
            verify=verify,
            # The service's model is read in a thread: a quarter of a second that would block every request.
            config=AioConfig(
                **client_options(settings, endpoint),
                connector_args={"socket_factory": new_socket},
                warm_up_loader_caches=True,
            ),
        )
        try:
            api = await exits.enter_async_context(context)
        except ValueError:
            raise no_url() from None
    check_answers(api)
    return opened(api, settings, exits, credentials=credentials, verify=verify, clock=clock)


async def _find_credentials(session: AioSession, endpoint: str | None, place: Place) -> Any:
    try:
        found = await session.get_credentials()
    except ValueError as error:
        raise unusable_credentials(error, place) from None
    if found is None and local_credentials(session, endpoint):
        found = await session.get_credentials()
    check_credentials(found, place)
    return found
