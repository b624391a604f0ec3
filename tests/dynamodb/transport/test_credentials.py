"""A refresh never holds up a check that could go without it, and happens once, not once a check."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from aiobotocore.credentials import AioCredentials, AioRefreshableCredentials
from botocore.exceptions import CredentialRetrievalError, NoCredentialsError

from ratelimit.dynamodb.errors import Place, explained
from ratelimit.dynamodb.transport.signing import CredentialsCache, Unsignable
from ratelimit.errors import AccessDenied, StoreUnavailable

ADVISORY, LONG = timedelta(minutes=5), timedelta(hours=6)


class Issuer:
    """Stands for STS or the metadata service: slow, and out of order on demand."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()
        self.lasts = LONG
        self.error: Exception | None = None

    async def issue(self) -> dict[str, str]:
        self.asked += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        expiry = (datetime.now(UTC) + self.lasts).isoformat()
        return {"access_key": f"AK{self.asked}", "secret_key": "s", "token": "t", "expiry_time": expiry}


def refreshable(issuer: Issuer, *, left: timedelta) -> AioRefreshableCredentials:
    return AioRefreshableCredentials("AK0", "s", "t", datetime.now(UTC) + left, issuer.issue, "test")


async def keys(wallet: CredentialsCache, number: int = 5) -> set[str]:
    return {secrets.access_key for secrets in await asyncio.gather(*(wallet.secrets() for _ in range(number)))}


async def finished(wallet: CredentialsCache) -> None:
    """No refresh is under way."""
    while wallet._refreshing is not None:
        await asyncio.sleep(0)


async def test_static_ones_are_taken_as_they_are() -> None:
    credentials = AioCredentials("AK0", "s")
    wallet = CredentialsCache(credentials)
    first = await wallet.secrets()
    assert first == ("AK0", "s", None)
    assert await wallet.secrets() is first
    credentials.access_key = "AK1"
    assert (await wallet.secrets()).access_key == "AK1"


async def test_fresh_ones_are_not_refreshed() -> None:
    issuer = Issuer()
    wallet = CredentialsCache(refreshable(issuer, left=LONG))
    assert await keys(wallet) == {"AK0"}
    assert issuer.asked == 0


async def test_a_refresh_in_time_keeps_nobody_waiting() -> None:
    issuer = Issuer()
    credentials = refreshable(issuer, left=LONG)
    wallet = CredentialsCache(credentials)
    await wallet.secrets()
    credentials._expiry_time = datetime.now(UTC) + ADVISORY
    assert await keys(wallet) == {"AK0"}
    issuer.may_answer.set()
    await finished(wallet)
    assert await keys(wallet) == {"AK1"}
    assert issuer.asked == 1


async def test_expired_ones_are_waited_for_by_all_and_fetched_once() -> None:
    issuer = Issuer()
    wallet = CredentialsCache(refreshable(issuer, left=-ADVISORY))
    waiting = asyncio.create_task(keys(wallet))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):  # an impatient check does not end the refresh
            await wallet.secrets()
    issuer.may_answer.set()
    assert await waiting == {"AK1"}
    assert issuer.asked == 1


async def due(*, pause: float) -> tuple[Issuer, CredentialsCache]:
    """Good for a while still; refreshing fails."""
    issuer = Issuer()
    issuer.error = CredentialRetrievalError(provider="test", error_msg="away")
    issuer.may_answer.set()
    credentials = refreshable(issuer, left=LONG)
    wallet = CredentialsCache(credentials, pause=pause)
    await wallet.secrets()
    credentials._expiry_time = datetime.now(UTC) + ADVISORY
    return issuer, wallet


async def test_a_refresh_that_fails_is_not_tried_by_every_check() -> None:
    issuer, wallet = await due(pause=60)
    for _ in range(5):
        assert await keys(wallet) == {"AK0"}
        await finished(wallet)
    assert issuer.asked == 1


async def test_a_refresh_that_fails_is_tried_again_after_a_pause() -> None:
    issuer, wallet = await due(pause=0)
    for asked in (1, 2):
        assert await keys(wallet) == {"AK0"}
        await finished(wallet)
        assert issuer.asked == asked
    issuer.error = None
    await keys(wallet)
    await finished(wallet)
    assert await keys(wallet) == {"AK3"}


@pytest.mark.parametrize("lasts", [LONG, -ADVISORY], ids=["refused", "expired again"])
async def test_no_usable_credentials_is_botocores_error(lasts: timedelta) -> None:
    issuer = Issuer()
    issuer.may_answer.set()
    issuer.lasts = lasts
    if lasts is LONG:
        issuer.error = CredentialRetrievalError(provider="test", error_msg="away")
    wallet = CredentialsCache(refreshable(issuer, left=-ADVISORY))
    for _ in range(2):  # also in the pause after a refresh that failed
        with pytest.raises(CredentialRetrievalError):
            await wallet.secrets()


async def test_what_botocore_says_of_credentials_that_come_expired_is_explained() -> None:
    issuer = Issuer()
    issuer.may_answer.set()
    issuer.lasts = -ADVISORY
    credentials = refreshable(issuer, left=-ADVISORY)
    with pytest.raises(AccessDenied, match="have expired"), explained(Place("limits", "eu-west-1", "")):
        await credentials.get_frozen_credentials()
    with pytest.raises(RuntimeError, match="mine"), explained(Place("limits", "eu-west-1", "")):
        raise RuntimeError("mine")


async def test_closing_ends_a_refresh() -> None:
    before = asyncio.all_tasks()
    wallet = CredentialsCache(refreshable(Issuer(), left=-ADVISORY))
    waiting = asyncio.create_task(wallet.secrets())
    await asyncio.sleep(0)
    await wallet.close()
    with pytest.raises(StoreUnavailable, match="closed"):
        await waiting
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("bad", ["", "a b", "a\r\nx-evil: 1", "kéy"])
async def test_what_no_header_holds_is_not_sent(bad: str) -> None:
    with pytest.raises(Unsignable):
        await CredentialsCache(AioCredentials(bad, "s")).secrets()
    if bad:
        with pytest.raises(Unsignable):
            await CredentialsCache(AioCredentials("AK", "s", bad)).secrets()
    with pytest.raises(NoCredentialsError):
        await CredentialsCache(None).secrets()


async def test_a_secret_that_is_no_text_signs_nothing() -> None:
    """A byte of the environment that is no UTF-8 comes as a surrogate."""
    with pytest.raises(Unsignable):
        await CredentialsCache(AioCredentials("AK", "caf\udce9")).secrets()
