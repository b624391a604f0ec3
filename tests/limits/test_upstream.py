"""The suites of `limits` and Flask-Limiter themselves, as they are, on our backend.

They are in the source distributions, and want packages of their own: `make test-limits` brings both.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from tests.engines import Engine

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SUITES = ROOT / ".cache" / "limits-suites"
OPTIONS = (
    *("-p", "upstream_plugin", "-p", "no:cacheprovider", "--no-cov", "-rA"),
    *("-o", "asyncio_default_fixture_loop_scope=function", "-W", "ignore::pytest.PytestWarning"),
)
# Four windows of a second, each expected to the 30 ms: limits itself calls it flaky, and here others work beside it.
TIMED = "test_sliding_window_counter_previous_window"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def installed() -> None:
    if not (SUITES / ".installed").exists():
        missing = "the suites of limits and Flask-Limiter are not there: `make test-limits` fetches them from PyPI"
        if os.environ.get("RATELIMIT_TEST_LIMITS") == "required":
            pytest.fail(missing)
        pytest.skip(missing)


def outcomes(suite: str, *arguments: str, url: str, **env: str) -> dict[str, str]:
    """Run a suite; return how each of its tests ended."""
    (folder,) = SUITES.glob(f"{suite}-*/")
    env = {
        **{"PATH": os.environ["PATH"], "HOME": str(SUITES), "PYTHONPATH": f"{HERE}:{ROOT}"},
        **{"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "RATELIMIT_UPSTREAM_URL": url, **env},
    }
    command = [str(SUITES / "bin" / "python"), "-m", "pytest", *OPTIONS, *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=550, check=False)
    found = re.findall(r"^(PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) (tests/\S+::\S+)", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return {test: outcome for outcome, test in found}


def url_of(engine: Engine) -> str:
    return engine.store_url(f"limits-{uuid4().hex[:8]}", create="true", read_timeout="10")


def test_the_tests_of_limits_pass_on_our_storages(engine: Engine) -> None:
    names = ("storage.py", "strategy.py")
    files = [f"tests/{room}test_{name}" for room in ("", "aio/") for name in names]
    ended = outcomes("limits", *files, "tests/integration", "-k", "dynamodb", url=url_of(engine))
    failed = {test for test, outcome in ended.items() if outcome != "PASSED" and TIMED not in test}
    assert (len(ended), failed) == (61, set())


def test_the_tests_of_flask_limiter_end_as_they_do_in_memory(engine: Engine) -> None:
    url = url_of(engine)
    # Those that start Redis, MongoDB or memcached in Docker are errors either way.
    in_memory = outcomes("flask_limiter", "tests", url=url)
    on_ours = outcomes("flask_limiter", "tests", url=url, RATELIMIT_UPSTREAM="replace")
    assert on_ours == in_memory
    assert Counter(on_ours.values())["PASSED"] >= 113
