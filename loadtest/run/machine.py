"""The environment of a run, for whoever reads its figures later."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from ratelimit.config.secrets import masked

from loadtest.run.options import Options

_PACKAGES: Final = ("ratelimit-dynamodb", "locust", "uvicorn", "uvloop", "aiobotocore", "starlette", "ministack")


def environment(options: Options) -> dict[str, str]:
    """By name, in the order to be shown."""
    return {
        "counted in": options.place if options.store is None else masked(options.store),
        "machine": f"{os.cpu_count()} cores, {_processor()}",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))),
        "load when it began": load(),
        "rate": f"{options.paced:g} requests a second, {options.users} users, {options.duration:g} s after "
        f"{options.warm_up:g} s of warming up",
        "generators": _generators(options),
        "seed": str(options.seed),
    }


def load() -> str:
    """The load average of the last minute: other programs were at work where it is high."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _generators(options: Options) -> str:
    if options.expect_workers:
        return f"{options.expect_workers} workers of Locust, started by hand"
    return "1 process of Locust" if options.processes == 1 else f"{options.processes} processes of Locust"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
