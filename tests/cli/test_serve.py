"""`ratelimit serve`: what it refuses to start with, and what its start-up line says. `tests.serving` has the rest."""

from __future__ import annotations

import socket
from pathlib import Path
from signal import SIGTERM

import httpx
import pytest
import yaml

from ratelimit.cli.serve import ServeConfig
from tests.cli.command import Command
from tests.docs.pages import titled
from tests.server.processes import served

QUICK = ("--action", "api", "--quota", "2/day", "--user-from", "header:x-api-key")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "nothing is limited: there is no policy"),
        (("--upstream", "http://a"), "nothing is limited: there is no policy"),
        (("--upstream", "a", *QUICK), "upstream: expected a URL such as http://127.0.0.1:8000"),
        (("--upstream", "http://a", *QUICK, "--workers", "4"), "--workers: memory:// would count in each of the 4"),
        (("--upstream", "http://a", "--action", "api"), "--quota: --action and --quota belong together"),
        (("--upstream", "http://a", "--action", "api", "--quota", "5/x"), "--quota: unknown unit 'x'"),
        (("--upstream", "http://a", *QUICK, "--user-from", "heder:x"), "--user-from: unknown source 'heder:x'"),
        (("--upstream", "http://a", *QUICK, "--access-log", "xml"), "'xml' is not one of 'text', 'json', 'off'"),
        ((*QUICK, "--host", "0.0.0.0"), "api_token: the native API would be open to all who reach 0.0.0.0"),
        ((*QUICK, "--admin", "0.0.0.0:8081"), "admin_token: metrics and reloads would be open to all who reach"),
        ((*QUICK, "--admin", "nowhere"), "admin: expected"),
        ((*QUICK, "--grpc", "127.0.0.1:0"), "--grpc: no limit is known: add --envoy-config DIR"),
        (("--grpc", "127.0.0.1:0", "--envoy-config", "nowhere"), "envoy_config: nowhere: no such file or directory"),
    ],
)
def test_bad_input(ratelimit: Command, options: tuple[str, ...], told: str) -> None:
    status, _, err = ratelimit("serve", *options)
    assert status == 2
    assert told in err


def test_networks_of_proxies_at_a_unix_socket(ratelimit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATELIMIT_TRUSTED_PROXIES", "10.0.0.0/8")
    status, _, err = ratelimit("serve", "--upstream", "http://a", *QUICK, "--uds", "ratelimit.sock")
    assert status == 2
    assert "trusted_proxies: at a unix socket nobody has an address" in err
    assert "trusted_proxies = 1" in err


@pytest.mark.process
async def test_a_unix_socket_where_nobody_is_believed_about_addresses(tmp_path: Path) -> None:
    place = ("--upstream", "http://127.0.0.1:1", "--uds", str(tmp_path / "s.sock"), "--linger", "0")
    for hops in ("0", "1"):
        async with served(*QUICK, *place, RATELIMIT_TRUSTED_PROXIES=hops) as service:
            service.send(SIGTERM)
            assert await service.ended() == 0
        said = [line for line in service.err if "at a unix socket nobody has an address" in line]
        assert len(said) == (hops == "0")


def test_a_policy_that_matches_nothing_limits_nothing_in_front_of_an_upstream(
    ratelimit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATELIMIT_POLICIES__HINT__QUOTAS", "5/day")
    status, _, err = ratelimit("serve", "--upstream", "http://a")
    assert (status, "nothing is limited: no policy has a match" in err) == (2, True), err


RULES = "domain: edge\ndescriptors: [{key: user, rate_limit: {unit: day, requests_per_unit: 2}}]"


@pytest.mark.parametrize("place", ["8081", "host:x", "host:99999", ":8081", "unix:", ""])
def test_a_place_for_grpc_that_is_none(ratelimit: Command, tmp_path: Path, place: str) -> None:
    (tmp_path / "edge.yaml").write_text(RULES)
    status, _, err = ratelimit("serve", "--envoy-config", str(tmp_path), "--grpc", place)
    assert status == 2
    assert f"--grpc: expected an address as in 127.0.0.1:8081, or unix:/PATH, not {place!r}" in err


def test_envoys_service_has_the_port_of_the_admin_listener_and_that_the_next(tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text(RULES)
    rules = str(tmp_path)
    assert ServeConfig(envoy_config=rules, grpc="0.0.0.0:8081")().admin == "127.0.0.1:8082"
    assert ServeConfig(envoy_config=rules, grpc="0.0.0.0:8091")().admin == "127.0.0.1:8081"
    assert ServeConfig(envoy_config=rules, grpc="0.0.0.0:8081", admin="127.0.0.1:9")().admin == "127.0.0.1:9"


@pytest.mark.parametrize("place", ["127.0.0.1:{port}", "unix:/nowhere/at/all"])
def test_a_place_for_grpc_that_cannot_be_had(ratelimit: Command, tmp_path: Path, place: str) -> None:
    (tmp_path / "edge.yaml").write_text(RULES)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = place.format(port=taken.getsockname()[1])
        options = ("--envoy-config", str(tmp_path), "--port", "0", "--admin", "off")
        status, _, err = ratelimit("serve", *options, "--grpc", place)
    assert status == 2
    assert f"--grpc: cannot listen on {place.removeprefix('unix:')}" in err


@pytest.mark.parametrize("option", ["--port", "--admin"])
def test_a_port_in_use(ratelimit: Command, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        other = {"--port": ("--admin", "off"), "--admin": ("--port", "0")}[option]
        value = place if option == "--admin" else place.rpartition(":")[2]
        status, _, err = ratelimit("serve", *QUICK, option, value, *other)
    assert status == 2
    assert f"error: {option.removeprefix('--') if option == '--admin' else option}: cannot listen on {place}" in err


@pytest.mark.process
async def test_with_no_file_and_no_upstream() -> None:
    async with served(*QUICK, "--admin", "127.0.0.1:0", "--linger", "0") as service:
        pid = service.process.pid
        assert service.banner == {
            "listening": service.url,
            "upstream": None,
            "policies": {"api": ["2/day"]},
            "user_from": ["header:x-api-key"],
            "store": "memory://",
            "admin": service.banner["admin"],
            "grpc": None,
            "workers": 1,
            "pid": pid,
        }
        async with httpx.AsyncClient() as client:
            fields = {"x-api-key": "secret"}
            asked = [await client.get(f"{service.url}/v1/authz/a?token=secret", headers=fields) for _ in range(3)]
            assert [answer.status_code for answer in asked] == [200, 200, 429]
            check = await client.post(f"{service.url}/v1/check", json={"user": "bob", "action": "api"})
            assert check.json()["allowed"] is True
            assert (await client.get(f"{service.banner['admin']}/health/ready")).status_code == 200
        service.send(SIGTERM)
        assert await service.ended() == 0
    lines = [line for line in service.out if " GET /v1/authz/a 429 " in line]
    assert len(lines) == 1
    assert "secret" not in "".join(service.out + service.err)


@pytest.mark.process
async def test_the_start_up_line_for_people() -> None:
    options = ("--upstream", "http://127.0.0.1:1", "--linger", "0")
    async with served(*QUICK, *options, for_people=True) as service:
        line = service.err[0]
        assert f"ratelimit serves {service.url} in front of http://127.0.0.1:1: api (2/day); users from header:" in line
        assert "header:x-api-key, address; counting in memory://; no admin listener; 1 worker" in line
        service.send(SIGTERM)
        assert await service.ended() == 0


@pytest.mark.process
async def test_probes_reach_the_pod_that_the_page_describes() -> None:
    """They come from outside, by the pod's address; no more than health is open to whoever else comes by it."""
    pod = yaml.safe_load(titled("docs/operations.md", "pod.yaml").text)["containers"][0]
    env = {one["name"]: one.get("value", "a-secret-of-16-characters") for one in pod["env"]}
    env |= {"RATELIMIT_STORE": "memory://", "RATELIMIT_PORT": "tcp://10.96.12.7:8080"}
    admin = env.pop("RATELIMIT_ADMIN").replace("8081", "0")
    assert pod["args"][0] == "serve"
    options = [*pod["args"][1:], "--port", "0", "--admin", admin, "--linger", "0"]
    async with served(*options, **env) as service:
        port = service.banner["admin"].rpartition(":")[2]
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers={"host": "10.244.0.7:8081"}
        ) as kubelet:
            for probe in ("livenessProbe", "readinessProbe"):
                assert (await kubelet.get(pod[probe]["httpGet"]["path"])).status_code == 200
            assert (await kubelet.get("/metrics")).status_code == 401
            assert (await kubelet.post("/reload")).status_code == 401
        service.send(SIGTERM)
        assert await service.ended() == 0
