"""What a contender runs in: this checkout, its compiled build, or the peers, which are no dependencies of this project.

The last two are made on demand in `.cache`, by pip. `python -m loadtest.bench.builds` makes the compiled one, and
prints where it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

Build: TypeAlias = Literal["", "compiled", "peers"]

ROOT: Final = Path(__file__).parents[2]
COMPILED: Final = ROOT / ".cache" / "compiled"
PEERS: Final = ROOT / ".cache" / "bench-peers"
PINNED: Final = (
    "limits==5.8.0", "zae-limiter==0.17.0", "redis==7.4.1", "coredis==5.7.0", "uvloop==0.23.0", "grpcio==1.85.3",
)  # fmt: skip

_PIP: Final = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")
_WITHIN_S: Final = 1800.0
_LAST_LINES: Final = 3


class Interpreter(NamedTuple):
    """A Python, and the environment in which it finds the build."""

    python: str
    environment: Mapping[str, str]


def interpreter(build: Build) -> Interpreter:
    """Return the Python of a build that is there. The tests and the load tests stay those of the checkout."""
    if build == "compiled":
        path = f"{COMPILED}{os.pathsep}{ROOT}"
        return Interpreter(sys.executable, {"PYTHONSAFEPATH": "1", "PYTHONPATH": path})
    return Interpreter(str(PEERS / "bin" / "python") if build == "peers" else sys.executable, {"PYTHONPATH": str(ROOT)})


def absent(builds: Iterable[Build]) -> dict[Build, str]:
    """Make those that are not there. Return a note for each that cannot be made."""
    reasons: dict[Build, str] = {}
    for build in dict.fromkeys(builds):
        if build == "compiled" and (reason := compiled()):
            reasons[build] = f"not measured: the compiled build: {reason}"
        if build == "peers" and (reason := peers()):
            reasons[build] = f"not measured: the peers ({', '.join(PINNED)}): {reason}"
    return reasons


@cache
def compiled() -> str:
    """Return why there is no compiled build; empty where there is one, of the sources as they are now."""
    digest = sha256(sys.version.encode())
    for path in (ROOT / "pyproject.toml", ROOT / "hatch_build.py", *sorted((ROOT / "ratelimit").rglob("*.py"))):
        digest.update(f"{path.relative_to(ROOT)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    install = [sys.executable, *_PIP, "--no-deps", "--no-build-isolation", "--target", str(COMPILED), str(ROOT)]
    return _made(COMPILED, digest.hexdigest(), install)


@cache
def peers() -> str:
    """Return why there are no peers; empty where they are there, as pinned."""
    environment = [sys.executable, "-m", "venv", str(PEERS)]
    return _made(PEERS, "\n".join(PINNED), environment, [interpreter("peers").python, *_PIP, *PINNED])


def _made(home: Path, content: str, *commands: list[str]) -> str:
    """Make what is not there, or is of other content. Return why it could not be made."""
    stamp = home / "content.txt"
    if stamp.exists() and stamp.read_text() == content:
        return ""
    shutil.rmtree(home, ignore_errors=True)
    print(f"making {home}, which takes some minutes", file=sys.stderr, flush=True)  # noqa: T201
    environment = {**os.environ, "HATCH_BUILD_HOOKS_ENABLE": "1"}
    try:
        for command in commands:
            subprocess.run(
                command, check=True, timeout=_WITHIN_S, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                env=environment,
            )  # fmt: skip
    except subprocess.CalledProcessError as error:
        return "it could not be built: " + " / ".join(error.stderr.strip().splitlines()[-_LAST_LINES:])
    except (OSError, subprocess.SubprocessError) as error:
        return f"it could not be built: {error}"
    stamp.write_text(content)
    return ""


if __name__ == "__main__":
    if reason := compiled():
        sys.exit(reason)
    print(COMPILED)  # noqa: T201
