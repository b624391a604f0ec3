"""Where botocore would send an `UpdateItem`, and whether the fast transport can follow. All asked of public methods."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import aiohappyeyeballs
from botocore import exceptions as aws
from botocore.httpsession import get_cert_path
from botocore.utils import get_environ_proxies

from ratelimit.dynamodb.client import Client
from ratelimit.dynamodb.errors import Place, explain
from ratelimit.dynamodb.transport.boto import Watch, new_socket
from ratelimit.dynamodb.transport.connection import Connection, Ending

_PORTS: Final = {"http": 80, "https": 443}
# After so many seconds without an answer from one of a name's addresses the next is tried as well (RFC 8305, 8).
_NEXT_ADDRESS_S: Final = 0.25


class NotHere(Exception):
    """The fast transport cannot go this way; the text is the reason, as it is counted in `Stats.fallbacks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where requests go, and how they are signed."""

    url: str
    host: str
    port: int
    region: str
    tls: ssl.SSLContext | None

    @property
    def host_header(self) -> str:
        """The `Host` header, with the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        own = _PORTS["https" if self.tls else "http"]
        return host if self.port == own else f"{host}:{self.port}"


async def find_endpoint(connection: Client) -> Endpoint:
    """The way. Raises `NotHere`.

    A presigned URL, made without asking anybody, tells what botocore resolves for this very operation: the endpoint
    (which may be the account's own) and the region in the signature (`local` counts as another).
    """
    client = connection.client
    key = {"PK": {"S": "-"}, "SK": {"S": "-"}}
    presigned = urlsplit(
        await client.generate_presigned_url("update_item", Params={"TableName": connection.place.table, "Key": key})
    )
    url = f"{presigned.scheme}://{presigned.netloc}"
    _check_config(client.meta.config, url, presigned.scheme)
    query = parse_qs(presigned.query)
    if query.get("X-Amz-Algorithm") != ["AWS4-HMAC-SHA256"]:
        raise NotHere("signature")
    host = presigned.hostname or ""
    if presigned.path not in ("", "/") or presigned.username or not host.isascii():
        raise NotHere("endpoint")
    return Endpoint(
        url=url,
        host=host,
        port=presigned.port or _PORTS[presigned.scheme],
        region=query["X-Amz-Credential"][0].split("/")[2],
        tls=await _tls(connection.verify) if presigned.scheme == "https" else None,
    )


def _check_config(config: Any, url: str, scheme: str) -> None:
    proxies = get_environ_proxies(url) if config.proxies is None else config.proxies
    if proxies.get(scheme):
        raise NotHere("proxy")
    if config.client_cert:
        raise NotHere("client_certificate")


async def _tls(verify: bool | str) -> ssl.SSLContext:
    """Full verification, against the certificates that botocore trusts. Read in a thread, for that takes its time."""
    return await asyncio.to_thread(ssl.create_default_context, cafile=get_cert_path(verify))


async def open_connection(
    route: Endpoint, place: Place, seconds: float, ended: Callable[[Connection, Ending], None]
) -> Connection:
    """A connection, to the first of the host's addresses that takes one. Raises `StoreUnreachable`."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            addresses = await loop.getaddrinfo(route.host, route.port, type=socket.SOCK_STREAM)
            connected = await aiohappyeyeballs.start_connection(
                addresses, happy_eyeballs_delay=_NEXT_ADDRESS_S, socket_factory=new_socket
            )
            _, wire = await loop.create_connection(
                lambda: Connection(route.url, ended, Watch(connected)),
                sock=connected,
                ssl=route.tls,
                server_hostname=route.host if route.tls else None,
            )
    except ssl.SSLError as error:
        raise explain(aws.SSLError(endpoint_url=route.url, error=error), place) from error
    except OSError as error:  # also TimeoutError, and that of the name's resolution
        raise explain(aws.ConnectTimeoutError(endpoint_url=route.url, error=error), place) from error
    return wire
