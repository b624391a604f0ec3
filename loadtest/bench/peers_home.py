"""The peers live in a virtual environment of their own: they are no dependencies of this project.

Made on demand in `.cache/bench-peers`, by pip, with what is pinned here.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Final

PINNED: Final = (
    "limits==5.8.0", "zae-limiter==0.17.0", "redis==7.4.1", "coredis==5.7.0", "uvloop==0.23.0", "grpcio==1.85.3",
)  # fmt: skip
HOME: Final = Path(__file__).parents[2] / ".cache" / "bench-peers"

_WITHIN: Final = 600.0


@cache
def python() -> tuple[str | None, str]:
    """The Python that has the peers; or None, and why."""
    found, stamp = HOME / "bin" / "python", HOME / "pinned.txt"
    wanted = "\n".join(PINNED)
    if not (stamp.exists() and stamp.read_text() == wanted):
        try:
            _run(sys.executable, "-m", "venv", str(HOME))
            _run(str(found), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINNED)
        except (OSError, subprocess.SubprocessError) as error:
            return None, f"not measured: the peers ({', '.join(PINNED)}): they could not be installed: {error}"
        stamp.write_text(wanted)
    return str(found), ""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, timeout=_WITHIN, stdin=subprocess.DEVNULL)
