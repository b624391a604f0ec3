"""`Client`: how a table is reached, whoever found it out: place, credentials, certificates, the server's time.

`way_of` finds the way where the environment variables say all of it, as they do on AWS Lambda. A check then needs
nothing of botocore but its words for errors: to import the rest and to make a client takes longer than all else that a
process does before its first check. Whatever is doubtful is left to botocore, so that only the usual has to be right
here; a test holds both together.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401 (which a thread that looks up its first host would import otherwise: see `importing`)
import os
import re
import ssl
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple, Self, TypeAlias
from urllib.parse import SplitResult, urlsplit

from botocore import xform_name

from ratelimit.blocking import importing
from ratelimit.blocking_wait import wait_for
from ratelimit.clock import SECOND, Clock, SystemClock
from ratelimit.dynamodb.errors import Place, is_denied
from ratelimit.dynamodb.schema import GSI2
from ratelimit.dynamodb.settings import Settings, is_loopback
from ratelimit.dynamodb.transport.connection import PORTS, Endpoint

LOCAL_REGION: Final = "us-east-1"
"""Of an engine on this machine, where nobody says another."""

_MIN_SKEW: Final = 60
"""Seconds. Amazon forgives some minutes; a second or two is the answer's own way."""
SIGNATURE: Final = "ratelimit-v4"
MOMENT: Final = "ratelimit_moment"
_SKEW: Final = "ratelimit_skew"
_SIGNED: Final = ("dynamodb", "sts")
_TIMESTAMP: Final = "%Y%m%dT%H%M%SZ"

_FAST: Final = frozenset((
    "BatchGetItem", "BatchWriteItem", "DeleteItem", "DescribeTable", "GetItem", "PutItem", "TransactWriteItems",
))  # fmt: skip
"""Operations whose answers are small. (A check's update has a way of its own.)"""
_MAX_FAST_EVENTS: Final = 250
"""Events are 2 KB at most, so that so many are less than a fast connection takes (`MAX_ANSWER_BYTES`)."""

Verify: TypeAlias = bool | str
"""True, or the file with the certificates to trust."""


class ServerClock:
    """This machine's clock, and how far it is off: the time by which requests are signed, whichever way they are sent.

    AWS refuses what was signed more than minutes before or after its own time, and says in the refusal what that is.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.skew = 0
        """Seconds that the server is ahead of us."""

    def learn(self, date: str, skew: int) -> bool:
        """Return whether the refusal of a request signed with this `skew` may be due to our clock, which is then taken
        to be as far off as the answer's `date` says."""
        with importing:
            from email.utils import parsedate_to_datetime  # which takes its time, and clocks are seldom off

        try:
            theirs = int(parsedate_to_datetime(date).timestamp())
        except ValueError:
            return False
        found = theirs - self.clock.now() // SECOND
        if abs(found - skew) < _MIN_SKEW:
            return False
        self.skew = found
        return True

    def attach(self, events: Any) -> None:
        """Have all clients of a session of botocore's sign by this clock; these are the session's events."""
        for service in _SIGNED:
            events.register_first(f"choose-signer.{service}", self._on_signing)
            events.register_first(f"needs-retry.{service}", self._on_answer)

    def _on_signing(self, signature_version: object, context: dict[str, Any], **_: object) -> str | None:
        if signature_version != "v4":
            return None
        moment = datetime.fromtimestamp(self.clock.now() // SECOND + self.skew, UTC)
        context[_SKEW], context[MOMENT] = self.skew, moment.strftime(_TIMESTAMP)
        return SIGNATURE

    def _on_answer(self, response: Any, attempts: int, request_dict: dict[str, Any], **_: object) -> int | None:
        """Return 0, to try again at once, where a first attempt was refused because of the clock."""
        signed_with = request_dict["context"].get(_SKEW)
        if response is None or attempts > 1 or signed_with is None:
            return None
        http, parsed = response
        denied = is_denied(str(parsed.get("Error", {}).get("Code", "")))
        return 0 if denied and self.learn(http.headers.get("date", ""), signed_with) else None


class Client:
    """A client that is open, where it leads, and what it signs and verifies with. Made by `client.connect`, or without
    an event loop by `session.connect`; by `Way.client` where the way is known."""

    __slots__ = ("_exits", "api", "clock", "credentials", "fallback", "fast", "place", "verify")

    def __init__(
        self, api: Any, place: Place, exits: AsyncExitStack, *, credentials: Any, verify: Verify, clock: ServerClock
    ) -> None:
        self.api = api
        """aiobotocore's client, or what is awaited like it."""
        self.place = place
        self.credentials = credentials
        """botocore's, which refresh themselves; None where there are none."""
        self.verify = verify
        """True for the certificates that botocore trusts, or the file that the AWS set-up names (`AWS_CA_BUNDLE`)."""
        self.clock = clock
        self.fast: Any = None
        """The fast transport, once there is one: whatever it does not send goes by `api`."""
        self.fallback = ""
        """Why there is none, where it was not the settings that said so."""
        self._exits = exits

    async def call(self, operation: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if self.fast is not None and _is_small(operation, request):
            answer: dict[str, Any] | None = await self.fast.call(operation, request)
            if answer is not None:
                return answer
        found: dict[str, Any] = await getattr(self.api, xform_name(operation))(**request)
        return found

    async def close(self) -> None:
        await self._exits.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _is_small(operation: str, request: Mapping[str, Any]) -> bool:
    if operation == "Query":
        return request.get("IndexName") == GSI2 and request["Limit"] <= _MAX_FAST_EVENTS
    return operation in _FAST


class LaterApi:
    """AWS's client, awaited as aiobotocore's is, and made with the first call: where the way was found without it, the
    unusual alone imports it."""

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **request: Any) -> Any:
            return await self._ask(name, args, request)

        return call

    async def _ask(self, name: str, args: tuple[Any, ...], request: dict[str, Any]) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of the connections, where there are any."""
        raise NotImplementedError


class LoopApi(LaterApi):
    """That of an event loop."""

    def __init__(self, settings: Settings, clock: ServerClock) -> None:
        self._settings = settings
        self._clock = clock
        self._made: asyncio.Task[Client] | None = None

    async def close(self) -> None:
        made, self._made = self._made, None
        if made is not None:
            made.cancel()
            await asyncio.wait([made])
            if not made.cancelled() and made.exception() is None:
                await made.result().close()

    async def _ask(self, name: str, args: tuple[Any, ...], request: dict[str, Any]) -> Any:
        """One makes the client, however many ask; who gives up waiting leaves it going. Raise `StoreUnavailable`."""
        if self._made is None or (self._made.done() and (self._made.cancelled() or self._made.exception())):
            self._made = asyncio.get_running_loop().create_task(self._connect())
        client = await asyncio.shield(self._made)
        return await getattr(client.api, name)(*args, **request)

    async def _connect(self) -> Client:
        await asyncio.to_thread(import_client)
        return await connect(self._settings, self._clock)


class BlockingApi(LaterApi):
    """That of threads, who make the calls themselves: botocore's client, which `make` makes."""

    def __init__(self, make: Callable[[], Any], made: Any = None) -> None:
        self._make = make
        self._client = made

    @property
    def meta(self) -> Any:
        return self.made().meta

    def made(self) -> Any:
        if self._client is None:
            self._client = self._make()
        return self._client

    def forget(self) -> None:
        """Leave the connections to the process that this one was forked from."""
        self._client = None

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()

    async def _ask(self, name: str, args: tuple[Any, ...], request: dict[str, Any]) -> Any:
        return wait_for(lambda left: getattr(self.made(), name)(*args, **request))


def blocking_api(settings: Settings, clock: ServerClock) -> BlockingApi:
    return BlockingApi(lambda: connect_blocking(settings, clock).api.made())


def import_client() -> None:
    """Import aiobotocore, which takes its time: an event loop would stand still meanwhile."""
    with importing:
        import ratelimit.dynamodb.client  # noqa: F401


async def connect(settings: Settings, clock: ServerClock | None = None) -> Client:
    """Make a client by aiobotocore, which is imported here."""
    import_client()
    from ratelimit.dynamodb import client

    return await client.connect(settings, clock)


def connect_blocking(settings: Settings, clock: ServerClock | None = None) -> Client:
    """Make a client by botocore, which is imported here."""
    with importing:
        from ratelimit.dynamodb import session

    return session.connect(settings, clock)


def are_sendable(access_key: str, secret_key: str, token: str | None) -> bool:
    """Return whether credentials survive the way into a header, and are what AWS gave: keys have no spaces."""
    sent = (access_key, token or "-")
    return (
        bool(secret_key)
        and all(text and text.isascii() for text in sent)
        and all(text.isprintable() and " " not in text for text in (*sent, secret_key))
    )


LEFT_TO_BOTOCORE: Final = frozenset((
    "AWS_ACCOUNT_ID", "AWS_ACCOUNT_ID_ENDPOINT_MODE", "AWS_AUTH_SCHEME_PREFERENCE", "AWS_CREDENTIAL_EXPIRATION",
    "AWS_DATA_PATH", "AWS_DEFAULT_PROFILE", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_PROFILE", "AWS_SECURITY_TOKEN",
    "AWS_SIGV4A_SIGNING_REGION_SET", "AWS_USE_DUALSTACK_ENDPOINT", "AWS_USE_FIPS_ENDPOINT",
    "BOTOCORE_EXPERIMENTAL__PLUGINS",
))  # fmt: skip
"""Variables that have a say in where a request goes or how it is signed, and that are not read here."""

_FILES: Final = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
_MODELS: Final = "~/.aws/models"
_REGION: Final = re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-[a-z0-9]+-[0-9]+")
"""Of those whose endpoints end in amazonaws.com, without a word in between."""
_NO_SYSTEM_PROXIES: Final = sys.platform not in ("darwin", "win32")


class EnvironmentCredentials(NamedTuple):
    access_key: str
    secret_key: str
    token: str | None

    def get_frozen_credentials(self) -> Self:
        return self


class Way(NamedTuple):
    endpoint: Endpoint
    credentials: EnvironmentCredentials
    verify: Verify

    def client(self, settings: Settings, new_api: Callable[[Settings, ServerClock], LaterApi]) -> Client:
        """Return a client that goes this way, and by AWS's where something is unusual. Nothing is sent yet."""
        clock, exits = ServerClock(), AsyncExitStack()
        api = new_api(settings, clock)
        exits.push_async_callback(api.close)
        place = Place.of(settings, self.endpoint.region, self.endpoint.url)
        return Client(api, place, exits, credentials=self.credentials, verify=self.verify, clock=clock)


def way_of(settings: Settings, env: Mapping[str, str] = os.environ) -> Way | None:
    """Return the way, or None where it takes botocore to tell. Reads the certificates."""
    credentials = _credentials(env)
    named = settings.endpoint or env.get("AWS_ENDPOINT_URL_DYNAMODB") or env.get("AWS_ENDPOINT_URL")
    is_local = is_loopback(named)
    if credentials is None or not _says_all(env, is_local=is_local):
        return None
    region = settings.region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or LOCAL_REGION * is_local
    if not _REGION.fullmatch(region):
        return None
    parts = _plain(named or f"https://dynamodb.{region}.amazonaws.com")
    if parts is None or parts.hostname is None:
        return None
    bundle = env.get("AWS_CA_BUNDLE") or env.get("REQUESTS_CA_BUNDLE")
    is_secure = parts.scheme == "https"
    try:
        tls = ssl.create_default_context(cafile=bundle or _certificates()) if is_secure or bundle else None
    except OSError:
        return None
    url, port = f"{parts.scheme}://{parts.netloc}", parts.port or PORTS[parts.scheme]
    endpoint = Endpoint(url, parts.hostname, port, region, tls if is_secure else None)
    return Way(endpoint, credentials, bundle or True)


def _credentials(env: Mapping[str, str]) -> EnvironmentCredentials | None:
    found = EnvironmentCredentials(
        env.get("AWS_ACCESS_KEY_ID", ""), env.get("AWS_SECRET_ACCESS_KEY", ""), env.get("AWS_SESSION_TOKEN") or None
    )
    return found if are_sendable(*found) else None


def _says_all(env: Mapping[str, str], *, is_local: bool) -> bool:
    if any(env.get(name) for name in LEFT_TO_BOTOCORE) or os.path.exists(os.path.expanduser(_MODELS)):
        return False
    if not all(_is_empty(env.get(name) or default) for name, default in _FILES):
        return False
    return is_local or (_NO_SYSTEM_PROXIES and not any(name.lower().endswith("_proxy") and env[name] for name in env))


def _is_empty(path: str) -> bool:
    """Return whether a file is not there, or has nothing in it."""
    path = os.path.expandvars(os.path.expanduser(path))
    return path == os.devnull or not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path))


def _plain(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        extras = parts.query or parts.fragment or parts.username or parts.password
        is_plain = parts.scheme in PORTS and parts.netloc.isascii() and parts.netloc == parts.netloc.lower()
        return parts if is_plain and parts.port != 0 and parts.path in ("", "/") and not extras else None
    except ValueError:
        return None


def _certificates() -> str:
    """Return the file that botocore trusts: certifi's, or where that is not installed its own."""
    try:
        with importing:
            from certifi import where

            return where()
    except ImportError:
        spec = find_spec("botocore")
        assert spec is not None
        assert spec.origin is not None
        return str(Path(spec.origin).with_name("cacert.pem"))
