"""The examples run, and show what they say."""

from __future__ import annotations

import asyncio
import importlib
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from ratelimit.config import SETTINGS, Config
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
    done = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False)
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
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
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


class Model:
    """One that answers when it is told to."""

    def __init__(self, used: int) -> None:
        self.used = used
        self.asked = 0
        self.go = asyncio.Event()

    async def __call__(self, prompt: Any) -> tuple[str, int]:
        self.asked += 1
        await self.go.wait()
        return prompt.text, self.used


async def token_of(client: httpx.AsyncClient, name: str, password: str) -> dict[str, str]:
    answer = await client.post("/login", json={"name": name, "password": password})
    return {"authorization": f"Bearer {answer.json()['token']}"}


async def test_the_language_model_reserves_tokens_and_settles_them_by_plan() -> None:
    example = fresh("examples.llm_api")
    (limiter,) = [each.kwargs["limiter"] for each in example.app.user_middleware]
    async with client_of(example) as client:
        for name, password, limit in (("alice", "correct horse", 2_000), ("bob", "battery staple", 100_000)):
            token = await token_of(client, name, password)
            answer = await client.post("/completions", json={"text": "look left"}, headers=token)
            assert answer.json() == {"text": "LOOK LEFT", "tokens": 6, "limit": limit}
            assert (await limiter.peek(name, "tokens")).used == 6
        token = await token_of(client, "alice", "correct horse")
        refused = await client.post("/completions", json={"text": "a", "max_tokens": 1_999}, headers=token)
        assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["tokens"])
        wrong = await client.post("/completions", json={"text": "a", "max_tokens": -1}, headers=token)
        assert wrong.status_code == 422
        assert (await client.post("/completions", json={"text": "a"})).status_code == 401
        assert (await limiter.peek("alice", "tokens")).used == 6


async def test_the_language_model_does_two_at_a_time_for_each_user() -> None:
    example = fresh("examples.llm_api")
    example.model = model = Model(used=3)  # type: ignore[attr-defined]
    async with client_of(example) as client:
        alice, bob = await token_of(client, "alice", "correct horse"), await token_of(client, "bob", "battery staple")

        def ask(token: dict[str, str]) -> asyncio.Task[httpx.Response]:
            return asyncio.create_task(client.post("/completions", json={"text": "a"}, headers=token))

        under_way = [ask(alice), ask(alice), ask(bob)]
        async with asyncio.timeout(60):
            while model.asked < 3:
                await asyncio.sleep(0)
            refused = await ask(alice)
            assert (refused.status_code, refused.json()["violated-policies"]) == (429, ["running"])
            model.go.set()
            assert [(await each).status_code for each in under_way] == [200] * 3
            assert (await ask(alice)).status_code == 200


async def test_the_language_models_accounts_can_be_guessed_at_five_times() -> None:
    example = fresh("examples.llm_api")
    async with client_of(example) as client:
        guess = {"name": "alice", "password": "1234"}
        assert [(await client.post("/login", json=guess)).status_code for _ in range(6)] == [401] * 5 + [429]
        right = {"name": "bob", "password": "battery staple"}
        assert [(await client.post("/login", json=right)).status_code for _ in range(30)] == [200] * 30
        for body, status in ((b"{", 400), (b"[]", 422), (b'{"name": 1}', 422), (b'{"name": "", "password": ""}', 422)):
            assert (await client.post("/login", content=body)).status_code == status
        large = await client.post("/login", content=b" " * 1_048_577)
        assert (large.status_code, large.headers["content-type"]) == (413, "application/problem+json")


def test_the_file_is_fine_and_says_the_defaults_truly() -> None:
    text = (ROOT / "examples" / "ratelimit.toml").read_text(encoding="utf-8")
    config = load_checked(ROOT / "examples" / "ratelimit.toml", env={})
    default = {each.name: each.default for each in fields(Config)}
    assert [policy.name for policy in config.policies] == ["hint", "run", "search", "vote"]
    same = ("store", "deadline", "denial_cache", "usage", "directory", "headers", "trusted_proxies", "ipv6_prefix")
    assert [getattr(config, name) for name in same] == [default[name] for name in same]
    assert [name for name in (*SETTINGS, *POLICY_SETTINGS) if f"{name} =" not in text] == []
