"""What the project promises as a package: its names, its version, its documents, its licence."""

from __future__ import annotations

import importlib
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import ratelimit

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PUBLIC = "Limiter Policy Quota Decision MemoryStore RateLimitMiddleware open_store limited"


@pytest.mark.parametrize("name", PUBLIC.split())
def test_the_public_names_import(name: str) -> None:
    assert getattr(ratelimit, name)
    assert name in ratelimit.__all__


def test_all_names_what_exists() -> None:
    assert sorted(set(ratelimit.__all__)) == sorted(ratelimit.__all__)
    assert [name for name in ratelimit.__all__ if not hasattr(ratelimit, name)] == []


def test_the_fake_clock_is_public() -> None:
    assert importlib.import_module("ratelimit.testing").FakeClock


def test_one_version_everywhere() -> None:
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert ratelimit.__version__ == PROJECT["version"] == version("ratelimit-dynamodb")
    assert f"## [{PROJECT['version']}]" in changes
    assert "## [Unreleased]" in changes


def test_every_room_says_what_it_is_for() -> None:
    rooms = [path.parent for path in (ROOT / "ratelimit").rglob("*.py")]
    silent = [room for room in set(rooms) if not _docstring(room / "__init__.py")]
    assert silent == []


def test_the_package_is_typed_and_licensed() -> None:
    assert (ROOT / "ratelimit" / "py.typed").exists()
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_all_is_the_sum_of_the_extras() -> None:
    extras = dict(PROJECT["optional-dependencies"])
    (everything,) = extras.pop("all")
    assert set(re.findall(r"[a-z]+", everything.partition("[")[2])) == set(extras)


def test_development_dependencies_are_pinned() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted
    assert [line for line in wanted if not re.fullmatch(r"[\w.-]+==[\w.!+]+", line)] == []


def _docstring(file: Path) -> bool:
    return file.exists() and file.read_text(encoding="utf-8").lstrip().startswith('"""')
