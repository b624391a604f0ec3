"""The way that is found without botocore is the one that botocore finds; where botocore knows more, it is asked."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES

from ratelimit.blocking import Runner
from ratelimit.dynamodb import DynamoDBStore, Settings
from ratelimit.dynamodb.access import LEFT_TO_BOTOCORE, LaterApi, Way, way_of
from ratelimit.dynamodb.session import connect, find_endpoint
from ratelimit.dynamodb.transport.connection import Endpoint
from ratelimit.errors import AccessDenied
from ratelimit.names import Key
from ratelimit.store import Add, Write
from ratelimit.sync import open_store
from tests.engines import Engine
from tests.faults import FaultServer, error
from tests.faults.apart import Apart

OF_LAMBDA = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "not-a-secret",
    "AWS_SESSION_TOKEN": "a-token",
    "AWS_REGION": "eu-west-1",
    "AWS_DEFAULT_REGION": "eu-west-1",
    "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
    "AWS_LAMBDA_FUNCTION_NAME": "hints",
}
PARTITIONS = json.loads(files("botocore").joinpath("data/partitions.json").read_text())["partitions"]
REGIONS = [region for partition in PARTITIONS for region in partition["regions"]]
# What botocore asks of, and what has no say in where a request goes, nor in how it is signed.
READ = {"AWS_DEFAULT_REGION", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CA_BUNDLE"}
NO_SAY = {
    "AWS_CSM_CLIENT_ID", "AWS_CSM_ENABLED", "AWS_CSM_HOST", "AWS_CSM_PORT", "AWS_DEFAULTS_MODE",
    "AWS_DISABLE_HOST_PREFIX_INJECTION", "AWS_DISABLE_REQUEST_COMPRESSION", "AWS_EC2_METADATA_SERVICE_ENDPOINT",
    "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "AWS_EC2_METADATA_V1_DISABLED", "AWS_ENDPOINT_DISCOVERY_ENABLED",
    "AWS_IMDS_USE_IPV6", "AWS_MAX_ATTEMPTS", "AWS_METADATA_SERVICE_NUM_ATTEMPTS", "AWS_METADATA_SERVICE_TIMEOUT",
    "AWS_REQUEST_CHECKSUM_CALCULATION", "AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES", "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_RETRY_MODE", "AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", "AWS_SDK_UA_APP_ID", "AWS_STS_REGIONAL_ENDPOINTS",
    "BOTOCORE_TCP_KEEPALIVE",
}  # fmt: skip


@pytest.fixture(autouse=True)
def on_lambda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is sent anywhere: finding the way asks nobody."""
    for name in ("AWS_ENDPOINT_URL", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in OF_LAMBDA.items():
        monkeypatch.setenv(name, value)


def by_botocore(settings: Settings) -> tuple[Endpoint, tuple[Any, ...], Any]:
    """Where, as whom, and trusting whom."""
    client = connect(settings)
    try:
        # Its presigned URL is made at once, and what takes time may take it.
        endpoint = Runner().run(find_endpoint(client), "nothing")
        found = client.credentials.get_frozen_credentials()
        return endpoint, (found.access_key, found.secret_key, found.token), client.verify
    finally:
        Runner().run(client.close(), "nothing")


def same(way: Way, settings: Settings) -> None:
    endpoint, credentials, verify = by_botocore(settings)
    assert way.endpoint._replace(tls=None) == endpoint._replace(tls=None)
    assert (way.endpoint.tls is None) == (endpoint.tls is None)
    assert tuple(way.credentials) == credentials
    assert way.verify == verify
    if way.endpoint.tls is not None and endpoint.tls is not None:
        assert way.endpoint.tls.check_hostname
        assert way.endpoint.tls.verify_mode is ssl.CERT_REQUIRED
        assert way.endpoint.tls.get_ca_certs() == endpoint.tls.get_ca_certs()


@pytest.mark.heavy
def test_every_region_is_where_botocore_has_it() -> None:
    found = {region: way_of(Settings(table="limits", region=region)) for region in REGIONS}
    for region, way in found.items():
        if way is not None:
            url, plain = way.endpoint.url, way.endpoint.tls
            assert (url, way.endpoint.region) == (f"https://dynamodb.{region}.amazonaws.com", region)
            assert plain is not None
    known = {region for region, way in found.items() if way is not None}
    assert known == {region for region in PARTITIONS[0]["regions"] if region[-1].isdigit()}
    for region in ("eu-west-1", "ap-southeast-7", "mx-central-1"):
        settings = Settings(table="limits", region=region)
        way = way_of(settings)
        assert way is not None
        same(way, settings)


@pytest.mark.parametrize(
    ("options", "env"),
    [
        ({}, {}),
        ({}, {"AWS_SESSION_TOKEN": ""}),
        ({}, {"AWS_REGION": "", "AWS_DEFAULT_REGION": "us-east-2"}),
        ({"endpoint": "http://localhost:4566"}, {}),
        ({"endpoint": "http://localhost:4566/"}, {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}),
        ({"endpoint": "https://vpce-1.dynamodb.eu-west-1.vpce.amazonaws.com"}, {}),
        ({"endpoint": "https://dynamodb.us-east-1.amazonaws.com"}, {}),
        ({"endpoint": "http://[::1]:8000", "region": "us-east-1"}, {}),
        ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:4566"}),
        ({}, {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ENDPOINT_URL_DYNAMODB": "https://tables.internal:8443"}),
        ({"endpoint": "http://localhost:1"}, {"HTTPS_PROXY": "http://proxy.invalid:1", "AWS_ENDPOINT_URL": "nonsense"}),
        ({}, {"NO_PROXY": "", "AWS_DEFAULT_PROFILE": "", "AWS_MAX_ATTEMPTS": "9"}),
    ],
)
def test_it_is_the_way_of_botocore(
    options: dict[str, Any], env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    settings = Settings(table="limits", **options)
    way = way_of(settings)
    assert way is not None
    same(way, settings)


@pytest.mark.parametrize(
    ("options", "env"),
    [
        *(({}, {name: "true"}) for name in sorted(LEFT_TO_BOTOCORE)),
        ({}, {"AWS_ACCESS_KEY_ID": ""}),
        ({}, {"AWS_SECRET_ACCESS_KEY": ""}),
        ({}, {"AWS_SESSION_TOKEN": "two\r\nlines"}),
        ({}, {"AWS_REGION": "", "AWS_DEFAULT_REGION": ""}),
        ({}, {"AWS_REGION": "us-gov-west-1"}),
        ({"region": "local"}, {}),
        ({"endpoint": "https://LocalHost"}, {}),
        ({"endpoint": "http://localhost:4566/tables"}, {}),
        ({}, {"AWS_ENDPOINT_URL": "user:secret@nonsense"}),
        ({}, {"AWS_ENDPOINT_URL": "http://user@localhost"}),
        ({}, {"AWS_ENDPOINT_URL": "http://localhost:nonsense"}),
        ({}, {"https_proxy": "http://proxy.invalid:3128"}),
        ({}, {"ALL_PROXY": "http://proxy.invalid:3128"}),
        ({}, {"AWS_CA_BUNDLE": "/no/such/file"}),
        ({"endpoint": "http://localhost:1"}, {"REQUESTS_CA_BUNDLE": "/no/such/file"}),
    ],
)
def test_what_is_doubtful_is_left_to_botocore(options: dict[str, Any], env: dict[str, str]) -> None:
    assert way_of(Settings(table="limits", **options), {**OF_LAMBDA, **env}) is None


@pytest.mark.parametrize("name", [".aws/config", ".aws/credentials", ".aws/models/x", "elsewhere"])
def test_files_may_say_more(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(variable)
    if name == "elsewhere":
        monkeypatch.setenv("AWS_CONFIG_FILE", "~/elsewhere")
    settings = Settings(table="limits")
    assert way_of(settings) is not None
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("[default]\nregion = eu-west-2\n")
    assert way_of(settings) is None


def test_every_variable_of_botocores_is_accounted_for() -> None:
    names = {name for _, name, *_ in BOTOCORE_DEFAUT_SESSION_VARIABLES.values() if isinstance(name, str)}
    names |= {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"}
    assert names <= READ | NO_SAY | LEFT_TO_BOTOCORE, "botocore has learned to read more: has it a say in the way?"


CHECK = """
import sys
from ratelimit import Policy
from ratelimit.sync import Limiter, open_store

limiter = Limiter(open_store(sys.argv[1]), [Policy("hint", "1/day", on_unavailable="deny")], deadline=30)
print([limiter.check("alice", "hint").allowed for _ in range(2)], limiter.check("alice", "hint").reason)
print(*sorted({"botocore.session", "urllib3", "aiohttp", "starlette", "ratelimit.usage"} & sys.modules.keys()))
"""


@pytest.mark.process
def test_a_check_imports_nothing_that_it_does_not_need() -> None:
    with Apart() as apart:
        url = f"dynamodb://limits?endpoint={apart.server.endpoint}"
        done = subprocess.run(
            [sys.executable, "-c", CHECK, url], capture_output=True, text=True, timeout=240, env=dict(os.environ)
        )
    assert done.stdout == "[True, False] quota\n\n", done.stderr


@pytest.mark.parametrize("profile", ["", "nobody-needs-it"], ids=["by the environment", "by botocore"])
def test_a_refusal_is_told_as_ever(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if profile:
        (tmp_path / "config").write_text(f"[profile {profile}]\nregion = eu-west-1\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
        monkeypatch.setenv("AWS_PROFILE", profile)
    server = FaultServer()
    server.everything(error("UnrecognizedClientException"))
    with Apart(server) as apart:
        with pytest.raises(AccessDenied, match=r"does not accept the credentials .*UnrecognizedClientException"):
            open_store(f"dynamodb://limits?endpoint={apart.server.endpoint}")


LATER = """
import asyncio, sys
from ratelimit import Limiter, MemoryStore, Policy, UsageLog, open_store
from ratelimit.sync import UsageLog as BlockingLog, open_store as open_blocking

HEAVY = {"botocore.session", "urllib3", "aiohttp", "aiobotocore"}

async def main():
    async with await open_store(sys.argv[1]) as store, UsageLog(store) as usage:
        limiter = Limiter(store, [Policy("hint", "1/day", on_unavailable="deny")], deadline=30)
        print([(await limiter.check("alice", "hint")).reason for _ in range(2)])
        await usage.record("alice", "hint", resource="1")
        await usage.flush()
        print(sorted(HEAVY & sys.modules.keys()))
        print([event.resource for event in (await usage.events("alice")).events], "aiobotocore" in sys.modules)

if sys.argv[2] == "async":
    asyncio.run(main())
else:
    with open_blocking(sys.argv[1]) as store, BlockingLog(store) as usage:
        usage.record("alice", "hint", resource="1")
        usage.flush()
        print("[None, 'quota']")
        print(sorted(HEAVY & sys.modules.keys()))
        print([event.resource for event in usage.events("alice").events], "aiobotocore" in sys.modules)
"""


@pytest.mark.process
@pytest.mark.parametrize("way", ["async", "blocking"])
def test_on_lambda_aws_own_client_is_imported_when_it_is_needed(way: str, engine: Engine) -> None:
    """By the limiter on an event loop, and by the usage log of both; reading events is what needs it."""
    url = engine.store_url(f"lambda-{uuid4().hex[:8]}")
    open_store(f"{url}&create=true").close()
    command = [sys.executable, "-W", "error", "-c", LATER, url, way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=dict(os.environ))
    assert done.stdout == "[None, 'quota']\n[]\n['1'] True\n", done.stderr


async def test_elsewhere_it_is_there_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_LAMBDA_FUNCTION_NAME")
    async with FaultServer() as server:
        settings = Settings(table="limits", endpoint=server.endpoint)
        for store, is_lean in ((DynamoDBStore(settings), False), (DynamoDBStore(settings, lean=True), True)):
            async with store:
                client = await store._client()
                assert isinstance(client.api, LaterApi) is is_lean
                outcome = await store.apply(Key.of("alice", "hint"), Write((Add("d1", 1),), 1_999_999_999), now=0)
                assert outcome.applied
                assert not store.stats.fallbacks


async def test_a_refusal_is_told_as_ever_on_an_event_loop() -> None:
    async with FaultServer() as server:
        server.everything(error("UnrecognizedClientException"))
        store = DynamoDBStore(Settings(table="limits", endpoint=server.endpoint), lean=True)
        for _ in range(2):
            with pytest.raises(AccessDenied, match=r"does not accept the credentials .*UnrecognizedClientException"):
                await store.open()
        server.recover()
        await store.open()
        server.then(error("UnrecognizedClientException"))
        assert (await store.apply(Key.of("alice", "hint"), Write((Add("d1", 1),), 1_999_999_999), now=0)).applied
        assert store.stats.fallbacks["denied"] == 3
        await store.close()
