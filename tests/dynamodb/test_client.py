"""Where region, endpoint and credentials come from."""

from __future__ import annotations

import pytest

from ratelimit.dynamodb import Settings
from ratelimit.dynamodb.client import connect
from ratelimit.errors import AccessDenied, StoreMisconfigured

LOCAL = "http://127.0.0.1:9"
VARIABLES = [
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_DYNAMODB",
]  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")


async def credentials_of(settings: Settings) -> tuple[str, str]:
    async with await connect(settings) as connection:
        credentials = await connection.api._request_signer._credentials.get_frozen_credentials()
        return credentials.access_key, connection.place.region


async def test_an_engine_on_this_machine_needs_no_set_up() -> None:
    assert await credentials_of(Settings(table="limits", endpoint=LOCAL)) == ("local", "us-east-1")


async def test_also_when_a_variable_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", LOCAL)
    assert await credentials_of(Settings(table="limits")) == ("local", "us-east-1")
    async with await connect(Settings(table="limits")) as connection:
        assert connection.place.endpoint == LOCAL


async def test_what_is_configured_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    assert await credentials_of(Settings(table="limits", endpoint=LOCAL)) == ("mine", "eu-west-3")
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert await credentials_of(Settings(table="limits", endpoint=LOCAL)) == ("mine", "eu-west-2")
    assert await credentials_of(Settings(table="limits", endpoint=LOCAL, region="eu-west-1")) == ("mine", "eu-west-1")


async def test_amazon_itself_by_default() -> None:
    async with await connect(Settings(table="limits", region="eu-west-1")) as connection:
        assert connection.place.endpoint == "https://dynamodb.eu-west-1.amazonaws.com"
        assert str(connection.place) == "table 'limits' in eu-west-1"
        with pytest.raises(AccessDenied, match="no AWS credentials for table 'limits' in eu-west-1"):
            await _describe(connection)


async def _describe(connection: object) -> None:
    from ratelimit.dynamodb.calls import Retries, Stats
    from ratelimit.dynamodb.control import prepare

    await prepare(connection, Retries(1, Stats()), Settings(table="limits"))  # type: ignore[arg-type]


async def test_no_region() -> None:
    with pytest.raises(StoreMisconfigured, match=r"add \?region=eu-west-1 to the store URL, or set AWS_REGION"):
        await connect(Settings(table="limits"))


async def test_an_unknown_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AccessDenied, match="nobody"):
        await connect(Settings(table="limits", region="eu-west-1"))


async def test_an_endpoint_variable_that_is_no_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", "user:secret@nonsense")
    with pytest.raises(StoreMisconfigured, match="AWS_ENDPOINT_URL_DYNAMODB") as caught:
        await connect(Settings(table="limits", region="eu-west-1"))
    assert "secret" not in str(caught.value)


async def test_the_client_is_set_for_checks() -> None:
    """One attempt: botocore's own retries would send an addition again after its answer was lost."""
    settings = Settings(table="limits", endpoint=LOCAL, pool=7, connect_timeout=1, read_timeout=2)
    async with await connect(settings) as connection:
        config = connection.api.meta.config
        assert config.retries["total_max_attempts"] == 1
        assert config.max_pool_connections == 7
        assert (config.connect_timeout, config.read_timeout) == (1.0, 2.0)
        assert config.proxies == {}


async def test_variables_do_not_bring_botocores_retries_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "9")
    monkeypatch.setenv("AWS_RETRY_MODE", "legacy")
    async with await connect(Settings(table="limits", endpoint=LOCAL)) as connection:
        assert connection.api.meta.config.retries == {"total_max_attempts": 1, "mode": "standard"}
