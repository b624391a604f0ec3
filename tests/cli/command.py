"""Runs a command line as the shell would see it."""

from __future__ import annotations

import io
import json
import logging.config
from functools import cache
from typing import Any, NamedTuple, Protocol

import pytest
import typer.main

from ratelimit.cli import main

# Typer makes the tree of all commands anew for every call, which takes longer than most of them.
_the_program = cache(typer.main.get_command)


class Result(NamedTuple):
    """Exit status, and what was written."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Terminal(io.StringIO):
    """What somebody types."""

    def isatty(self) -> bool:
        return True


class Command(Protocol):
    def __call__(self, *args: str) -> Result: ...


@pytest.fixture
def ratelimit(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """`ratelimit("check", "alice", "hint")`."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("typer.main.get_command", _the_program)
    # `ratelimit serve` would leave handlers that write to the streams of this test.
    monkeypatch.setattr(logging.config, "dictConfig", lambda config: None)

    def run(*args: str) -> Result:
        with pytest.raises(SystemExit) as left:
            main(args)
        return Result(int(left.value.code or 0), *capsys.readouterr())

    return run
