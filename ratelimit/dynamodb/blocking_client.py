"""A table's client by botocore, for threads: as `client.py` makes one for an event loop."""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from botocore import exceptions as aws
from botocore.config import Config
from botocore.session import Session, get_session

from ratelimit.blocking_wait import seconds_left
from ratelimit.dynamodb.access import Client, ServerClock
from ratelimit.dynamodb.blocking import BlockingApi
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
from ratelimit.dynamodb.settings import Settings


def connect(settings: Settings, clock: ServerClock | None = None) -> Client:
    """Make a client for the settings; send nothing to DynamoDB yet. Raise `StoreUnavailable`'s subclasses.

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
    exits.callback(api.close)
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
