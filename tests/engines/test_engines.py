"""The suite's own promises: it never reaches AWS, never settles for less, and leaves nothing running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from ratelimit.testing import engines
from ratelimit.testing.engines import run_with_parent
from tests.engines import Choice, Engine, EngineError, choose, isolate, start

ROOT = Path(__file__).parents[2]


def test_the_default_needs_no_more_than_pip() -> None:
    assert choose({}) == Choice("ministack")


def test_a_running_engine_is_used() -> None:
    assert choose({"RATELIMIT_TEST_ENDPOINT": "http://127.0.0.1:4566/"}) == Choice("running", "http://127.0.0.1:4566")


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://dynamodb.eu-west-1.amazonaws.com",
        "http://10.0.0.1:8000",
        "http://localhost.example.com",
        "127.0.0.1:4566",
    ],
)
def test_only_loopback_will_do(endpoint: str) -> None:
    with pytest.raises(EngineError, match="RATELIMIT_TEST_ENDPOINT"):
        choose({"RATELIMIT_TEST_ENDPOINT": endpoint})


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(EngineError, match="ministack, dynamodb-local"):
        choose({"RATELIMIT_TEST_ENGINE": "moto"})


def test_an_endpoint_without_an_engine_is_refused() -> None:
    with pytest.raises(EngineError, match="no engine answers"), start(endpoint="http://127.0.0.1:9"):
        pass


@pytest.mark.process
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_engine_runs_until_it_is_interrupted(sent: signal.Signals) -> None:
    command = ["/bin/sh", "-c", f"trap '' INT; exec {sys.executable} -m ratelimit.testing.engines ministack"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = urlsplit(process.stdout.readline())
            Engine("ministack", dict(parse_qsl(url.query))["endpoint"]).call("ListTables", {})
            process.send_signal(sent)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(("line", "status", "told"), [(["--help"], 0, "{ministack,"), (["moto"], 2, "{ministack,")])
def test_the_command_tells_its_engines(
    line: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["engines", *line])
    with pytest.raises(SystemExit) as left:
        engines.main()
    assert (left.value.code, told in "".join(capsys.readouterr())) == (status, True)


@pytest.mark.process
def test_a_suite_without_its_engine_fails_and_skips_nothing() -> None:
    one = "tests/engines/test_engines.py::test_the_engine_answers"
    env = {**os.environ, "RATELIMIT_TEST_ENDPOINT": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no engine answers" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 error")


def test_another_jar_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "DynamoDBLocal.jar").write_bytes(b"something else")
    monkeypatch.setattr(engines, "DYNAMODB_LOCAL", tmp_path)
    with pytest.raises(EngineError, match="not what it should be: sha256"):
        engines.fetch_dynamodb_local()


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="needs java, and there is none on the PATH"), start("dynamodb-local"):
        pass


def test_an_engine_that_is_unknown_is_named_with_those_that_are_not() -> None:
    with pytest.raises(EngineError, match="unknown engine 'moto'; use one of ministack, dynamodb-local, localstack"):
        with start("moto"):
            pass


def test_nothing_of_the_developer_is_left() -> None:
    environ = {
        "AWS_PROFILE": "production", "AWS_SESSION_TOKEN": "secret", "RATELIMIT_STORE": "dynamodb://production",
        "HTTPS_PROXY": "http://proxy", "REQUESTS_CA_BUNDLE": "/ca.pem",
        "RATELIMIT_TEST_ENGINE": "ministack", "PATH": "/bin",
    }  # fmt: skip
    isolate(environ)
    gone = {"AWS_PROFILE", "AWS_SESSION_TOKEN", "RATELIMIT_STORE", "HTTPS_PROXY", "REQUESTS_CA_BUNDLE"}
    assert gone.isdisjoint(environ)
    assert environ["PATH"] == "/bin"
    assert environ["RATELIMIT_TEST_ENGINE"] == "ministack"
    assert environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")


def test_tests_run_in_that_environment() -> None:
    assert os.environ["AWS_ACCESS_KEY_ID"] == "AKIDEXAMPLE"
    assert "AWS_PROFILE" not in os.environ


def test_the_engine_answers(engine: Engine) -> None:
    assert "TableNames" in engine.call("ListTables", {})


@pytest.mark.process
def test_an_engine_does_not_outlive_its_session() -> None:
    """Whoever holds the pipe dies, the pipe closes, the command ends: here one that waits for nothing."""
    child = "import signal, sys; print('up', flush=True); signal.pause()"
    with run_with_parent([sys.executable, "-c", child], stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.stdin.close()
        assert process.stdout.read() == b""  # the end of the output: nobody holds it any more
        assert process.wait(timeout=60) != 0
