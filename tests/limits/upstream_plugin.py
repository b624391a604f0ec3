"""A pytest plugin for the suites of `limits` and Flask-Limiter as they are: it puts our backend in.

The suite of `limits` goes over lists of storages, most of which need Docker: here over memory and ours. Flask-Limiter's
takes `memory://` where nothing else is said: with `RATELIMIT_UPSTREAM=replace` that is ours, each with its own prefix.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any

import pytest
from limits._storage_scheme import SCHEMES
from limits.storage import storage_from_string

import ratelimit.limits  # noqa: F401 (which makes the URL known)
from ratelimit.clock import SystemClock

# Under hiro, by which the suites turn the time, `time.time_ns` returns a float.
SystemClock.now = lambda self: round(time.time() * 1_000_000)  # type: ignore[method-assign]

URL = os.environ["RATELIMIT_UPSTREAM_URL"]
_numbers = itertools.count()


def pytest_configure() -> None:
    if os.environ.get("RATELIMIT_UPSTREAM") == "replace":
        SCHEMES["memory"] = _in_place_of_memory  # type: ignore[assignment]


def _in_place_of_memory(uri: str, **options: Any) -> object:
    return storage_from_string(f"{URL}&key_prefix=test-{os.getpid()}-{next(_numbers)}", **options)


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for mark in metafunc.definition.iter_markers("parametrize"):
        names = [name.strip() for name in mark.args[0].split(",")]
        if {"uri", "fixture"} <= set(names):
            object.__setattr__(mark, "args", (mark.args[0], _memory_and_ours(names, mark.args[1])))


def _memory_and_ours(names: list[str], params: Any) -> list[Any]:
    memory = next(param for param in params if "memory://" in param.values[0])
    scheme = memory.values[0].replace("memory", "dynamodb").partition(":")[0]
    values = dict(zip(names, memory.values, strict=True))
    values |= {"uri": URL.replace("dynamodb:", f"{scheme}:"), "fixture": None}
    if "expected_instance" in values:
        values["expected_instance"] = SCHEMES[scheme]
    return [memory, pytest.param(*(values[name] for name in names), id="dynamodb")]


@pytest.fixture(autouse=True)
def _empty_table(request: pytest.FixtureRequest) -> None:
    if "dynamodb" in request.node.name:
        storage: Any = storage_from_string(URL)
        storage.reset()
        storage.close()
