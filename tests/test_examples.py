"""The examples run, and show what they say."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from ratelimit.config import SETTINGS, load_config
from ratelimit.factory import load_checked
from ratelimit.policy import POLICY_SETTINGS

ROOT = Path(__file__).parents[1]


def fresh(name: str) -> ModuleType:
    """The example imported anew, so that nothing has been spent."""
    sys.modules.pop(name, None)
    return importlib.import_module(name)


def client_of(example: ModuleType) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(example.app)
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers={"x-api-key": "alice"})


@pytest.mark.process
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    env = os.environ | {"RATELIMIT_STORE": "dynamodb://not-this-one", "NO_COLOR": "1"}
    line = [sys.executable, str(ROOT / "examples" / "demo.py")]
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.count("POST /hints  ->  200") == 6
    assert done.stdout.count("POST /hints  ->  429") == 1
    assert "http-problem-types#quota-exceeded" in done.stdout
    assert "All as promised" in done.stdout


@pytest.mark.process
def test_the_demo_says_what_is_not_as_promised(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import examples.demo as demo, examples.app as app; "
        "app.app.user_middleware.clear(); sys.exit(demo.main())"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT AS PROMISED: the sixth is refused: promised 429, seen 200" in done.stdout


async def test_the_app() -> None:
    async with client_of(fresh("examples.app")) as client:
        assert [(await client.post("/hints")).status_code for _ in range(6)] == [200] * 5 + [429]
        assert (await client.post("/run")).status_code == 200
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert sum((await client.get("/totals/alice")).json()["hint"].values()) == 5


def test_the_app_takes_its_store_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_STORE", "memory://?max_keys=7")
    assert fresh("examples.app").settings["limiter"].store.max_keys == 7


async def test_fastapi() -> None:
    async with client_of(fresh("examples.fastapi_app")) as client:
        answers = [await client.post("/hints") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert [answer.json()["left_today"] for answer in answers[:5]] == [4, 3, 2, 1, 0]
        assert answers[5].json()["violated-policies"] == ["hint"]
        exported = await client.post("/exports")
        assert exported.headers["ratelimit"].startswith('"export";r=90;t=')


def test_the_file_is_fine_and_says_the_defaults_truly() -> None:
    text = (ROOT / "examples" / "ratelimit.toml").read_text(encoding="utf-8")
    config = load_checked(ROOT / "examples" / "ratelimit.toml", env={})
    default = load_config(env={})
    assert [policy.name for policy in config.policies] == ["hint", "run", "search", "vote"]
    same = ("store", "deadline", "denial_cache", "usage", "directory", "headers", "trusted_proxies", "ipv6_prefix")
    assert [getattr(config, name) for name in same] == [getattr(default, name) for name in same]
    assert [name for name in (*SETTINGS, *POLICY_SETTINGS) if f"{name} =" not in text] == []
