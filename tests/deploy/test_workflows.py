"""What hosted machines run: files that GitHub understands, on named versions, with what the project supports."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.tools import ROOT, run, tool

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def read(path: Path) -> dict[str, Any]:
    return dict(yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


@pytest.mark.slow
def test_they_are_valid() -> None:
    run(tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *WORKFLOWS)
    run(tool("check-jsonschema"), "--builtin-schema", "custom.github-workflows-require-timeout", *WORKFLOWS)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_they_use_has_a_version(path: Path) -> None:
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert [each for each in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+\.\d+\.\d+", each)] == []
    installed = [step["run"] for step in steps(path) if "pip install" in step.get("run", "")]
    assert [each for each in installed if not re.search(r"pip install [\w-]+==[\d.]+$", each)] == []


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(encoding="utf-8")))
    known = {target for line in targets for target in line.split()}
    commands = [step.get("run", "") for path in WORKFLOWS for step in steps(path)]
    asked = {command.split()[1] for command in commands if command.startswith("make ")}
    assert {"lint", "types", "test", "coverage", "docs"} <= asked <= known


def test_every_supported_python_is_tested_and_built_for() -> None:
    supported = set(re.findall(r"(?m)Python :: (3\.\d+)$", "\n".join(PROJECT["project"]["classifiers"])))
    assert len(supported) >= 3
    assert supported <= set(read(WORKFLOWS[0])["jobs"]["test"]["strategy"]["matrix"]["python"])
    built = PROJECT["tool"]["cibuildwheel"]["build"].split()
    assert {f"cp{each.replace('.', '')}-*" for each in supported} <= set(built)


def test_only_what_publishes_may_speak_for_the_project() -> None:
    granted = {name: job.get("permissions") for path in WORKFLOWS for name, job in read(path)["jobs"].items()}
    assert {name for name, permissions in granted.items() if permissions} == {"publish"}
    assert granted["publish"] == {"id-token": "write"}
    assert [read(path)["permissions"] for path in WORKFLOWS] == [{"contents": "read"}] * len(WORKFLOWS)


def test_hooks_before_a_commit_are_the_tools_of_the_environment() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/") for hook in local["hooks"])
