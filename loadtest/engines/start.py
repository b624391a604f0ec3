"""Starts an engine on a free port, waits until it answers, warms it up, and lets it go at the end."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.engines import dynamodb_local, localstack, ministack
from loadtest.engines.engine import Choice, Engine, EngineError

READY_WITHIN: Final = 120.0
STOP_WITHIN: Final = 10.0
ATTEMPTS: Final = 3
WARM_UPS: Final = 100


@dataclass(frozen=True, slots=True)
class Launch:
    """How to run one engine on a port, in a scratch folder."""

    command: Callable[[int], list[str]]
    environment: Callable[[int, Path], dict[str, str]]
    warm_ups: int = 0


_LAUNCHES: Final = {
    "ministack": Launch(ministack.command, ministack.environment),
    "dynamodb-local": Launch(dynamodb_local.command, dynamodb_local.environment, WARM_UPS),
    "localstack": Launch(localstack.command, localstack.environment, WARM_UPS),
}


@contextmanager
def start(choice: Choice) -> Iterator[Engine]:
    """The chosen engine, ready. Raises `EngineError`."""
    if choice.endpoint is not None:
        engine = Engine(choice.name, choice.endpoint)
        _check_answers(engine)
        yield engine
        return
    with tempfile.TemporaryDirectory(prefix="ratelimit-engine-", ignore_cleanup_errors=True) as scratch:
        engine, process = _start(choice.name, Path(scratch))
        try:
            yield engine
        finally:
            _stop(process)


def _check_answers(engine: Engine) -> None:
    try:
        engine.call("ListTables", {})
    except OSError as error:
        raise EngineError(f"no engine answers at {engine.endpoint}: {error}") from error


def _start(name: str, scratch: Path) -> tuple[Engine, subprocess.Popen[bytes]]:
    """A port that was free a moment ago may be taken when the engine comes to it: then the next one."""
    launch = _LAUNCHES[name]
    problems = []
    for attempt in range(ATTEMPTS):
        port = _free_port()
        engine = Engine(name, f"http://127.0.0.1:{port}", scratch / f"engine-{attempt}.log")
        process = _spawn(launch, port, scratch, engine)
        try:
            problem = _wait_until_ready(engine, process)
            if not problem:
                _warm_up(engine, launch.warm_ups)
                return engine, process
        except BaseException:
            _stop(process)
            raise
        _stop(process)
        problems.append(f"{problem}\n{engine.log_since(0)}")
    raise EngineError(f"{name} did not start: {problems[-1]}")


def _spawn(launch: Launch, port: int, scratch: Path, engine: Engine) -> subprocess.Popen[bytes]:
    assert engine.log is not None
    leash = str(Path(__file__).with_name("leash.py"))
    with engine.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, leash, *launch.command(port)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env=launch.environment(port, scratch),
            start_new_session=True,  # Ctrl-C is for the session, which then lets go of the leash
        )


def _wait_until_ready(engine: Engine, process: subprocess.Popen[bytes]) -> str:
    """What is wrong; empty when it answers."""
    until = time.monotonic() + READY_WITHIN
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
    return f"not ready within {READY_WITHIN:.0f} s: {problem}"


def _warm_up(engine: Engine, times: int) -> None:
    """A cold JVM takes a second for its first writes, longer than any deadline that a test would set."""
    if not times:
        return
    table: dict[str, object] = {"TableName": "warm-up"}
    key = {"PK": {"S": "warm"}, "SK": {"S": "up"}}
    engine.call("CreateTable", table | {
        "KeySchema": [{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in key],
        "BillingMode": "PAY_PER_REQUEST",
    }, timeout=READY_WITHIN)  # fmt: skip
    for _ in range(times):
        engine.call("UpdateItem", table | {
            "Key": key,
            "UpdateExpression": "ADD n :one",
            "ConditionExpression": "attribute_not_exists(n) OR n < :most",
            "ExpressionAttributeValues": {":one": {"N": "1"}, ":most": {"N": str(times)}},
            "ReturnValues": "UPDATED_NEW",
        }, timeout=READY_WITHIN)  # fmt: skip
    engine.call("DeleteTable", table, timeout=READY_WITHIN)


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(STOP_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
