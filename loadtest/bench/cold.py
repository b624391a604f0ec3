"""What a process pays that is started for a single call, as a function on AWS Lambda: its imports, opening, one check.

Each start is a process of its own, with byte code that is there already, on a stub that answers at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from statistics import median
from typing import Final

from loadtest.bench.report import BenchTarget, Findings, Rounds, Row
from loadtest.bench.runner import CREDENTIALS
from loadtest.bench.stub import stub_server

MEMORY = "ratelimit.sync, memory"
OURS = "ratelimit.sync, DynamoDB"
BY_BOTOCORE = "ratelimit.sync, DynamoDB, set up by more than variables"
BARE = "boto3's client alone"

_CLOCKED: Final = """
import json, sys, time
wall, cpu, marks = time.perf_counter, time.process_time, []
def mark(): marks.extend((wall() - began, cpu() - spent))
began, spent = wall(), cpu()
{imports}
mark()
{opening}
mark()
{check}
mark()
print(json.dumps(marks))
"""
_OPENING: Final = """
store = open_store('dynamodb://bench?endpoint=' + sys.argv[1])
limiter = Limiter(store, [Policy('hint', '9/day')])
"""
_ON_A_LOOP: Final = {
    "imports": "import asyncio\nfrom ratelimit import Limiter, Policy, open_store",
    "opening": """
runner = asyncio.Runner()
async def opened():
    store = await open_store('dynamodb://bench?endpoint=' + sys.argv[1])
    return Limiter(store, [Policy('hint', '9/day')])
limiter = runner.run(opened())
""",
    "check": "assert runner.run(limiter.check('alice', 'hint')).reason is None",
}
_SYNC: Final = {
    "imports": "from ratelimit import Policy\nfrom ratelimit.sync import Limiter, open_store",
    "opening": _OPENING,
    "check": "assert limiter.check('alice', 'hint').reason is None",
}
_PROGRAMS: Final[Mapping[str, Mapping[str, str]]] = {
    MEMORY: {**_SYNC, "opening": "limiter = Limiter(open_store('memory://'), [Policy('hint', '9/day')])"},
    OURS: _SYNC,
    "ratelimit.sync, DynamoDB, and a usage log": {
        "imports": _SYNC["imports"] + ", UsageLog",
        "opening": f"{_OPENING}usage = UsageLog(store)",
        "check": "limiter.check('alice', 'hint')\nusage.record('alice', 'hint')\nusage.flush()",
    },
    "ratelimit, DynamoDB, asyncio.run": _ON_A_LOOP,
    "the same, on AWS Lambda": {
        **_ON_A_LOOP,
        "imports": "import os; os.environ['AWS_LAMBDA_FUNCTION_NAME'] = 'bench'\n" + _ON_A_LOOP["imports"],
    },
    BY_BOTOCORE: {
        **_SYNC,
        "imports": "import os; os.environ['AWS_IGNORE_CONFIGURED_ENDPOINT_URLS'] = 'true'\n" + _SYNC["imports"],
    },
    BARE: {
        "imports": "from botocore.config import Config\nfrom botocore.session import get_session",
        "opening": "config = Config(proxies={})\n"
        "client = get_session().create_client('dynamodb', endpoint_url=sys.argv[1], config=config)",
        "check": "client.get_item(TableName='bench', Key={'PK': {'S': 'x'}, 'SK': {'S': 'y'}})",
    },
}


def run(rounds: Rounds = 7) -> Findings:
    """A cold start: imports, opening, the first check. In turns; the first start of each is not counted."""
    starts: dict[str, list[list[float]]] = {name: [] for name in _PROGRAMS}
    with stub_server() as endpoint:
        for number in range(rounds + 1):
            for name, parts in _PROGRAMS.items():
                marks = _start(parts, endpoint)
                if number:
                    starts[name].append(marks)
    rows = [Row(name, _figures(marks)) for name, marks in starts.items()]
    return Findings(rows, _targets(rows))


def _start(parts: Mapping[str, str], endpoint: str) -> list[float]:
    program = _CLOCKED
    for name, text in parts.items():
        program = program.replace("{" + name + "}", text)
    # Nothing of this machine's own set-up of AWS.
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "REQUESTS_"))}
    done = subprocess.run(
        [sys.executable, "-c", program, endpoint], env={**theirs, **CREDENTIALS}, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    marks: list[float] = json.loads(done.stdout)
    return marks


def _figures(starts: list[list[float]]) -> dict[str, float | None]:
    imports, imports_cpu, opened, opened_cpu, checked, checked_cpu = (
        1000 * median(values) for values in zip(*starts, strict=True)
    )
    return {
        "imports ms": imports,
        "opening ms": opened - imports,
        "first check ms": checked - opened,
        "all ms": checked,
        "imports, CPU ms": imports_cpu,
        "opening, CPU ms": opened_cpu - imports_cpu,
        "all, CPU ms": checked_cpu,
    }


def _targets(rows: list[Row]) -> list[BenchTarget]:
    """Where the environment says all, a start is to take less than that of AWS's client, of which nothing is needed."""
    cpu = {row.name: row.figures["all, CPU ms"] or 0.0 for row in rows}
    promise = f"CPU of {OURS}, times that of: {BARE} (an aim)"
    return [BenchTarget(promise, cpu[OURS] / max(cpu[BARE], 0.001), "at most", 0.75)]
