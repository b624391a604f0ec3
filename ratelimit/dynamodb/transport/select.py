"""Which transport a store gets, decided once when it opens."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs, urlsplit

from ratelimit.blocking import aside
from ratelimit.dynamodb.access import Client
from ratelimit.dynamodb.calls import Stats
from ratelimit.dynamodb.errors import explained
from ratelimit.dynamodb.settings import Settings
from ratelimit.dynamodb.transport.base import BotoTransport, Transport
from ratelimit.dynamodb.transport.connection import PORTS, Endpoint, open_connection
from ratelimit.dynamodb.transport.fast import FastTransport
from ratelimit.dynamodb.transport.pool import Pool
from ratelimit.dynamodb.transport.signing import CredentialsCache

SWITCH: Final = "RATELIMIT_FAST_LANE"
"""The variable that turns the fast transport off, whatever the settings say."""

_OFF: Final = ("off", "false", "no", "0")
_WARM_CONNECTIONS: Final = 4
"""Made in advance: the first checks after a start find the handshakes done."""


NewFastTransport: TypeAlias = Callable[[Client, Endpoint, Transport, Settings, Stats], FastTransport]


class NoFastTransport(Exception):
    """The fast transport cannot go this way; the text is the reason, as it is counted in `Stats.fallbacks`."""


def is_fast_wanted(settings: Settings) -> bool:
    """Return whether neither the settings nor the variable turn the fast transport off."""
    return settings.fast and os.environ.get(SWITCH, "").lower() not in _OFF


async def open_transport(
    client: Client, settings: Settings, stats: Stats, new_fast: NewFastTransport | None = None
) -> Transport:
    """Open what the settings, the environment and the way to the endpoint allow. Raise `StoreUnavailable`."""
    boto = BotoTransport(client, settings, stats)
    if not is_fast_wanted(settings):
        return boto
    try:
        with explained(client.place):
            endpoint = await find_endpoint(client)
    except NoFastTransport as reason:
        client.fallback = str(reason)
        return boto
    client.fast = fast = (new_fast or new_fast_transport)(client, endpoint, boto, settings, stats)
    try:
        await fast.pool.warm(_WARM_CONNECTIONS)
    except BaseException:  # cancelled: the store is closed while it opens
        await fast.close()
        raise
    return fast


def new_fast_transport(
    client: Client, endpoint: Endpoint, slow: Transport, settings: Settings, stats: Stats
) -> FastTransport:
    """Return one for the event loop that runs."""
    pool = Pool(
        partial(open_connection, endpoint, client.place, settings.connect_timeout),
        stats,
        size=settings.pool,
        wait_timeout=settings.connect_timeout,
        answer_timeout=settings.read_timeout,
    )
    credentials = CredentialsCache(client.credentials)
    return FastTransport(client, endpoint, slow, settings, stats, pool=pool, credentials=credentials)


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
    from botocore.utils import get_environ_proxies  # which is there already, as is whose configuration it is

    proxies = get_environ_proxies(url) if config.proxies is None else config.proxies
    if proxies.get(scheme):
        raise NoFastTransport("proxy")
    if config.client_cert:
        raise NoFastTransport("client_certificate")


async def _tls(verify: bool | str) -> ssl.SSLContext:
    """Verify in full, against the certificates that botocore trusts. Read in a thread, for that takes its time."""
    from botocore.httpsession import get_cert_path

    return await aside(partial(ssl.create_default_context, cafile=get_cert_path(verify)))
