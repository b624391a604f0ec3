"""The command as a whole: help that teaches, one line for an error, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ratelimit as package
from ratelimit import COMPILED
from tests.cli.command import Command


def test_version(ratelimit: Command) -> None:
    build = " (compiled)" if COMPILED else ""
    assert ratelimit("--version") == (0, f"{package.__version__}{build}\n", "")


def test_another_project_of_the_same_folder(
    ratelimit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "ratelimit-2.2.1.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: ratelimit\nVersion: 2.2.1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    status, out, err = ratelimit("--version")
    assert (status, out) == (2, "")
    assert "PyPI's 2.2.1, another project, is installed in the same folder: pip uninstall ratelimit, then" in err


def test_no_command_shows_the_help(ratelimit: Command) -> None:
    status, out, err = ratelimit()
    assert (status, err) == (0, "")
    assert "check" in out
    assert "Exit status: 0 done (or allowed), 1 refused, 2 bad input" in out


@pytest.mark.parametrize(
    "command", ["check", "config check", "config show", "table create", "table status", "table delete"]
)
def test_every_command_has_help_with_an_example(ratelimit: Command, command: str) -> None:
    status, out, _ = ratelimit(*command.split(), "--help")
    assert status == 0
    assert "Example" in out


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (("chekc",), "error: No such command 'chekc'. Did you mean 'check'?; see: ratelimit --help\n"),
        (("check", "alice"), "see: ratelimit check --help\n"),
        (("check", "alice", "hint", "--qota", "5/day"), "--qota"),
        (("check", "alice", "hint", "--cost", "much"), "'--cost'"),
        (("config",), "see: ratelimit config --help\n"),
    ],
)
def test_a_line_that_cannot_be_read(ratelimit: Command, line: tuple[str, ...], told: str) -> None:
    status, out, err = ratelimit(*line)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.process
def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ratelimit", "check", "alice", "hint", "--quota", "0/day"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "refused: alice hint" in done.stdout


@pytest.mark.process
@pytest.mark.parametrize("line", ["config show", "check a b --quota 5/day"])
def test_a_full_disk_behind_standard_output_is_told_of(line: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ratelimit", *line.split()],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=240,
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output cannot be written: No space left on device\n"


@pytest.mark.process
def test_credentials_that_cannot_be_had_are_one_line() -> None:
    line = "check a b --quota 5/day --store dynamodb://limits?region=eu-west-1"
    role = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/nowhere/token", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"}
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | role
    command = [sys.executable, "-m", "ratelimit", *line.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    assert "cannot be read: /nowhere/token" in done.stderr


@pytest.mark.process
@pytest.mark.parametrize("closed", [1, 2])
def test_closed_streams_are_no_error(closed: int) -> None:
    command = f"{sys.executable} -m ratelimit check a b --quota 5/day {closed}>&-"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
