"""`way_of`: the way to a table where the environment variables say all of it, as they do on AWS Lambda.

A check then needs nothing of botocore but its words for errors: to import the rest and to make a client takes longer
than all else that a process does before its first check. Whatever is doubtful is left to botocore, so that only the
usual has to be right here; a test holds both together.
"""

from __future__ import annotations

import os
import re
import ssl
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple, Self
from urllib.parse import SplitResult, urlsplit

from ratelimit.dynamodb.access import LOCAL_REGION, Client, LaterApi, ServerClock, Verify, are_sendable
from ratelimit.dynamodb.errors import Place
from ratelimit.dynamodb.settings import Settings, is_loopback, without_userinfo
from ratelimit.dynamodb.transport.connection import PORTS, Endpoint

LEFT_TO_BOTOCORE: Final = frozenset(
    (
        "AWS_ACCOUNT_ID",
        "AWS_ACCOUNT_ID_ENDPOINT_MODE",
        "AWS_AUTH_SCHEME_PREFERENCE",
        "AWS_CREDENTIAL_EXPIRATION",
        "AWS_DATA_PATH",
        "AWS_DEFAULT_PROFILE",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_PROFILE",
        "AWS_SECURITY_TOKEN",
        "AWS_SIGV4A_SIGNING_REGION_SET",
        "AWS_USE_DUALSTACK_ENDPOINT",
        "AWS_USE_FIPS_ENDPOINT",
        "BOTOCORE_EXPERIMENTAL__PLUGINS",
    )
)
"""Variables that have a say in where a request goes or how it is signed, and that are not read here."""

_FILES: Final = (("AWS_CONFIG_FILE", "~/.aws/config"), ("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"))
_MODELS: Final = "~/.aws/models"
_REGION: Final = re.compile(r"(us|eu|ap|sa|ca|me|af|il|mx)-[a-z0-9]+-[0-9]+")
"""Of those whose endpoints end in amazonaws.com, without a word in between."""
_NO_SYSTEM_PROXIES: Final = sys.platform not in ("darwin", "win32")


class EnvironmentCredentials(NamedTuple):
    """The credentials in the variables, asked for as botocore's are."""

    access_key: str
    secret_key: str
    token: str | None

    def get_frozen_credentials(self) -> Self:
        return self


class Way(NamedTuple):
    """Where a table is, as whom to ask, and which certificates to trust."""

    endpoint: Endpoint
    credentials: EnvironmentCredentials
    verify: Verify

    def client(self, api: LaterApi, settings: Settings, exits: AsyncExitStack, clock: ServerClock) -> Client:
        """Return a client that goes this way, and by `api` where something is unusual."""
        url = without_userinfo(self.endpoint.url)
        place = Place(settings.table, self.endpoint.region, url, len(settings.regions) > 1)
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
    """Return whether no file, no other variable and no proxy has a say in it."""
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
    """Return the parts of a URL that botocore would take as it is."""
    try:
        parts = urlsplit(url)
        is_plain = parts.scheme in PORTS and parts.netloc.isascii() and parts.netloc == parts.netloc.lower()
        return parts if is_plain and parts.port != 0 and parts.path in ("", "/") and _ends(parts) else None
    except ValueError:
        return None


def _ends(parts: SplitResult) -> bool:
    return not (parts.query or parts.fragment or parts.username or parts.password)


def _certificates() -> str:
    """Return the file that botocore trusts: certifi's, or where that is not installed its own."""
    try:
        from certifi import where
    except ImportError:
        spec = find_spec("botocore")
        assert spec is not None
        assert spec.origin is not None
        return str(Path(spec.origin).with_name("cacert.pem"))
    return where()
