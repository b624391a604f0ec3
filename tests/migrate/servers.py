"""MariaDB and PostgreSQL from Debian, as processes of the test session: own data, own port, on loopback only.

`RATELIMIT_TEST_DATABASES=required` (`make test-databases`) makes one that is not installed a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import sqlalchemy as sa

from ratelimit.migrate.sql import with_driver
from ratelimit.testing.engines import free_port, run_with_parent

READY_WITHIN = 240.0
VARIABLE = "RATELIMIT_TEST_DATABASES"


class NotInstalled(Exception):
    """There is no such server on this machine."""


@contextmanager
def running(name: str) -> Iterator[str]:
    """The URL of a server, with a database that is there already. Raises `NotInstalled`."""
    find = {"mariadb": _mariadb, "postgresql": _postgresql}[name]
    # Not one of pytest's folders: a server that must not be root has to get there.
    folder = Path(tempfile.mkdtemp(prefix=f"ratelimit-{name}-"))
    try:
        command, url = find(folder, free_port())
        with _process(command, folder, url):
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_database(server: str) -> str:
    """The URL of a fresh one."""
    name = f"app_{uuid4().hex[:8]}"
    engine = sa.create_engine(with_driver(server), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{server.rpartition('/')[0]}/{name}"


def is_required() -> bool:
    return os.environ.get(VARIABLE) == "required"


def _mariadb(folder: Path, port: int) -> tuple[list[str], str]:
    server, install = _program("mariadbd"), _program("mariadb-install-db")
    user = ["--user=root"] if os.geteuid() == 0 else []
    options = ["--no-defaults", f"--datadir={folder / 'data'}", *user]
    _run([install, *options, "--auth-root-authentication-method=normal", "--skip-test-db"], folder)
    command = [
        server, *options, "--bind-address=127.0.0.1", f"--port={port}", f"--socket={folder / 'socket'}",
        f"--pid-file={folder / 'pid'}", "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M",
        "--default-time-zone=+02:00",  # what a migration has to see through
    ]  # fmt: skip
    return command, f"mysql://root@127.0.0.1:{port}/mysql"


def _postgresql(folder: Path, port: int) -> tuple[list[str], str]:
    newest = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    path = f"{newest}:{os.environ['PATH']}" if newest else None
    server, install = _program("postgres", path), _program("initdb", path)
    as_user: list[str] = []
    if os.geteuid() == 0:  # it refuses to be root
        as_user = [_program("setpriv"), "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    _run([*as_user, install, "--auth=trust", "--username=app", "--pgdata", str(folder / "data")], folder)
    command = [
        *as_user, server, "-D", str(folder / "data"), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder),
        "-c", "fsync=off", "-c", "timezone=Europe/Berlin",
    ]  # fmt: skip
    return command, f"postgresql://app@127.0.0.1:{port}/postgres"


@contextmanager
def _process(command: list[str], folder: Path, url: str) -> Iterator[None]:
    log = (folder / "log").open("wb")
    process = run_with_parent(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        _wait(url, process, folder / "log")
        yield
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)
        log.close()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    engine = sa.create_engine(with_driver(url))
    until = time.monotonic() + READY_WITHIN
    try:
        while True:
            try:
                engine.connect().close()
            except sa.exc.OperationalError as error:
                if process.poll() is not None or time.monotonic() > until:
                    said = log.read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{url} did not start: {error}\n{said}") from error
                time.sleep(0.1)
            else:
                return
    finally:
        engine.dispose()


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=READY_WITHIN, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def _program(name: str, path: str | None = None) -> str:
    found = shutil.which(name, path=path or f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise NotInstalled(f"{name} is not installed: apt-get install mariadb-server postgresql")
    return found
