"""What a sidecar begins with, and what it refuses to begin with."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from ratelimit import Config, ConfigError, StoreMisconfigured
from ratelimit.dynamodb import Settings
from ratelimit.factory import admin_address, load_checked
from ratelimit.server.factory import sidecar
from tests.dynamodb.tables import make
from tests.engines import Engine
from tests.server.running import running, write
from tests.server.sockets import listening

TOKEN = "a-secret-of-enough-letters"


@pytest.mark.parametrize(
    ("admin", "token", "address"),
    [
        ("127.0.0.1:8081", None, ("127.0.0.1", 8081)),
        ("localhost:0", None, ("localhost", 0)),
        ("[::1]:8081", None, ("::1", 8081)),
        ("0.0.0.0:8081", TOKEN, ("0.0.0.0", 8081)),
        ("[::]:8081", TOKEN, ("::", 8081)),
        ("off", None, None),
    ],
)
def test_where_it_listens(admin: str, token: str | None, address: tuple[str, int] | None) -> None:
    assert admin_address(Config(admin=admin, admin_token=token)) == address


@pytest.mark.parametrize("admin", ["0.0.0.0:8081", "[::]:8081", "10.0.0.1:8081", "admin.internal:8081"])
def test_beyond_loopback_it_takes_a_token(admin: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_checked(env={"RATELIMIT_ADMIN": admin})
    assert caught.value.path == "admin_token"
    assert "set RATELIMIT_ADMIN_TOKEN to a secret of at least 16 characters" in str(caught.value)
    load_checked(env={"RATELIMIT_ADMIN": admin, "RATELIMIT_ADMIN_TOKEN": TOKEN})


@pytest.mark.parametrize("admin", ["on", "8081", ":8081", "127.0.0.1", "::1:8081", "127.0.0.1:65536", "a b:80", 8081])
def test_what_is_no_address(admin: object) -> None:
    with pytest.raises(ConfigError, match=r"admin: expected 'off', or an address as in '127\.0\.0\.1:8081'"):
        load_checked(env={}, admin=admin)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "token", ["short-token-000", "with a space in it", "tokën-that-is-no-ascii", "tab\tin-the-token-00"]
)
def test_a_weak_token_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigError, match="admin_token: expected at least 16 visible ASCII characters") as caught:
        load_checked(env={"RATELIMIT_ADMIN_TOKEN": token})
    assert token not in str(caught.value)


def test_off_is_off(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert sidecar(partial(load_checked, path, env={"RATELIMIT_ADMIN": "off"})).admin is None


async def test_a_table_that_is_not_ours_fails_the_start(tmp_path: Path, engine: Engine) -> None:
    table = f"sidecar-{uuid4().hex[:8]}"
    await make(
        Settings(table=table, endpoint=engine.endpoint),
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
    )
    path = write(tmp_path, settings=f'store = "{engine.store_url(table)}"\nusage = "memory"')
    one = sidecar(partial(load_checked, path, env={}))
    with pytest.raises(StoreMisconfigured, match=table):
        await one.start()


async def test_a_store_that_is_away_does_not_fail_it(tmp_path: Path) -> None:
    settings = 'store = "dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9"'
    async with running(write(tmp_path, settings=settings)) as service:
        assert await service.statuses(1) == [200]
        assert (await service.admin.get("/health/ready")).status_code == 503
        assert await service.metric("ratelimit_decisions_total", reason="unavailable") == 1


async def test_both_listeners_on_real_sockets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    one = sidecar(partial(load_checked, write(tmp_path, settings=f'admin_token = "{TOKEN}"'), env={}))
    assert one.admin is not None
    async with listening(one) as public, listening(one.admin) as admin, httpx.AsyncClient() as client:
        assert (await client.post(f"http://{public}/v1/authz/hints", headers={"x-api-key": "alice"})).status_code == 200
        assert (await client.get(f"http://{admin}/metrics")).status_code == 401
        answer = await client.get(f"http://{admin}/metrics", headers={"authorization": f"Bearer {TOKEN}"})
        assert "ratelimit_decisions_total" in answer.text
        assert "alice" not in answer.text
    assert TOKEN not in caplog.text
