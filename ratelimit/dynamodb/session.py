"""The way to a table, whichever of botocore's clients goes it: region, endpoint, credentials, the server's time."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import cache, partial
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

import msgspec
from botocore import exceptions as aws
from botocore.auth import AUTH_TYPE_MAPS, SigV4Auth
from botocore.config import Config
from botocore.credentials import RefreshableCredentials
from botocore.httpsession import get_cert_path
from botocore.loaders import Loader, create_loader
from botocore.session import Session, get_session
from botocore.utils import get_environ_proxies

from ratelimit.blocking import aside
from ratelimit.blocking_wait import seconds_left
from ratelimit.dynamodb.access import (
    LOCAL_REGION,
    MOMENT,
    SIGNATURE,
    BlockingApi,
    Client,
    ServerClock,
    Verify,
    are_sendable,
)
from ratelimit.dynamodb.errors import ISSUER, Place, UnusableAnswer, explained, is_bare, no_region, unsignable
from ratelimit.dynamodb.settings import Server, Settings, is_amazon, is_loopback, server_of
from ratelimit.dynamodb.transport.base import check_shape
from ratelimit.dynamodb.transport.connection import PORTS, Endpoint
from ratelimit.errors import StoreMisconfigured
from ratelimit.regions.regions import is_region

# As botocore's own has: what went wrong is in our errors, and a traceback only where the app has set logging up.
logging.getLogger("aiobotocore").addHandler(logging.NullHandler())

get_cert_path(True)  # for what it imports, together with the rest: see `importing`


class _ServerTime(SigV4Auth):  # type: ignore[misc]
    def _modify_request_before_signing(self, request: Any) -> None:
        request.context["timestamp"] = request.context[MOMENT]
        super()._modify_request_before_signing(request)


AUTH_TYPE_MAPS[SIGNATURE] = _ServerTime


_LOCAL_KEY: Final = "local"

_Location: TypeAlias = tuple[str, str | None, Server | None]


def endpoint_of(settings: Settings, session: Session | None = None) -> str | None:
    """Return what botocore is going to use, as far as the settings, the variables and the AWS profile say it. Raise
    what botocore does."""
    session = session or get_session()
    if settings.endpoint or session.get_config_variable("ignore_configured_endpoint_urls"):
        return settings.endpoint
    named = os.environ.get("AWS_ENDPOINT_URL_DYNAMODB") or os.environ.get("AWS_ENDPOINT_URL")
    if named:
        return named
    profile: Mapping[str, Any] = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    endpoint = services.get("dynamodb", {}).get("endpoint_url") or profile.get("endpoint_url")
    return None if endpoint is None else str(endpoint)


def region_of(settings: Settings, session: Session) -> str | None:
    """Return None where nobody says it, and the table is not on this machine. Raise what botocore does."""
    # botocore itself does not know AWS_REGION, which Lambda and ECS set and every other SDK reads.
    region = settings.region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    if region:
        if not is_region(str(region)):
            raise aws.InvalidRegionError(region_name=region)
        return str(region)
    return LOCAL_REGION if is_loopback(endpoint_of(settings, session)) else None


def same_table(one: Settings, other: Settings) -> bool:
    """Return whether both lead to one table, however they are written. Ask nobody, and raise nothing."""
    session = get_session()
    return _location_of(one, session) == _location_of(other, session)


def _location_of(settings: Settings, session: Session) -> _Location:
    # Amazon has many names for a region's endpoint (dual-stack, FIPS, a VPC's own), and behind each the same tables.
    server = None
    try:
        endpoint, region = endpoint_of(settings, session), region_of(settings, session)
    except aws.BotoCoreError:  # a broken set-up: it is told, with its reason, when the table is opened
        endpoint, region = settings.endpoint, settings.region
    if endpoint is not None and not is_amazon(endpoint):
        server = server_of(endpoint)
    return settings.table, region, server


def locate(session: Session, settings: Settings, clock: ServerClock) -> tuple[str | None, Place]:
    """Return the endpoint, as far as it is named, and the place. Have the session's clients sign by the clock.

    An engine on this machine needs no set-up: where nothing is configured, it gets a region, and by
    `find_credentials` some that mean nothing. Raise `StoreMisconfigured`.
    """
    clock.attach(session.get_component("event_emitter"))
    with explained(Place(settings.table, settings.region or "an unknown region", settings.endpoint or "")):
        endpoint, region = endpoint_of(settings, session), region_of(settings, session)
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
    if region is None:
        raise no_region(settings.table)
    if is_loopback(endpoint):
        # The instance metadata service is the last in the chain, and seconds away where there is none.
        session.get_component("credential_provider").remove("iam-role")
    return endpoint, Place.of(settings, region, endpoint or "")


@cache
def _loader(data_path: str | None) -> Loader:
    return create_loader(data_path)


def certificates_of(session: Session) -> Verify:
    """Return the certificates that the AWS set-up names. They are yet to be read, by `check_certificates`."""
    return session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True


def check_certificates(verify: Verify, place: Place) -> None:
    """Raise `StoreMisconfigured` where a file that is named cannot be read. Blocks."""
    if verify is True:
        return
    try:
        ssl.create_default_context(cafile=get_cert_path(verify))
    except OSError as error:
        raise StoreMisconfigured(
            f"the certificates for {place} cannot be read from {verify!r}: {error.strerror or error}; "
            "look at AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE and the profile's ca_bundle"
        ) from None


def local_credentials(session: Session, endpoint: str | None) -> bool:
    if is_loopback(endpoint):
        session.set_credentials(_LOCAL_KEY, _LOCAL_KEY)
        return True
    return False


def check_credentials(found: Any, place: Place) -> None:
    """Raise `AccessDenied` for those that cannot be sent."""
    static = found is not None and not isinstance(found, RefreshableCredentials)
    if static and not are_sendable(found.access_key, found.secret_key, found.token):
        raise unsignable(place)


def unusable_credentials(error: ValueError, place: Place) -> StoreMisconfigured:
    return StoreMisconfigured(f"no AWS credentials for {place}: {error}")


def client_options(settings: Settings, endpoint: str | None) -> dict[str, Any]:
    return {
        "connect_timeout": settings.connect_timeout,
        "read_timeout": settings.read_timeout,
        "max_pool_connections": settings.pool,
        # botocore would send an addition up to ten times, also after an answer was lost.
        "retries": {"total_max_attempts": 1, "mode": "standard"},
        "parameter_validation": False,
        "proxies": {} if is_loopback(endpoint) else None,
    }


def no_url() -> StoreMisconfigured:
    return StoreMisconfigured("the endpoint is not a URL; look at AWS_ENDPOINT_URL_DYNAMODB")


def check_answers(api: Any) -> None:
    """Have a client of botocore's raise `UnusableAnswer` for what it would take for an empty answer."""
    api.meta.events.register("before-parse.dynamodb", _check_answer)


def opened(
    api: Any, settings: Settings, exits: AsyncExitStack, *, credentials: Any, verify: Verify, clock: ServerClock
) -> Client:
    place = Place.of(settings, api.meta.region_name, api.meta.endpoint_url)
    return Client(api, place, exits, credentials=credentials, verify=verify, clock=clock)


def _check_answer(response_dict: dict[str, Any], **_: object) -> None:
    """botocore takes a body that is no JSON for an empty answer, which would be a record with nothing spent."""
    status = response_dict["status_code"]
    try:
        check_shape(response_dict["body"])
    except (msgspec.DecodeError, UnicodeDecodeError):
        if is_bare(status):  # botocore makes an error of it
            response_dict["body"] = b"{}"
            return
        raise UnusableAnswer(f"status {status} without a JSON answer") from None


class NoFastTransport(Exception):
    """The fast transport cannot go this way; the text is the reason, as it is counted in `Stats.fallbacks`."""


async def find_endpoint(client: Client) -> Endpoint:
    """Return where botocore would send an `UpdateItem`, as its public methods tell. Raise `NoFastTransport`.

    A presigned URL, made without asking anybody, tells what botocore resolves for this very operation: the endpoint
    (which may be the account's own) and the region in the signature (`local` counts as another).
    """
    key = {"PK": {"S": "-"}, "SK": {"S": "-"}}
    presigned = urlsplit(
        await client.api.generate_presigned_url("update_item", Params={"TableName": client.place.table, "Key": key})
    )
    url = f"{presigned.scheme}://{presigned.netloc}"
    _check_config(client.api.meta.config, url, presigned.scheme)
    query = parse_qs(presigned.query)
    if query.get("X-Amz-Algorithm") != ["AWS4-HMAC-SHA256"]:
        raise NoFastTransport("signature")
    host = presigned.hostname or ""
    if presigned.path not in ("", "/") or presigned.username or not host.isascii():
        raise NoFastTransport("endpoint")
    return Endpoint(
        url=url,
        host=host,
        port=presigned.port or PORTS[presigned.scheme],
        region=query["X-Amz-Credential"][0].split("/")[2],
        tls=await _tls(client.verify) if presigned.scheme == "https" else None,
    )


def _check_config(config: Any, url: str, scheme: str) -> None:
    proxies = get_environ_proxies(url) if config.proxies is None else config.proxies
    if proxies.get(scheme):
        raise NoFastTransport("proxy")
    if config.client_cert:
        raise NoFastTransport("client_certificate")


async def _tls(verify: bool | str) -> ssl.SSLContext:
    """Verify in full, against the certificates that botocore trusts. Read in a thread, for that takes its time."""
    return await aside(partial(ssl.create_default_context, cafile=get_cert_path(verify)))


# A client by botocore itself, for threads; `client.py` makes one for an event loop.


def connect(settings: Settings, clock: ServerClock | None = None) -> Client:
    """Make a client for threads; send nothing to DynamoDB yet. Raise `StoreUnavailable`'s subclasses.

    `clock` is that of another client of the same place.
    """
    session = get_session()
    clock = clock or ServerClock()
    exits = AsyncExitStack()
    endpoint, place = locate(session, settings, clock)
    with explained(place):
        verify = certificates_of(session)
        check_certificates(verify, place)
        credentials = _find_credentials(session, endpoint, place)

        def make() -> Any:
            config = Config(**client_options(settings, endpoint))
            client = session.create_client(
                "dynamodb", region_name=place.region, endpoint_url=settings.endpoint, verify=verify, config=config
            )
            client.meta.events.register("before-call.dynamodb", partial(_in_time, settings.read_timeout))
            check_answers(client)
            return client

        try:
            api = BlockingApi(make, make())
        except ValueError:
            raise no_url() from None
    exits.push_async_callback(api.close)
    return opened(api, settings, exits, credentials=credentials, verify=verify, clock=clock)


def _in_time(read_timeout: float, context: dict[str, Any], **_: object) -> None:
    """Let no call of botocore's last longer than the check that waits for it."""
    context["read_timeout"] = min(read_timeout, max(0.001, seconds_left()))


def _find_credentials(session: Session, endpoint: str | None, place: Place) -> Any:
    try:
        found = session.get_credentials()
    except ValueError as error:
        raise unusable_credentials(error, place) from None
    except aws.BotoCoreError as error:
        error.kwargs[ISSUER] = error.kwargs.get("endpoint_url", "whoever gives them")
        raise
    if found is None and local_credentials(session, endpoint):
        found = session.get_credentials()
    check_credentials(found, place)
    return found
