"""From settings to a client of aiobotocore: region, endpoint and credentials found, retries off, every wait bounded."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import AsyncExitStack
from functools import cache
from typing import Any, Final, Self, TypeAlias

import msgspec
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession, get_session
from botocore.credentials import RefreshableCredentials
from botocore.httpsession import get_cert_path
from botocore.loaders import Loader, create_loader

from ratelimit.dynamodb.faults import Place, UnusableAnswer, explained, is_bare, no_region, unsignable
from ratelimit.dynamodb.server_clock import ServerClock
from ratelimit.dynamodb.settings import Settings, is_loopback, without_userinfo
from ratelimit.dynamodb.transport import Session, new_socket
from ratelimit.dynamodb.whereabouts import endpoint_of, region_of
from ratelimit.errors import StoreMisconfigured

_LOCAL_KEY: Final = "local"

Verify: TypeAlias = bool | str
"""True, or the file with the certificates to trust."""


class Connection:
    """A client that is open, where it leads, and what it signs and verifies with. Made by `connect`."""

    __slots__ = ("_exits", "client", "clock", "credentials", "place", "verify")

    def __init__(
        self,
        client: Any,
        place: Place,
        exits: AsyncExitStack,
        *,
        credentials: Any,
        verify: Verify,
        clock: ServerClock,
    ) -> None:
        self.client = client
        self.place = place
        self.credentials = credentials
        """aiobotocore's, which refresh themselves; None where there are none."""
        self.verify = verify
        """True for the certificates that botocore trusts, or the file that the AWS set-up names (`AWS_CA_BUNDLE`)."""
        self.clock = clock
        self._exits = exits

    async def close(self) -> None:
        """Let go of the pool; harmless when closed."""
        await self._exits.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def connect(settings: Settings, clock: ServerClock | None = None) -> Connection:
    """A client for the settings; sends nothing to DynamoDB yet. Raises `StoreUnavailable`'s subclasses.

    An engine on this machine needs no set-up: where nothing is configured, it gets a region and credentials that mean
    nothing. `clock` is that of another connection to the same place.
    """
    session = get_session()
    session.set_default_client_config(AioConfig(http_session_cls=Session))
    clock = clock or ServerClock()
    clock.attach(session.get_component("event_emitter"))
    exits = AsyncExitStack()
    with explained(Place(settings.table, settings.region or "an unknown region", settings.endpoint or "")):
        endpoint, region = endpoint_of(settings, session), region_of(settings, session)
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    if region is None:
        raise no_region(settings.table)
    place = Place(settings.table, region, without_userinfo(endpoint or ""))
    with explained(place):
        verify = await _find_certificates(session, place)
        credentials = await _find_credentials(session, endpoint, place)
        context = session.create_client(
            "dynamodb",
            region_name=region,
            endpoint_url=settings.endpoint,
            verify=verify,
            config=_config(settings, endpoint),
        )
        try:
            client = await exits.enter_async_context(context)
        except ValueError:  # botocore's way to say so
            raise StoreMisconfigured("the endpoint is not a URL; look at AWS_ENDPOINT_URL_DYNAMODB") from None
    client.meta.events.register("before-parse.dynamodb", _check_answer)
    place = _place(settings.table, client)
    return Connection(client, place, exits, credentials=credentials, verify=verify, clock=clock)


@cache
def _loader(data_path: str | None) -> Loader:
    """One for all clients: it keeps the service's model, whose reading takes more than the rest of `connect`."""
    return create_loader(data_path)


def _place(table: str, client: Any) -> Place:
    return Place(table, client.meta.region_name, without_userinfo(client.meta.endpoint_url))


async def _find_certificates(session: AioSession, place: Place) -> Verify:
    """As botocore has it: a file with the certificates to trust, or its own."""
    named = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE")
    if not named:
        return True
    try:
        await asyncio.to_thread(ssl.create_default_context, cafile=get_cert_path(named))
    except OSError as error:
        raise StoreMisconfigured(
            f"the certificates for {place} cannot be read from {named!r}: {error.strerror or error}; "
            "look at AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE and the profile's ca_bundle"
        ) from None
    return str(named)


async def _find_credentials(session: AioSession, endpoint: str | None, place: Place) -> Any:
    if is_loopback(endpoint):
        # The instance metadata service is the last in the chain, and seconds away where there is none.
        session.get_component("credential_provider").remove("iam-role")
    try:
        found = await session.get_credentials()
    except ValueError as error:  # botocore's word for an address or a token of the container's that it does not take
        raise StoreMisconfigured(f"no AWS credentials for {place}: {error}") from None
    if found is None and is_loopback(endpoint):
        session.set_credentials(_LOCAL_KEY, _LOCAL_KEY)
        found = await session.get_credentials()
    static = found is not None and not isinstance(found, RefreshableCredentials)
    if static and not are_sendable(found.access_key, found.secret_key, found.token):
        raise unsignable(place)
    return found


def are_sendable(access_key: str, secret_key: str, token: str | None) -> bool:
    """Whether these credentials survive the way into a header, and are what AWS gave: keys have no spaces."""
    sent = (access_key, token or "-")
    return (
        bool(secret_key)
        and all(text and text.isascii() for text in sent)
        and all(text.isprintable() and " " not in text for text in (*sent, secret_key))
    )


def _config(settings: Settings, endpoint: str | None) -> AioConfig:
    return AioConfig(
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        max_pool_connections=settings.pool,
        connector_args={"socket_factory": new_socket},
        # botocore would send an addition up to ten times, also after an answer was lost.
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=False,
        proxies={} if is_loopback(endpoint) else None,
        # Reads the service's model in a thread: a quarter of a second that would block every request.
        warm_up_loader_caches=True,
    )


class _Shape(msgspec.Struct):
    """As much of an answer as botocore's parser takes for granted."""

    Attributes: dict[str, dict[str, Any]] | None = None
    Item: dict[str, dict[str, Any]] | None = None
    ConsumedCapacity: dict[str, Any] | list[Any] | None = None
    message: str | None = None
    Message: str | None = None


_decode_shape = msgspec.json.Decoder(_Shape).decode


def _check_answer(response_dict: dict[str, Any], **_: object) -> None:
    """botocore takes a body that is no JSON for an empty answer, which would be a record with nothing spent."""
    status = response_dict["status_code"]
    try:
        _decode_shape(response_dict["body"])
    except (msgspec.DecodeError, UnicodeDecodeError):
        if is_bare(status):  # botocore makes an error of it
            response_dict["body"] = b"{}"
            return
        raise UnusableAnswer(f"status {status} without a JSON answer") from None
