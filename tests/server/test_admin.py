"""The admin listener: who may ask, and what it answers, whatever the backend shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx
import pytest

from ratelimit.errors import ConfigError, StoreUnavailable
from ratelimit.http.auth import Token
from ratelimit.server.admin import AdminBackend, admin_app

TOKEN = "a-secret-of-enough-letters"
GUARDED = [
    ("GET", "/live"),
    ("GET", "/metrics"),
    ("GET", "/config"),
    ("GET", "/reload"),
    ("POST", "/reload"),
    ("GET", "/nowhere"),
]


class FakeBackend(AdminBackend):
    """One that shows what the test wants."""

    def __init__(self, token: str | None = None) -> None:
        self.admitting = Token(token)
        self.reason: str | None = None
        self.error: Exception | None = None
        self.reloads = 0

    def token(self) -> Token:
        return self.admitting

    async def health(self) -> Mapping[str, object]:
        return {"status": "ok"}

    async def unready(self) -> str | None:
        return self.reason

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        return f"# {accept}".encode(), "text/plain; version=0.0.4"

    async def live(self) -> Mapping[str, object]:
        return {"refused": [{"user": "alice"}]}

    async def config(self) -> Mapping[str, object]:
        return {"admin_token": "***"}

    async def preview(self) -> Mapping[str, object]:
        if self.error is not None:
            raise self.error
        return {"changed": ["policies.hint"]}

    async def reload(self) -> Mapping[str, object]:
        self.reloads += 1
        if self.error is not None:
            raise self.error
        return {"changed": []}


@asynccontextmanager
async def asking(
    backend: FakeBackend | None = None, *, host: str = "127.0.0.1:8081", **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    app = admin_app(backend or FakeBackend())
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers) as client:
        yield client


async def test_health_is_for_everybody() -> None:
    backend = FakeBackend(TOKEN)
    async with asking(backend, host="a.name.of.mine") as client:
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/health/ready")).status_code == 200
        backend.reason = "The store cannot be used: late."
        answer = await client.get("/health/ready")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["detail"] == backend.reason
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize(("method", "path"), GUARDED)
@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", TOKEN)],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
        [("authorization", b"Bearer \xff\xfe")],
    ],
)
async def test_the_rest_takes_the_token(method: str, path: str, headers: list[tuple[str, str]]) -> None:
    backend = FakeBackend(TOKEN)
    async with asking(backend) as client:
        answer = await client.request(method, path, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        assert TOKEN not in answer.text
        assert backend.reloads == 0


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_with_the_token(scheme: str) -> None:
    backend = FakeBackend(TOKEN)
    async with asking(backend, host="a.name.of.mine", authorization=f"{scheme} {TOKEN}") as client:
        assert (await client.get("/config")).json() == {"admin_token": "***"}
        answer = await client.get("/metrics", headers={"accept": "x/y"})
        assert (answer.text, answer.headers["content-type"]) == ("# x/y", "text/plain; version=0.0.4")
        assert (await client.get("/live")).json() == {"refused": [{"user": "alice"}]}
        assert (await client.get("/reload")).json() == {"changed": ["policies.hint"]}
        assert backend.reloads == 0
        assert (await client.post("/reload")).json() == {"changed": []}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8081", "localhost:8081", "[::1]:8081", "10.1.2.3"])
async def test_without_a_token_it_is_asked_by_address(host: str) -> None:
    async with asking(host=host) as client:
        assert (await client.get("/config")).status_code == 200


@pytest.mark.parametrize(
    ("host", "headers"),
    [
        ("evil.example", {}),
        ("evil.example:8081", {}),
        ("127.0.0.1.evil.example", {}),
        ("127.0.0.1:8081", {"origin": "https://evil.example"}),
        ("127.0.0.1:8081", {"origin": "null"}),
    ],
)
@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_and_not_by_pages_of_others(method: str, path: str, host: str, headers: dict[str, str]) -> None:
    backend = FakeBackend()
    async with asking(backend, host=host) as client:
        answer = await client.request(method, path, headers=headers)
        assert (answer.status_code, backend.reloads) == (403, 0)
        assert answer.json()["title"] == "Forbidden"


@pytest.mark.parametrize(
    ("method", "path", "status", "detail"),
    [
        ("GET", "/", 404, "There are: /health, /health/live, /health/ready, /live, /metrics, /config, /reload"),
        ("GET", "/health/", 404, "There are: /health, "),
        ("DELETE", "/reload", 405, "/reload takes "),
        ("DELETE", "/metrics", 405, "/metrics takes "),
    ],
)
async def test_what_is_not_there(method: str, path: str, status: int, detail: str) -> None:
    async with asking() as client:
        answer = await client.request(method, path)
        assert (answer.status_code, answer.json()["status"]) == (status, status)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ConfigError("policies.hint", "is bad"), 422), (StoreUnavailable("is away"), 503), (RuntimeError("s3cret"), 500)],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_reload_that_fails(method: str, error: Exception, status: int) -> None:
    backend = FakeBackend()
    backend.error = error
    async with asking(backend) as client:
        answer = await client.request(method, "/reload")
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert ("s3cret" not in answer.text) if status == 500 else (str(error) in answer.json()["detail"])
