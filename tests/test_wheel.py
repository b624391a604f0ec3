"""What `pip install` of the wheel puts where: one name, and load tests that run from it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
import starlette

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site-packages of an environment with the wheel; what it depends on comes after it, from the suite's own."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home)
    run(*PIP, "--python", home / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)
    (found,) = home.glob("lib/python*/site-packages")
    # Another folder's own `.pth` files count for nothing: the checkout is not found through it.
    (found / "suite.pth").write_text(str(Path(starlette.__file__).parents[1]))
    return found


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder in which somebody has load tests of their own."""
    own = tmp_path / "loadtest"
    own.mkdir()
    (own / "__init__.py").write_text("OWNER = 'somebody'\n")
    (own / "plan.py").write_text("raise RuntimeError('a plan of somebody else')\n")
    return tmp_path


def python(site: Path, *arguments: str, cwd: Path) -> str:
    return run(site.parents[2] / "bin" / "python", *arguments, cwd=cwd)


def test_its_one_name_is_ratelimit(wheel: Path, site: Path) -> None:
    names = {path.name for path in site.iterdir() if path.suffix not in (".dist-info", ".pth")}
    assert names == {"ratelimit"}
    contents = ZipFile(wheel).namelist()
    assert len(contents) == len(set(contents))
    assert [name for name in contents if "/bench/" in name or "/report/" in name] == []
    assert {"ratelimit/loadtest/budgets.toml", "ratelimit/testing/localstack-requirements.txt"} < set(contents)
    static = "ratelimit/dashboard/static"
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / static).iterdir()}
    assert {f"{static}/index.html", f"{static}/dashboard.js", f"{static}/dashboard.css"} < files < set(contents)


def test_somebodys_own_load_tests_are_theirs(site: Path, app: Path) -> None:
    code = "import ratelimit.loadtest, loadtest; print(ratelimit.loadtest.__file__, loadtest.OWNER)"
    assert python(site, "-c", code, cwd=app) == f"{site}/ratelimit/loadtest/__init__.py somebody\n"


def test_the_load_tests_run_beside_them(site: Path, app: Path) -> None:
    """With the folder on `sys.path`, as `-m` puts it there; Locust does the same."""
    said = python(site, "-m", "ratelimit", "loadtest", "run", "--engine", "ministack", "--smoke", cwd=app)
    assert "BROKEN" not in said
    assert (app / "loadtest" / "report" / "report.json").exists()


def test_the_simulator_runs_from_it(site: Path, app: Path) -> None:
    said = python(site, "-m", "ratelimit.loadtest.simulate", "--processes", "2", "--rate", "50", cwd=app)
    assert "coalesced" in said
