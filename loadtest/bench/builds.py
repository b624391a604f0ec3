"""The compiled build of this checkout, made on demand in `.cache/compiled`: an installation of its own. Whoever has
`environment` for its environment sees it before the checkout.

`python -m loadtest.bench.builds` makes it, and prints where it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
HOME: Final = ROOT / ".cache" / "compiled"

_STAMP: Final = HOME / "sources.txt"
_WITHIN: Final = 1800.0
_LAST_LINES: Final = 3


def environment() -> dict[str, str]:
    """With which a Python runs what is there; the tests and the load tests stay those of the checkout."""
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": f"{HOME}{os.pathsep}{ROOT}"}


@cache
def compiled() -> str:
    """Why there is none; empty where there is one, of the sources as they are now."""
    sources = _sources()
    if _STAMP.exists() and _STAMP.read_text() == sources:
        return ""
    shutil.rmtree(HOME, ignore_errors=True)
    print("compiling ratelimit, which takes some minutes", file=sys.stderr, flush=True)  # noqa: T201
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        subprocess.run(
            [*command, "--no-build-isolation", "--target", str(HOME), str(ROOT)],
            check=True,
            timeout=_WITHIN,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "HATCH_BUILD_HOOKS_ENABLE": "1"},
        )
    except subprocess.CalledProcessError as error:
        return "it could not be built: " + " / ".join(error.stderr.strip().splitlines()[-_LAST_LINES:])
    except (OSError, subprocess.SubprocessError) as error:
        return f"it could not be built: {error}"
    _STAMP.write_text(sources)
    return ""


def _sources() -> str:
    digest = sha256(sys.version.encode())
    for path in (ROOT / "pyproject.toml", ROOT / "hatch_build.py", *sorted((ROOT / "ratelimit").rglob("*.py"))):
        digest.update(f"{path.relative_to(ROOT)} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    if reason := compiled():
        sys.exit(reason)
    print(HOME)  # noqa: T201
