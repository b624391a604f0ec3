"""Where a table is: the region and the endpoint that the settings name, or else the AWS set-up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from aiobotocore.session import AioSession, get_session
from botocore.exceptions import BotoCoreError, InvalidRegionError

from ratelimit.dynamodb.settings import Server, Settings, is_amazon, is_loopback, is_region, server_of

_LOCAL_REGION: Final = "us-east-1"

_Whereabouts: TypeAlias = tuple[str, str | None, Server | None]


def endpoint_of(settings: Settings, session: AioSession | None = None) -> str | None:
    """What botocore is going to use, as far as the settings, the variables and the AWS profile say it. Raises what
    botocore does."""
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


def region_of(settings: Settings, session: AioSession) -> str | None:
    """None where nobody says it, and the table is not on this machine. Raises what botocore does."""
    # botocore itself does not know AWS_REGION, which Lambda and ECS set and every other SDK reads.
    region = settings.region or os.environ.get("AWS_REGION") or session.get_config_variable("region")
    if region:
        if not is_region(str(region)):
            raise InvalidRegionError(region_name=region)
        return str(region)
    return _LOCAL_REGION if is_loopback(endpoint_of(settings, session)) else None


def same_table(one: Settings, other: Settings) -> bool:
    """Whether both lead to one table, however they are written. Asks nobody, and raises nothing."""
    session = get_session()
    return _whereabouts(one, session) == _whereabouts(other, session)


def _whereabouts(settings: Settings, session: AioSession) -> _Whereabouts:
    # Amazon has many names for a region's endpoint (dual-stack, FIPS, a VPC's own), and behind each the same tables.
    server = None
    try:
        endpoint, region = endpoint_of(settings, session), region_of(settings, session)
    except BotoCoreError:  # a broken set-up: it is told, with its reason, when the table is opened
        endpoint, region = settings.endpoint, settings.region
    if endpoint is not None and not is_amazon(endpoint):
        server = server_of(endpoint)
    return settings.table, region, server
