"""The way to a table, whichever of botocore's clients goes it: region, endpoint, credentials, the server's time."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import cache
from typing import Any, Final, TypeAlias

import msgspec
from botocore import exceptions as aws
from botocore.auth import AUTH_TYPE_MAPS, SigV4Auth
from botocore.credentials import RefreshableCredentials
from botocore.httpsession import get_cert_path
from botocore.loaders import Loader, create_loader
from botocore.session import Session, get_session

from ratelimit.dynamodb.access import LOCAL_REGION, MOMENT, SIGNATURE, Client, ServerClock, Verify, are_sendable
from ratelimit.dynamodb.errors import Place, UnusableAnswer, explained, is_bare, no_region, unsignable
from ratelimit.dynamodb.settings import Server, Settings, is_amazon, is_loopback, server_of, without_userinfo
from ratelimit.dynamodb.transport.base import check_shape
from ratelimit.errors import StoreMisconfigured
from ratelimit.regions.regions import is_region


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
    return endpoint, Place(settings.table, region, without_userinfo(endpoint or ""), len(settings.regions) > 1)


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
    endpoint = without_userinfo(api.meta.endpoint_url)
    place = Place(settings.table, api.meta.region_name, endpoint, len(settings.regions) > 1)
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
