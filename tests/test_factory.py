"""Where the parts meet: stores from URLs, limiters and the middleware from a configuration."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ratelimit import (
    Alert,
    ConfigError,
    Limiter,
    MemoryStore,
    StoreUnavailable,
    TableNotFound,
    configure,
    open_store,
    wsgi,
)
from ratelimit.config import Config, load_config
from ratelimit.factory import build_limiter, load_checked, middleware_args, table_settings
from ratelimit.opening import store_from_url
from ratelimit.policy import Policy
from ratelimit.server.factory import sidecar
from ratelimit.testing import FakeClock, virtual_time
from tests.engines import Engine


async def test_open_store_in_memory() -> None:
    store = await open_store("memory://")
    assert isinstance(store, MemoryStore)
    async with open_store("memory://?max_keys=7") as bounded:
        assert isinstance(bounded, MemoryStore)
        assert bounded.max_keys == 7


async def test_open_store_on_dynamodb(engine: Engine) -> None:
    name = f"wiring-{uuid4().hex[:8]}"
    with pytest.raises(TableNotFound):
        await open_store(engine.store_url(name))
    async with open_store(engine.store_url(name, create="true")) as store:
        limiter = build_limiter(Config(store=engine.store_url(name), policies=(Policy("hint", "1/day"),)))
        async with limiter:
            assert (await limiter.check("alice", "hint")).allowed
            assert not (await limiter.check("alice", "hint")).allowed
        await store.close()


async def test_a_store_that_cannot_be_reached() -> None:
    with pytest.raises(StoreUnavailable):
        async with open_store("dynamodb://limits?region=eu-west-1&endpoint=http://127.0.0.1:9"):
            pass


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("dynamdb://t", "store: unknown scheme dynamdb://; did you mean dynamodb://?"),
        ("redis://t", "store: unknown scheme redis://; there are: memory://, dynamodb://"),
        ("limits", "store: expected a URL such as memory://"),
        ("memory://name", "store: memory:// has no name and no path; write memory://"),
        ("memory://?max_key=1", "store.max_key: unknown parameter; there is: max_keys"),
        ("memory://?max_keys=0", "store.max_keys: expected a whole number of at least 1, not '0'"),
        ("memory://?max_keys=-5", "store.max_keys: expected a whole number of at least 1, not '-5'"),
        (f"memory://?max_keys={'9' * 5000}", "store.max_keys: expected a whole number of at least 1, not one of 5000"),
        ("memory://[", "store: not a store URL; write memory://"),
        ("dynamodb://", "store.table: the URL names no table"),
        ("dynamodb://limits?regoin=x", "store.regoin: unknown parameter; did you mean 'region'?"),
    ],
)
def test_urls_that_cannot_be(url: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(url)
    assert str(caught.value).startswith(told)
    with pytest.raises(ConfigError):
        store_from_url(url)


def test_table_settings() -> None:
    assert table_settings("dynamodb://limits?region=eu-west-1").table == "limits"
    with pytest.raises(ConfigError, match="memory:// has no table"):
        table_settings("memory://")


async def test_a_limiter_as_configured() -> None:
    clock = FakeClock()
    config = load_config(env={}, store="memory://?max_keys=3", policies={"hint": {"quotas": "1/minute"}})
    limiter = build_limiter(config, clock=clock)
    assert [(await limiter.check("alice", "hint")).allowed for _ in range(2)] == [True, False]
    clock.advance(60)
    assert (await limiter.check("alice", "hint")).allowed


async def test_configure_passes_the_alert_hook_on() -> None:
    alerts: list[Alert] = []
    args = configure(policies=[Policy("hint", "2/day", alert_at=[1.0])], on_alert=alerts.append)
    async with args["limiter"] as limiter:
        for _ in range(3):
            await limiter.check("alice", "hint")
    assert [(alert.user, alert.used) for alert in alerts] == [("alice", 2)]


def test_configure_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_POLICIES__HINT__QUOTAS", "7/day")
    limiter = configure(policies=[Policy("hint", "5/day")])["limiter"]
    assert str(limiter.policies["hint"].quotas[0]) == "7/day"


def test_a_configuration_is_asked_of_every_part() -> None:
    with pytest.raises(ConfigError) as caught:
        load_checked(
            env={"RATELIMIT_EXEMPT": "health"},
            store="nowhere://",
            policies=[Policy("hint", "5/day", match=["POST hints"]), Policy("run", "5/day", user_from="cooky:x")],
        )
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert lines[0] == "4 settings cannot be used:"
    assert [line.partition(":")[0] for line in lines[1:]] == [
        "store",
        "exempt[0]",
        "policies.hint.match[0]",
        "policies.run.user_from[0]",
    ]
    assert lines[2].endswith("(set by RATELIMIT_EXEMPT)")


def test_middleware_args_pass_everything_on() -> None:
    config = Config(
        user_from=("address",), trusted_proxies=2, ipv6_prefix=56, headers="none", exempt=("/health",), max_body_bytes=9
    )
    args = middleware_args(config)
    assert args.pop("limiter")  # type: ignore[misc]
    assert args == {
        "user_from": ("address",), "trusted_proxies": 2, "ipv6_prefix": 56, "headers": "none", "exempt": ("/health",),
        "max_body_bytes": 9, "usage": None,
    }  # fmt: skip


def test_a_directory_is_waited_for_as_long_as_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """In apps of both kinds, and in the sidecar, where a reload may change it."""

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    async def waited(limiter: Limiter) -> float:
        since = asyncio.get_running_loop().time()
        assert (await limiter.check("alice", "hint")).allowed
        return asyncio.get_running_loop().time() - since

    policies, seconds = [Policy("hint", "5/day")], 7.0
    served = sidecar(lambda: load_config(env={}, policies=policies, directory=True, directory_deadline=seconds))
    config = load_config(env={}, policies=policies, directory=True, directory_deadline=seconds)
    store = MemoryStore()
    monkeypatch.setattr(store.directory, "read", hang)
    assert virtual_time.run(waited(build_limiter(config, store=store))) == pytest.approx(7)
    blocking = wsgi.configure(policies=policies, directory=True, directory_deadline=seconds)["limiter"].directory
    former, seconds = served.current.runtime.directory, 3.0
    asyncio.run(served.reload())
    following = served.current.runtime.directory
    assert [one and one._deadline for one in (blocking and blocking._core, former, following)] == [7, 7, 3]


def test_a_usage_log_is_made_on_the_limiters_store(tmp_path: Path) -> None:
    args = configure(usage=f"journal:{tmp_path}", policies=[Policy("hint", "5/day")])
    usage = args["usage"]
    assert usage is not None
    assert usage._store is args["limiter"].store
    assert (usage.settings.kept_by, usage.settings.directory) == ("journal", tmp_path)
    memory = configure(usage="memory")["usage"]
    assert memory is not None
    assert memory.settings.kept_by == "memory"


@pytest.mark.parametrize("usage", ["on", "journal", "journal:", True])
def test_a_usage_log_is_one_of_three(usage: Any) -> None:
    with pytest.raises(ConfigError, match="usage: expected 'off', 'memory' or 'journal:"):
        configure(usage=usage)


@pytest.mark.process
def test_aws_is_not_imported_before_it_is_needed() -> None:
    code = (
        "import sys, ratelimit; ratelimit.open_store('memory://'); "
        "assert not {'botocore', 'aiobotocore', 'aiohttp', 'starlette', 'typer'} & set(sys.modules); "
        "ratelimit.open_store('dynamodb://limits?region=x'); assert 'aiobotocore' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
