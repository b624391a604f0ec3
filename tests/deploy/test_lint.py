"""What AWS's, Docker's and hadolint's own tools say of the files: nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ratelimit.deploy import TEMPLATES, Template, template
from tests.deploy.tools import run, tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # seconds here, minutes on a busy machine

NAMES = {
    "table": {"TableName": "limits", "TimelineIndex": "true"},
    "global-table": {"TableName": "limits", "SecondRegion": "us-east-1", "ThirdRegion": "ap-south-1"},
    "sidecar": {"ServiceName": "shop", "Image": "registry/ratelimit:1", "AppImage": "registry/shop:7"},
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_cfn_lint(name: Template, tmp_path: Path) -> None:
    """As it is kept, and as it is printed with other names."""
    printed = tmp_path / f"{name}.yaml"
    printed.write_text(template(name, NAMES[name]), encoding="utf-8")
    run(tool("cfn-lint"), "--include-checks", "I", "--", f"ratelimit/deploy/{name}.yaml", printed)


def test_hadolint() -> None:
    run(tool("hadolint"), "--failure-threshold", "style", "deploy/Dockerfile")


def test_docker_compose() -> None:
    services = json.loads(run(tool("docker-compose"), "config", "--format", "json"))["services"]
    assert set(services) == {"localstack", "table", "sidecar", "app", "demo"}
