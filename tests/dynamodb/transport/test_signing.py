"""Our signatures are botocore's, request by request."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from hashlib import sha256
from unittest.mock import patch

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ratelimit.dynamodb.transport.connection import Endpoint
from ratelimit.dynamodb.transport.signing import CONTENT_TYPE, Secrets, Signer
from tests.profiles import examples

TARGET = "DynamoDB_20120810.UpdateItem"
ANY_CONTEXT = ssl.create_default_context()
YEAR_2100 = 4_102_444_800
REGIONS = ["us-east-1", "eu-west-1", "cn-north-1", "us-gov-west-1", "local"]
HOSTS = [
    "dynamodb.eu-west-1.amazonaws.com",
    "123456789012.ddb.us-east-1.amazonaws.com",
    "localhost",
    "127.0.0.1",
    "::1",
]

printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=60)
secrets_of = st.builds(Secrets, printable, printable, st.none() | printable)
routes = st.builds(
    lambda host, port, tls: (tls, host, port),
    st.sampled_from(HOSTS),
    st.sampled_from([80, 443, 4566, 8000]),
    st.booleans(),
)


def botocores(url: str, region: str, secrets: Secrets, second: int, body: bytes) -> dict[str, str]:
    request = AWSRequest("POST", url, headers={"X-Amz-Target": TARGET, "Content-Type": CONTENT_TYPE}, data=body)
    with patch("botocore.auth.get_current_datetime", lambda: datetime.fromtimestamp(second, UTC)):
        SigV4Auth(ReadOnlyCredentials(*secrets, None), "dynamodb", region).add_auth(request)
    return {name.lower(): value for name, value in request.headers.items()}


def headers_of(request: bytes) -> tuple[dict[str, str], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    assert first == "POST / HTTP/1.1"
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}, body


@settings(max_examples=examples(200))
@given(
    route=routes,
    region=st.sampled_from(REGIONS),
    moments=st.lists(st.tuples(secrets_of, st.integers(0, YEAR_2100), st.text()), min_size=1, max_size=4),
)
@example(
    (True, HOSTS[0], 443), "eu-west-1", [(Secrets("A", "s", None), 86_399, "a"), (Secrets("A", "s", None), 86_400, "b")]
)
@example((True, HOSTS[0], 443), "eu-west-1", [(Secrets("A", "s", None), 5, "a"), (Secrets("A", "t", "new"), 5, "a")])
def test_signed_as_botocore_does(
    route: tuple[bool, str, int], region: str, moments: list[tuple[Secrets, int, str]]
) -> None:
    """Session tokens, changed credentials, days that turn forth and back, Unicode, ports, regions."""
    tls, name, port = route
    way = Endpoint(url="", host=name, port=port, region=region, tls=ANY_CONTEXT if tls else None)
    signer = Signer(host=way.host_header, region=region, target=TARGET, unsigned={"user-agent": "us"})
    url = f"{'https' if tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}/"
    for secrets, second, text in moments:
        body = text.encode(errors="surrogatepass")
        ours, sent = headers_of(signer.request(body, sha256(body).hexdigest(), secrets, second))
        theirs = botocores(url, region, secrets, second, body)
        assert ours == theirs | {"host": way.host_header, "user-agent": "us", "content-length": str(len(body))}
        assert sent == body
