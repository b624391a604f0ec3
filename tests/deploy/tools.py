"""Programs that look at what is deployed, and the network that an image is built with: neither is everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
REQUIRED: Final = "RATELIMIT_TEST_DEPLOY"
"""`required` makes what is missing a failure; else its tests are skipped, saying so. `make test-deploy` sets it."""
PATIENCE: Final = 1200.0

TOOLS: Final = ROOT / ".cache" / "deploy-tools" / "bin"
"""Where `make test-deploy` installs what pip has."""
OF_THE_SYSTEM: Final = ("prometheus", "promtool")


def tool(name: str) -> str:
    """Where a program is: in `.cache/deploy-tools`, beside this Python, or on the path."""
    places = [str(TOOLS), str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        how = "Debian's package `prometheus` has it" if name in OF_THE_SYSTEM else "`make test-deploy` does it"
        lacking(f"{name} is not installed: {how}")
    assert found is not None
    return found


def lacking(reason: str) -> None:
    """Fails or skips."""
    if is_required():
        pytest.fail(reason)
    pytest.skip(reason)


def is_required() -> bool:
    """Whether everything has to be there."""
    return os.environ.get(REQUIRED) == "required"


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """What the program said; fails with it where its exit status is not 0."""
    quiet = subprocess.DEVNULL
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False, stdin=quiet
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
