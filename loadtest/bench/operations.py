"""What each operation asks of the store: calls and write units, ours beside zae-limiter's where it has the same.

Counted on ministack in a process that has asked for each key before, and is refused for what another one has spent
since. Engines do not say what a refused write costs: it is taken for what AWS bills, one unit, and two for each item of
a transaction.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer

from loadtest.bench.builds import absent, interpreter
from loadtest.bench.peers import ZAE
from loadtest.bench.report import Figure, Findings, Row
from loadtest.bench.runner import CREDENTIALS
from loadtest.bench.servers import engine
from ratelimit import Limiter, Policy
from ratelimit.dynamodb import DynamoDBStore
from ratelimit.names import Key
from ratelimit.store import Outcome, Write
from ratelimit.testing import FakeClock

Ask = Callable[[str], Awaitable[object]]
Bills = dict[str, dict[str, Figure]]

OURS = "ratelimit"
_ROOMY = "1000000000/day"
_POLICIES = (
    Policy("hint", _ROOMY),
    Policy("org", _ROOMY),
    Policy("little", "2/day"),
    Policy("tokens", _ROOMY),
    Policy("export", "10 concurrent"),
)
_READS = ("GetItem", "BatchGetItem", "TransactGetItems", "Query")
_WITHIN_S = 300.0


def run(times: Annotated[int, typer.Option(help="Users that each operation is done for.")] = 20) -> Findings:
    """Calls and write units of each operation, beside zae-limiter's."""
    with engine("ministack") as endpoint:
        ours = asyncio.run(_operations(endpoint, times))
        theirs, notes = _of_zae(endpoint, times)
    rows = []
    for name in {**ours, **theirs}:
        of_both = {
            f"{who}: {what}": figure
            for who, bills in ((OURS, ours), (ZAE, theirs))
            for what, figure in bills.get(name, {}).items()
        }
        rows.append(Row(name, of_both))
    return Findings(rows, notes=notes)


def _of_zae(endpoint: str, times: int) -> tuple[Bills, list[str]]:
    if lacking := absent(["peers"]):
        return {}, [*lacking.values()]
    python, environment = interpreter("peers")
    command = [python, "-m", "loadtest.bench.contenders_zae", endpoint, str(times)]
    env = {**os.environ, **CREDENTIALS, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_WITHIN_S, check=False)
    if done.returncode:
        return {}, [f"not counted: {ZAE}: {done.stderr[-500:]}"]
    return json.loads(done.stdout), []


class _Store(DynamoDBStore):
    """Counts what refusals cost, too."""

    @property
    def units(self) -> float:
        return self.stats.write_units + self._refused

    _refused = 0

    async def apply(self, key: Key, write: Write, *, now: int) -> Outcome:
        outcome = await super().apply(key, write, now=now)
        self._refused += not outcome.applied
        return outcome

    async def apply_all(self, writes: Sequence[tuple[Key, Write]], *, now: int) -> Sequence[Outcome]:
        outcomes = await super().apply_all(writes, now=now)
        self._refused += 0 if all(outcome.applied for outcome in outcomes) else 2 * len(writes)
        return outcomes


async def _operations(endpoint: str, times: int) -> Bills:
    options: dict[str, Any] = {"table": "bench", "region": "eu-west-1", "endpoint": endpoint, "create": True}
    async with _Store(**options, consumed=True) as store, DynamoDBStore(**options) as another_store:
        clock = FakeClock()
        limiter, another = (Limiter(one, _POLICIES, clock=clock, deadline=30) for one in (store, another_store))
        users = [f"user-{number}" for number in range(times)]

        async def count(ask: Ask) -> dict[str, Figure]:
            calls, units = Counter(store.stats.calls), store.units
            for user in users:
                await ask(user)
            await limiter.drain()
            made = Counter(store.stats.calls) - calls
            reads = sum(made[name] for name in _READS)
            return {
                "writes": (made.total() - reads) / times,
                "reads": reads / times,
                "write units": (store.units - units) / times,
            }

        async def check(user: str, action: str = "hint", *, by: Limiter = limiter) -> None:
            await by.check(user, action)

        async def two(user: str, action: str = "org") -> None:
            await limiter.check_all([(user, "hint"), (f"org-of-{user}", action)])

        async def reserve(user: str) -> None:
            async with limiter.reserve(user, "tokens", 301) as reservation:
                reservation.settle(1)

        async def slot(user: str) -> None:
            async with limiter.slot(user, "export"):
                pass

        for user in users:
            for ask in (check, two, reserve, slot):
                await ask(user)
            await check(user, "little")
            await two(user, "little")
            await check(user, "little", by=another)
            await check(f"org-of-{user}", "little", by=another)
        await limiter.drain()
        bills = {
            "check": await count(check),
            "refused": await count(lambda user: check(user, "little")),
            "refused again at once": await count(lambda user: check(user, "little")),
            "reserve and settle": await count(reserve),
            "take a slot and return it": await count(slot),
            "two keys": await count(two),
            "two keys, the second refused": await count(lambda user: two(user, "little")),
        }
        clock.advance(2)
        return {**bills, "two keys, a second later": await count(two)}
