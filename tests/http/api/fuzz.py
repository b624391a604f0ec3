"""schemathesis against the running API: `make fuzz-api ARGS="--examples 1000 --seed 1"`.

It reads the OpenAPI document from the server and makes requests of it, valid and not, alone and in sequences. It
complains of a server error, of an answer that the document does not know, of bad input that is taken and of good input
that is not. What it is told besides is in `schemathesis.toml`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp

from ratelimit.config import load_config
from ratelimit.factory import decision_app
from tests.http.serving import served

TOKEN: Final = "a-token-for-the-fuzzer"
POLICIES: Final[dict[str, dict[str, Any]]] = {
    "hint": {"quotas": "5/day"},
    "run": {"quotas": ["20/minute", "100/day"], "mode": "shadow"},
    "search": {"quotas": "10/second burst 20", "algorithm": "gcra"},
}
_HERE: Final = Path(__file__).parent
_ROOT: Final = _HERE.parents[2]


def app_on(store: str) -> ASGIApp:
    """The app as `ratelimit serve` runs it, with everything turned on."""
    config = load_config(
        env={}, store=store, policies=POLICIES, usage="memory", directory=True, api_token=TOKEN, deadline=10
    )
    return decision_app(config)


async def fuzz(app: ASGIApp, folder: Path, *, examples: int, seed: int | None = None) -> tuple[int, str]:
    """The exit status of schemathesis, and its report. `folder` is for its scratch files.

    Without a seed it tries the same each time.
    """
    choice = ("--generation-deterministic",) if seed is None else ("--seed", str(seed))
    async with served(app) as address:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("st")),
            *("--config-file", str(_HERE / "schemathesis.toml")),
            *("run", f"http://{address}/v1/openapi.json", "-H", f"Authorization: Bearer {TOKEN}"),
            *("--max-examples", str(examples), *choice),
            *("--continue-on-failure", "--no-color", "--request-timeout", "30", "--suppress-health-check", "all"),
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(_ROOT), "SCHEMATHESIS_HOOKS": "tests.http.api.fuzz_hooks"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            report, _ = await process.communicate()
        except BaseException:
            process.kill()
            await process.wait()
            raise
    return process.returncode or 0, report.decode()


def main() -> int:
    """The longer run."""
    parser = argparse.ArgumentParser(prog="python -m tests.http.api.fuzz", description=__doc__)
    parser.add_argument("--store", default="memory://", help="as in ratelimit.toml; by default memory://")
    parser.add_argument("--examples", type=int, default=300, help="of each operation, by default 300")
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time")
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    with tempfile.TemporaryDirectory() as folder:
        status, report = asyncio.run(fuzz(app_on(given.store), Path(folder), examples=given.examples, seed=seed))
    sys.stdout.write(report)
    return status


if __name__ == "__main__":
    sys.exit(main())
