"""The image, without Docker: its claims are read from the Dockerfile, and its steps are carried out in a folder."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy import dockerfile
from tests.deploy.tools import is_required, lacking, run

pytestmark = pytest.mark.slow

BUILD, FINAL = dockerfile.stages()
PATIENCE = 240.0


def test_it_runs_as_nobody_special() -> None:
    (user,) = dockerfile.texts(FINAL, "USER")
    assert user == "10001:10001"
    names = [instruction.name for instruction in FINAL]
    assert names.index("USER") > max(at for at, name in enumerate(names) if name in ("RUN", "COPY"))


def test_it_writes_to_its_volume_only() -> None:
    (volume,) = dockerfile.texts(FINAL, "VOLUME")
    variables = dockerfile.variables(FINAL)
    assert variables["TMPDIR"] == volume == "/var/lib/ratelimit"
    assert variables["PYTHONDONTWRITEBYTECODE"] == "1"


def test_nothing_of_the_build_but_the_environment_comes_along() -> None:
    assert dockerfile.texts(FINAL, "COPY") == ["--from=build /venv /venv"]
    assert "--without-pip" in dockerfile.texts(BUILD, "RUN")[0]


def test_its_health_check_needs_no_curl() -> None:
    (check,) = dockerfile.texts(FINAL, "HEALTHCHECK")
    program, flag, code = dockerfile.listed(check)
    assert (program, flag) == ("python", "-c")
    compile(code, "HEALTHCHECK", "exec")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build stage's steps, word for word, but that `/venv` is a folder of the test: where its programs are."""
    if not is_required():
        lacking("it installs from the package index, which takes a minute: `make test-deploy`")
    folder = tmp_path_factory.mktemp("image")
    dockerfile.context(folder, BUILD)
    (step,) = dockerfile.texts(BUILD, "RUN")
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    environment = {**os.environ, **dockerfile.variables(BUILD, "ARG"), "PATH": path}
    run("sh", "-c", step.replace("/venv", str(folder / "venv")), cwd=folder, env=environment)
    return folder / "venv" / "bin"


@pytest.mark.timeout(1500)
def test_the_wheel_brings_its_templates(installed: Path, tmp_path: Path) -> None:
    printed = run(installed / "ratelimit", "deploy", "render", "table", "--name", "limits", cwd=tmp_path)
    assert 'Default: "limits"' in printed
    account = ("--account", "123456789012", "--region", "eu-west-1")
    policies = json.loads(run(installed / "ratelimit", "deploy", "render", "iam", *account, cwd=tmp_path))
    assert set(policies) == {"serve", "read", "migrate", "operate"}


@pytest.mark.timeout(1500)
def test_it_is_the_compiled_build(installed: Path, tmp_path: Path) -> None:
    assert run(installed / "ratelimit", "--version", cwd=tmp_path).strip().endswith("(compiled)")


@pytest.mark.timeout(1500)
def test_it_serves_and_is_healthy(installed: Path, tmp_path: Path) -> None:
    state, home = tmp_path / "state", tmp_path / "home"
    state.mkdir()
    home.mkdir()
    before = contents(installed.parent)
    environment = surroundings(installed, state)
    with serving(installed, environment, home) as told:
        assert httpx.get(f"{told['admin']}/health/ready", timeout=PATIENCE).status_code == 200
        answers = [httpx.post(f"{told['listening']}/v1/check", json=ASKED, timeout=PATIENCE) for _ in range(2)]
        assert [answer.json()["allowed"] for answer in answers] == [True, False]
        environment["RATELIMIT_ADMIN"] = told["admin"].removeprefix("http://")
        assert health(environment, home) == 0
    assert health(environment, home) != 0
    assert contents(installed.parent) == before
    assert contents(home) == {}
    assert [name for name in contents(state) if not name.startswith("journal/")] == []


ASKED = {"user": "alice", "action": "api"}


def surroundings(installed: Path, state: Path) -> dict[str, str]:
    """The variables of the image, with a folder of the test for its volume, and ports that are free."""
    variables = dockerfile.variables(FINAL)
    return variables | {
        "PATH": f"{installed}:/usr/bin:/bin",
        "TMPDIR": str(state),
        "RATELIMIT_ADMIN": "127.0.0.1:0",
        "RATELIMIT_USAGE": f"journal:{state / 'journal'}",
    }


@contextmanager
def serving(installed: Path, environment: dict[str, str], home: Path) -> Iterator[dict[str, Any]]:
    """What the image's entry point says when it is up; it leaves by SIGTERM, with 0."""
    (entry,) = dockerfile.texts(FINAL, "ENTRYPOINT")
    (command,) = dockerfile.texts(FINAL, "CMD")
    assert (dockerfile.listed(entry), dockerfile.listed(command)) == (["ratelimit"], ["serve", "--host", "0.0.0.0"])
    line = "serve --host 127.0.0.1 --port 0 --json --linger 0 --action api --quota 1/day"
    process = subprocess.Popen(
        [installed / "ratelimit", *shlex.split(line)],
        cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    watch = threading.Timer(PATIENCE, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        if not first:
            pytest.fail(f"it did not start: {process.communicate()[1]}")
        yield json.loads(first)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 0
    finally:
        watch.cancel()
        process.kill()
        process.communicate()


def health(environment: dict[str, str], home: Path) -> int:
    """The exit status of the image's HEALTHCHECK."""
    (check,) = dockerfile.texts(FINAL, "HEALTHCHECK")
    done = subprocess.run(
        dockerfile.listed(check), cwd=home, env=environment, timeout=PATIENCE, check=False, capture_output=True
    )
    return done.returncode


def contents(folder: Path) -> dict[str, int]:
    """Every file in it, with the time of its last change."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()
    }
