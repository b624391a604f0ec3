"""ministack: an AWS emulator in pure Python, installed with the development dependencies. The default engine."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def command(port: int) -> list[str]:
    """It takes its port from the environment."""
    del port
    return [sys.executable, "-m", "ministack"]


def environment(port: int, scratch: Path) -> dict[str, str]:
    """Nothing of the developer's environment but the search path; its pid file and data go to the scratch folder."""
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "SERVICES": "dynamodb,dynamodbstreams",
        "LOG_LEVEL": "WARNING",
    }
