"""An AWS set-up that cannot work is told as what it is, at opening, by both transports, and not taken for an outage."""

from __future__ import annotations

import re
import ssl
from asyncio import StreamWriter
from pathlib import Path
from typing import Any

import pytest
import trustme
from botocore.exceptions import ClientError, ConnectTimeoutError, HTTPClientError, ReadTimeoutError

from ratelimit.dynamodb import DynamoDBStore, Settings, StoreUnreachable, same_table
from ratelimit.dynamodb.client import connect
from ratelimit.dynamodb.errors import ISSUER, Place, explain
from ratelimit.errors import AccessDenied, StoreMisconfigured, StoreThrottled
from ratelimit.names import Key
from ratelimit.store import Add, Write
from tests.faults import FaultServer
from tests.faults.listening import Listening, Received

ADD = Write((Add("d1", 1),), 1_999_999_999)
PLACE = Place("limits", "eu-west-1", "https://dynamodb.eu-west-1.amazonaws.com")
ROLE = "arn:aws:iam::123456789012:role/app"

fast_or_slow = pytest.mark.parametrize("fast", [True, False], ids=["fast", "slow"])


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)


class StsServer(Listening):
    """STS: says this of every request."""

    def __init__(self, code: str, message: str, head: str = "403 -") -> None:
        super().__init__()
        self.asked = 0
        self._head = head
        self._error = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"

    async def answer(self, request: Received, writer: StreamWriter) -> bool:
        self.asked += 1
        body = self._error.encode()
        head = f"HTTP/1.1 {self._head}\r\nContent-Type: text/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return True


async def told(settings: Settings) -> StoreMisconfigured:
    """What opening says."""
    store = DynamoDBStore(settings)
    with pytest.raises(StoreMisconfigured) as caught:
        await store.open()
    assert store.stats.retries == 0
    return caught.value


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
@fast_or_slow
async def test_a_file_of_certificates_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, fast: bool
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
    async with FaultServer(context) as server:
        async with DynamoDBStore(table="limits", endpoint=server.endpoint, fast=fast) as store:
            assert (await store.apply(Key.of("alice", "hint"), ADD, now=0)).applied
            assert await store.read(Key.of("alice", "hint")) == {"d1": 1}
            assert store.stats.fallbacks == {}


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
@pytest.mark.parametrize(("name", "why"), [("none.pem", "No such file"), ("", "Is a directory"), ("no.pem", "no cert")])
@fast_or_slow
async def test_certificates_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer, variable: str, name: str, why: str, fast: bool
) -> None:
    (tmp_path / "no.pem").write_text("hello")
    monkeypatch.setenv(variable, str(tmp_path / name))
    said = str(await told(Settings(table="limits", endpoint=server.endpoint, fast=fast)))
    assert str(tmp_path / name) in said
    assert why in said
    assert variable in said


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token", "AWS_ROLE_ARN": ROLE},
            r"cannot be read: /nowhere/token: No",
        ),
        (
            {
                "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/",
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/nowhere/token",
            },
            r"cannot be read: /nowhere/token: No",
        ),
        ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://elsewhere.invalid/"}, "Unsupported host"),
        ({"AWS_ACCESS_KEY_ID": "AK\n", "AWS_SECRET_ACCESS_KEY": "quiet"}, r"line break.*AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "quiet\n"}, r"line break.*AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_ACCESS_KEY_ID": "AK", "AWS_SECRET_ACCESS_KEY": "quiet", "AWS_SESSION_TOKEN": "quiet\r\nx: y"},
            r"line break.*AWS_SESSION_TOKEN",
        ),
        ({"AWS_REGION": "eu-west-1\n"}, "region"),
        ({"AWS_DEFAULTS_MODE": "nonsense"}, "defaults mode"),
    ],
)
@fast_or_slow
async def test_what_waiting_does_not_mend(
    monkeypatch: pytest.MonkeyPatch, server: FaultServer, environment: dict[str, str], said: str, fast: bool
) -> None:
    if not {"AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULTS_MODE"} & set(environment):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    message = str(await told(Settings(table="limits", endpoint=server.endpoint, fast=fast)))
    assert re.search(said, message), message
    assert "quiet" not in message
    assert "limits" in message
    assert not server.received


@fast_or_slow
async def test_a_role_that_may_not_be_assumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer, fast: bool
) -> None:
    (tmp_path / "token").write_text("a token of somebody's")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    async with StsServer("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity") as issuer:
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", issuer.endpoint)
        error = await told(Settings(table="limits", region="eu-west-1", endpoint=server.endpoint, fast=fast))
        assert issuer.asked == 1
    assert isinstance(error, AccessDenied)
    assert error.permission is None
    assert "STS answered AssumeRoleWithWebIdentity with AccessDenied: Not authorized to perform" in str(error)
    assert "dynamodb:Assume" not in str(error)
    assert not server.received


async def test_no_redirect_of_an_issuer_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer
) -> None:
    """The token would go along."""
    (tmp_path / "token").write_text("a token of somebody's")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    async with (
        StsServer("Nothing", "") as elsewhere,
        StsServer("Moved", "", f"307 -\r\nLocation: {elsewhere.endpoint}/") as issuer,
    ):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", issuer.endpoint)
        await told(Settings(table="limits", region="eu-west-1", endpoint=server.endpoint))
        assert issuer.asked
        assert not elsewhere.asked


def refused(operation: str, code: str, message: str = "", status: int = 400) -> ClientError:
    details: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(details, operation)


@pytest.mark.parametrize(
    ("operation", "message", "permission"),
    [
        (
            "UpdateItem",
            "User: arn:aws:iam::1:user/x is not authorized to perform: kms:Decrypt on resource: k",
            "kms:Decrypt",
        ),
        ("UpdateItem", "x is not authorized to perform: dynamodb:UpdateItem on y", "dynamodb:UpdateItem"),
        ("GetItem", "", "dynamodb:GetItem"),
        ("TransactWriteItems", "", "dynamodb:PutItem, dynamodb:UpdateItem or dynamodb:DeleteItem"),
    ],
)
def test_only_permissions_that_exist_are_named(operation: str, message: str, permission: str) -> None:
    error = explain(refused(operation, "AccessDeniedException", message), PLACE)
    assert isinstance(error, AccessDenied)
    assert error.permission == permission
    assert f"lacks the permission {permission}" in str(error)


def test_an_issuer_that_is_down_is_an_outage() -> None:
    """Of which nothing reached the table."""
    for code, status in (("Throttling", 400), ("InternalFailure", 500), ("IDPCommunicationError", 400)):
        assert type(explain(refused("AssumeRole", code, status=status), PLACE)) is StoreUnreachable
    for kind in (ConnectTimeoutError, ReadTimeoutError):
        error = kind(endpoint_url="https://sts.eu-west-1.amazonaws.com", error=OSError())
        error.kwargs[ISSUER] = "https://sts.eu-west-1.amazonaws.com"
        explained = explain(error, PLACE)
        assert type(explained) is StoreUnreachable
        assert "https://sts.eu-west-1.amazonaws.com gives no answer" in str(explained)
    assert type(explain(refused("UpdateItem", "Throttling"), PLACE)) is StoreThrottled


def test_a_header_that_would_be_two() -> None:
    """As credentials that were refreshed may bring it."""
    error = explain(HTTPClientError(error=ValueError("Newline, carriage return, or null byte detected")), PLACE)
    assert isinstance(error, AccessDenied)
    assert "line break" in str(error)


async def test_endpoints_that_are_to_be_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Amazon is not asked with the keys that an engine on this machine gets."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    settings = Settings(table="limits", region="eu-west-1")
    async with await connect(settings) as connection:
        assert connection.place.endpoint == "https://dynamodb.eu-west-1.amazonaws.com"
        assert connection.credentials is None
    assert not same_table(settings, Settings(table="limits", region="eu-west-1", endpoint="http://127.0.0.1:9"))
    monkeypatch.delenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS")
    assert same_table(settings, Settings(table="limits", region="eu-west-1", endpoint="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    "place", ["endpoint_url = {}", "services = mine\n[services mine]\ndynamodb =\n  endpoint_url = {}"]
)
async def test_an_endpoint_in_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: FaultServer, place: str
) -> None:
    """It needs no set-up either, where it is on this machine."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text("[default]\n" + place.format(server.endpoint) + "\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    async with DynamoDBStore(table="limits") as store:
        assert (await store.apply(Key.of("alice", "hint"), ADD, now=0)).applied
